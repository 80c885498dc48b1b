"""Trainings that are killed on their way."""

from wotlab.training import Defense


class Stop(Exception):
    """What kills them."""


def stopping(kind: type[Defense], call: int) -> type[Defense]:
    """That kind of defense, but its so many-th minibatch kills the training."""

    class Stopping(kind):
        _calls = 0

        def loss(self, *given):
            self._calls += 1
            if self._calls == call:
                raise Stop
            return super().loss(*given)

    Stopping.__name__ = kind.__name__  # a checkpoint knows a defense by its name
    return Stopping
