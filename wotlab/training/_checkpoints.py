"""Checkpoints: replaced whole or not at all, continued only by the run that wrote them.

What a run is made of is kept beside its weights, in the words of `wotlab._base.settings`.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from wotlab._base.files import replacing
from wotlab._base.settings import Words, differences, hashed

SEAL = b"\nsha256 "  # at the end of the file, before the digest of all that precedes it


@runtime_checkable
class Stateful(Protocol):
    """A network, an optimizer, a scheduler or a defense."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict, /) -> object: ...


def resume(path: Path, parts: dict[str, Stateful], run: Words) -> dict:
    """Put what `path` holds into `parts`; the rest of it is returned."""
    body, seal, digest = path.read_bytes().rpartition(SEAL)
    if not seal or digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError(
            f"checkpoint {path} is damaged or not one of these; delete it to start anew"
        )
    saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if found := differences(saved["run"], run):
        raise ValueError(
            f"checkpoint {path} belongs to another run; they differ in {', '.join(found[:5])}. "
            f"Go on with the settings it was begun with, delete it, or name another file"
        )
    for name, part in parts.items():
        part.load_state_dict(saved.pop(name))
    return saved


def save(path: Path, parts: dict[str, Stateful], rest: dict) -> None:
    """Write beside the old checkpoint, then put it in its place: a kill leaves one of the two."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as part, open(part, "wb+") as file:
        torch.save(state | rest, file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(SEAL + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def of_network(model: nn.Module) -> str:
    """A network by the names and shapes of its weights."""
    return hashed(*(f"{k} {list(w.shape)}" for k, w in model.state_dict().items()))


def of_optimizer(optimizer: Optimizer) -> list:
    """An optimizer by its kind and its groups of weights."""
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"tensors": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return [type(optimizer).__name__, *groups]
