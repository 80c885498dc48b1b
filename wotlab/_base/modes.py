"""A network in eval mode, and every part of it back in its own mode afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

Modes = list[tuple[nn.Module, bool]]


def modes_of(model: nn.Module) -> Modes:
    """Each part of a network with its mode."""
    return [(part, part.training) for part in model.modules()]


def set_modes(modes: Modes) -> None:
    """Put each part into its mode."""
    for part, mode in modes:
        part.training = mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode, without gradients; afterwards each part in its own mode."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    modes = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_modes(modes)
