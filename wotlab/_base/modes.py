"""A network in eval mode, and every part of it back in its own mode afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode, without gradients; afterwards each part in its own mode."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    with keep_modes(model), torch.no_grad():
        model.eval()
        yield
