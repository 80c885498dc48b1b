"""A batch of problems that an iteration works on; whatever is done leaves it."""

from copy import copy
from types import SimpleNamespace
from typing import Self

from torch import Tensor


class Batch(SimpleNamespace):
    """What is known of the problems that are not done yet, and which of all they are: `index` (P,).

    Each part is a tensor whose first dimension is the problem, or has a `select` of its own; what
    is neither belongs to all problems.
    """

    index: Tensor

    def select(self, keep: Tensor) -> Self:
        """The problems in `keep`, booleans (P,), and what is known of them."""
        some = copy(self)
        for name, part in vars(self).items():
            if isinstance(part, Tensor):
                setattr(some, name, part[keep])
            elif hasattr(part, "select"):
                setattr(some, name, part.select(keep))
        return some

    def leave(self, done: Tensor, found: dict[str, Tensor], **now: Tensor | int) -> Self:
        """Write what is `now` known of those that are `done` into `found`, and keep the others."""
        if not bool(done.any()):
            return self
        rows = self.index[done]
        for name, value in now.items():
            found[name][rows] = value[done] if isinstance(value, Tensor) else value
        return self.select(~done)
