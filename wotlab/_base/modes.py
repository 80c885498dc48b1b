"""A network in eval mode, what it is asked, and each part back in its own mode afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went through a network, and those whose gradient came back."""

    forward: int = 0
    backward: int = 0

    def see(self, _model: nn.Module, _given: object, logits: object) -> None:
        """The hook of a network's forward; what a GPU only records is not asked."""
        if not isinstance(logits, Tensor):
            return
        if not (logits.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.forward += len(logits)
            if logits.requires_grad:
                logits.register_hook(self._return)

    def _return(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def counters(model: nn.Module) -> list[Passes] | None:
    """Those who count what a network is asked; None where others watch it or a part of it."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    hooks = [h for part in model.modules() for kind in kinds for h in getattr(part, kind).values()]
    found = [getattr(hook, "__self__", None) for hook in hooks]
    counting = [each for each in found if isinstance(each, Passes)]
    return counting if len(counting) == len(hooks) else None


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens to a network inside, each part of it is in its own mode afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[Passes]:
    """The network in eval mode, without gradients; afterwards each part in its own mode.

    Counts what the network is asked.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    with keep_modes(model), torch.no_grad():
        model.eval()
        passes = Passes()
        hook = model.register_forward_hook(passes.see)
        try:
            yield passes
        finally:
            hook.remove()
