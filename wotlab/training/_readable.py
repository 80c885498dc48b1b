"""Objects that are printed as the call that makes them."""

import inspect
from functools import partial

from torch import nn


class Readable:
    """Its repr is the call that makes it, less what is left at its default."""

    def __repr__(self) -> str:
        settings = inspect.signature(type(self)).parameters.values()
        known = [(p, getattr(self, p.name)) for p in settings if hasattr(self, p.name)]
        given = [f"{p.name}={words(value)}" for p, value in known if value != p.default]
        return f"{type(self).__name__}({', '.join(given)})"


def words(value: object) -> str:
    """A function by its name, with what is bound to it; a network by its kind."""
    if isinstance(value, partial):
        bound = [f"{name}={words(part)}" for name, part in value.keywords.items()]
        return f"{words(value.func)}({', '.join([*map(words, value.args), *bound])})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return getattr(value, "__name__", None) or repr(value)
