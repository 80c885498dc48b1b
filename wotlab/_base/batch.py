"""A batch of problems that an iteration works on; whatever is done leaves it."""

from copy import copy
from types import SimpleNamespace
from typing import Self, TypeVar, cast

from torch import Tensor

T = TypeVar("T")


def kept(part: T, keep: Tensor) -> T:
    """The rows `keep`, booleans (B,) or places, of a tensor, or of each in a tuple or a dict.

    What has a `select` of its own is asked for it; what is none of these belongs to all rows.
    """
    if isinstance(part, Tensor):
        return cast(T, part[keep])
    if isinstance(part, tuple):
        return cast(T, tuple(kept(each, keep) for each in part))
    if isinstance(part, dict):
        return cast(T, {name: kept(each, keep) for name, each in part.items()})
    return part.select(keep) if hasattr(part, "select") else part


class State:
    """Keeps what changes from step to step in its attributes, alone, in tuples or in dicts."""

    def select(self, keep: Tensor) -> Self:
        """The problems in `keep`, booleans (P,) or places, and what is known of them."""
        some = copy(self)
        for name, part in vars(self).items():
            setattr(some, name, kept(part, keep))
        return some


class Batch(State, SimpleNamespace):
    """What is known of the problems that are not done yet, and which of all they are: `index` (P,).

    Of its parts problems leave by `kept`.
    """

    index: Tensor

    def leave(self, done: Tensor, found: dict[str, Tensor], **now: Tensor | int) -> Self:
        """Write what is `now` known of those that are `done` into `found`, and keep the others."""
        if not bool(done.any()):
            return self
        rows = self.index[done]
        for name, value in now.items():
            found[name][rows] = value[done] if isinstance(value, Tensor) else value
        return self.select(~done)
