"""What a training keeps from one minibatch for the next, so that it is not made anew for each."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import local

HERE = local()


@dataclass
class Kept:
    """The last that were made; the forms of those that were asked for; whether any can be made."""

    works: deque = field(default_factory=lambda: deque(maxlen=4))
    forms: deque = field(default_factory=lambda: deque(maxlen=4))
    able: bool = True


@contextmanager
def keeping() -> Iterator[None]:
    """Inside, a network changes in its weights alone, in place: what was recorded of it holds."""
    before, HERE.kept = kept(), Kept()
    try:
        yield
    finally:
        HERE.kept = before


def kept() -> Kept | None:
    """What is kept where we are, if anything is."""
    return vars(HERE).get("kept")
