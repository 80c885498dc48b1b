"""Steps that a GPU takes without its host: recorded once in a CUDA graph, then replayed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from threading import local
from typing import Any

import torch
from torch import Tensor

from wotlab._base.batch import Batch, State
from wotlab._base.modes import counters

# To record takes as long as so many steps of a host, so that fewer are not recorded
WORTH = 20
# Of each device what this thread recorded last: the next one works in the same memory
LAST = local()
Work = Callable[[Batch], None]  # gives a batch its next tensors, of the same shapes


class Recorded:
    """A `work` whose batch keeps its tensors: they hold the next state after each call.

    `at` is the batch, in tensors of its own. Whatever else `work` reads and writes in place (a
    network's weights, the best images) stays where it is, too.
    """

    def __init__(self, work: Work, at: Batch):
        self.work, self.at = work, at.select(torch.arange(len(at.index), device=at.index.device))
        self.at.t = torch.full_like(self.at.index, at.t) if isinstance(at.t, int) else self.at.t
        self.passes = counters(at.objective.model) or []
        self.graph = self.record()

    def record(self) -> torch.cuda.CUDAGraph:
        """The work as the GPU will repeat it."""
        graph, device = torch.cuda.CUDAGraph(), self.at.index.device
        before = vars(LAST).get(str(device))
        with aside(device):
            graph.capture_begin(before and before.pool(), capture_error_mode="thread_local")
            try:
                self.once()
            finally:
                graph.capture_end()
        setattr(LAST, str(device), graph)
        return graph

    def once(self) -> None:
        """The work; its results go where its batch's tensors are."""
        at, old = twin(self.at), tensors(self.at)
        self.work(at)
        places = {part.data_ptr() for part in old}
        both = [pair for pair in zip(old, tensors(at), strict=True) if pair[0] is not pair[1]]
        # what was one part of the state may now be another: all is read before any is written
        new = [part.clone() if part.data_ptr() in places else part for _, part in both]
        for (place, _), part in zip(both, new, strict=True):
            place.copy_(part)

    def __call__(self, at: Batch) -> None:
        self.graph.replay()
        for passes in self.passes:
            passes.forward += len(self.at.index)
            passes.backward += len(self.at.index)


def recorded(work: Work, at: Batch) -> tuple[Batch, Work]:
    """A batch and its work, recorded where the network allows it, else as they are.

    A network does not that moves numbers to its host, such as by an `if` on what it computes, or
    whose calls others watch by hooks: they would no longer be called.
    """
    if not alone(at):
        return at, work
    try:
        made = Recorded(work, at)
    except RuntimeError as reason:
        warnings.warn(f"steps are not recorded for the GPU: {reason}", stacklevel=2)
        return at, work
    return made.at, made


def alone(at: Batch) -> bool:
    """Whether a gradient of the network needs no host. It also prepares the libraries for it."""
    if not at.z.is_cuda or counters(at.objective.model) is None:
        return False
    mode = torch.cuda.get_sync_debug_mode()
    with aside(at.index.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
        try:
            at.objective.gradient(at.z)
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return True


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On another stream: the default one cannot be recorded."""
    with torch.cuda.device(device):
        here, stream = torch.cuda.current_stream(), other_stream(device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            yield
        here.wait_stream(stream)


@cache
def other_stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same: a library keeps memory for each stream that it has seen."""
    return torch.cuda.Stream(device)


def twin(part: Any) -> Any:
    """A state of the same tensors, which may get others."""
    if not isinstance(part, State):
        return part
    other = copy(part)
    for name, each in vars(part).items():
        setattr(other, name, twin(each))
    return other


def tensors(part: Any) -> list[Tensor]:
    """All of a state, in one order."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, State | dict):
        part = tuple((part if isinstance(part, dict) else vars(part)).values())
    return [found for each in part for found in tensors(each)] if isinstance(part, tuple) else []
