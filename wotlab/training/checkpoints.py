"""Checkpoints: replaced whole or not at all, continued only by the run that wrote them."""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn


def fingerprint(model: nn.Module, optimiser, defense, size: int, batch_size: int, seed: int) -> str:
    """What must agree for a checkpoint to be continued: network, optimizer, defense, data."""
    settings = {
        "weights": {name: list(w.shape) for name, w in model.state_dict().items()},
        "optimizer": [type(optimiser).__name__, repr(optimiser.defaults)],
        "defense": type(defense).__name__,
        "run": [size, batch_size, seed],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def resume(path: str | Path, parts: dict, fingerprint: str) -> dict:
    """Put what `path` holds into `parts`; the rest of it is returned."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["fingerprint"]
    except Exception as error:  # torch raises a different kind for every kind of damage
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); delete it to start anew"
        ) from error
    if found != fingerprint:
        raise ValueError(
            f"checkpoint {path} belongs to another network, optimizer, defense, data set size, "
            f"batch_size or seed; delete it, or name another file"
        )
    for name, part in parts.items():
        part.load_state_dict(saved.pop(name))
    return saved


def save(path: str | Path, parts: dict, rest: dict) -> None:
    """Write beside the old checkpoint, then put it in its place: a kill leaves one of the two."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(state | rest, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
