"""Steps that a GPU takes without its host: recorded once in a CUDA graph, then replayed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from itertools import chain
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from wotlab._base.batch import Batch, State
from wotlab._base.keeping import Kept, kept
from wotlab._base.modes import counters
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import Best
from wotlab.plans import PotentialPlans

# To record takes as long as so many steps of a host, so that fewer are not recorded
WORTH = 20
GRAPHS = ("cuda",)  # devices that record
CHECKED = {10**k for k in range(8)}  # uses of what a training keeps at which it is tried
# Of each device what this thread recorded last: the next one works in the same memory
LAST = local()
Work = Callable[[Batch], None]  # gives a batch its next tensors, of the same shapes


class Recorded:
    """A `work` whose batch keeps its tensors: they hold the next state after each call.

    `at` is the batch, in tensors of its own; who works with it takes a `twin`. Whatever else
    `work` reads (a network's weights) stays where it is, too.
    """

    def __init__(self, work: Work, at: Batch):
        self.work, self.form, self.uses = work, form(at), 0
        self.at = stepped(at).select(torch.arange(len(at.index), device=at.index.device))
        self.at.best = at.best.clone()
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

    def agrees(self, at: Batch) -> bool:
        """Whether it does with another batch of this form what the work does, to 0.1 %."""
        plain = twin(at)
        plain.best = at.best.clone()
        self.work(plain)
        self.load(at)
        self.graph.replay()
        both = (
            (getattr(each, name).flatten().double() for each in (plain, self.at))
            for name in ("z", "gradient", "loss")
        )
        return all(bool((a - b).norm() <= 1e-3 * a.norm()) for a, b in both)

    def load(self, at: Batch) -> None:
        """Go on with the state of another batch of this form."""
        for place, part in zip(tensors(self.at, *ALL), tensors(stepped(at), *ALL), strict=True):
            place.copy_(part)
        self.passes = counters(at.objective.model) or []


def stays(at: Batch, early_stop: bool) -> Kept | None:
    """Where a training keeps what is recorded, for attacks whose images all stay.

    Not under autocast, which casts the weights once for many passes: these would stay as they are.
    """
    found, device = kept(), at.index.device.type
    if early_stop or found is None or not found.able or device not in GRAPHS:
        return None
    return None if torch.is_autocast_enabled(device) else found


def again(work: Work, at: Batch, known: Kept) -> tuple[Batch, Work]:
    """A batch and its work as it was recorded for another one of its form.

    The second of a form is recorded: of many, as where a budget grows, there is one alone. Now and
    then its step is also taken as it is: whoever trains a network that changes otherwise than in
    its weights, or on a GPU that repeats something else, is told, and nothing is kept.
    """
    wanted = form(at)
    made = next((m for m in known.works if m.work is work and m.form == wanted), None)
    if made is None:
        if wanted not in known.forms:
            known.forms.append(wanted)
            return at, work
        made = record(work, at)
        if made is None:
            known.able = False
            return at, work
        known.works.append(made)
        return twin(made.at), made
    if counters(at.objective.model) is None:  # others watch it by now
        return at, work
    made.uses += 1
    if made.uses in CHECKED and not made.agrees(at):
        known.able = False
        known.works.clear()
        warnings.warn(
            "steps recorded for the GPU are not those of the network that is trained; each attack "
            "records its own", stacklevel=2,
        )  # fmt: skip
        return at, work
    made.load(at)
    return twin(made.at), made


def recorded(work: Work, at: Batch) -> tuple[Batch, Work]:
    """A batch and its work, recorded where the network allows it, else as they are."""
    made = record(work, at)
    return (at, work) if made is None else (twin(made.at), made)


def record(work: Work, at: Batch) -> Recorded | None:
    """The work, recorded for a batch where the network allows it.

    A network does not that moves numbers to its host, such as by an `if` on what it computes, or
    whose calls others watch by hooks: they would no longer be called.
    """
    if alone(at):
        try:
            return Recorded(work, at)
        except (RuntimeError, ValueError) as reason:  # ValueError: a state that changes its form
            warnings.warn(f"steps are not recorded for the GPU: {reason}", stacklevel=3)
    return None


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


def stepped(at: Batch) -> Batch:
    """The same with the step in a tensor, which a graph can count."""
    at = copy(at)
    at.t = torch.full_like(at.index, at.t) if isinstance(at.t, int) else at.t
    return at


def twin(part: Any) -> Any:
    """A state of the same tensors, which may get others."""
    if not isinstance(part, State):
        return part
    other = copy(part)
    for name, each in vars(part).items():
        setattr(other, name, twin(each))
    return other


ALL = State, Objective, Best, PotentialPlans  # all that a step reads is in these


def leaves(part: Any, kinds: tuple[type, ...] = (State,)) -> Iterator[Any]:
    """What a state, and whatever else of these kinds is in it, is made of, in one order."""
    if isinstance(part, dict):
        yield from part
        part = tuple(part.values())
    if isinstance(part, tuple | list):
        for each in part:
            yield from leaves(each, kinds)
    elif isinstance(part, kinds):
        yield type(part)
        yield from leaves(vars(part), kinds)
    else:
        yield part


def tensors(part: Any, *more: type) -> list[Tensor]:
    """All of a state; and of what is of `more` kinds in it."""
    return [leaf for leaf in leaves(part, (State, *more)) if isinstance(leaf, Tensor)]


def form(at: Batch) -> list:
    """Two batches whose forms are equal differ in numbers alone, at the same steps of a network.

    Of a network these are its weights' places, which may change, and its modes.
    """
    at = copy(at)
    at.t = at.index
    found: list = []
    for leaf in leaves(at, ALL):
        if isinstance(leaf, nn.Module):
            found += [part.data_ptr() for part in chain(leaf.parameters(), leaf.buffers())]
            found += [part.training for part in leaf.modules()]
        shape = isinstance(leaf, Tensor) and (leaf.shape, leaf.dtype, leaf.device)
        found.append(shape or leaf)
    return found
