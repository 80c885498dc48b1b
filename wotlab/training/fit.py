"""The one training loop. It can be killed at any moment and goes on from its last epoch."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm.auto import tqdm

from wotlab import checks
from wotlab.training.defenses import Standard


@dataclass
class Fit:
    """What training gave: one entry an epoch in `history`, with `loss` and `seconds`."""

    history: list[dict] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)


class _Indexed(Dataset):
    """A data set that also says which image it gives."""

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return *self.data[index], index


def as_dataset(data: Dataset | tuple[Tensor, Tensor]) -> Dataset:
    """A data set of (image, label), also from a pair of tensors; ValueError if it is not one."""
    if isinstance(data, (tuple, list)):
        if len(data) != 2 or len(data[0]) != len(data[1]):
            raise ValueError("data must be (images, labels) of one length, or a Dataset")
        data = TensorDataset(*data)
    if len(data) == 0:
        raise ValueError("data holds no images")
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise ValueError("data must give pairs (image, label); this one gives something else")
    return data


def fit(
    model: nn.Module,
    data: Dataset | tuple[Tensor, Tensor],
    defense=None,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.1,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    schedule: Callable[[int], float] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    """Minimise `defense.loss` over the weights of `model`, in place, on the model's device.

    Parameters
    ----------
    model : nn.Module
        Left in the mode (train or eval) that it came in.
    data : Dataset of (image, label), or a pair of tensors (images, labels)
    defense : object with `loss(model, x, y, index)`, optional
        `Standard()` by default. `index` are the images' places in `data`. If it also has
        `start_epoch(epoch)`, that is called before each epoch.
    epochs : int >= 1
        In all: a resumed run does those that are missing.
    batch_size : int >= 1
    lr : float > 0
        Learning rate of the default optimizer, SGD with momentum 0.9 and weight decay 5e-4.
    optimizer : function of the model, optional
        Makes another optimizer, such as `lambda m: torch.optim.Adam(m.parameters(), 1e-3)`.
    schedule : function of the epoch (from 0), optional
        Factor on the learning rate; constant by default.
    seed : int
        Of shuffling and of the model's own randomness (dropout). The same seed gives the same
        weights on the same machine, resumed or not; the global random state is left alone.
    checkpoint : path, optional
        Written after each epoch, replaced whole or not at all; training goes on from it if it
        is there.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        For numbers out of range, data without labels, a checkpoint that is damaged or belongs to
        another network, data set or setting.
    FloatingPointError
        When the loss is no longer finite. The checkpoint then holds the last good epoch.
    """
    data = as_dataset(data)
    checks.count("epochs", epochs)
    checks.count("batch_size", batch_size)
    checks.positive("lr", lr)
    defense = defense or Standard()
    place = next(model.parameters()).device
    optimiser = (
        optimizer(model)
        if optimizer
        else SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule or (lambda epoch: 1.0))
    parts = {"model": model, "optimizer": optimiser, "scheduler": scheduler}
    fingerprint = _fingerprint(model, optimiser, defense, len(data), batch_size, seed)
    done = _resume(checkpoint, parts, fingerprint)
    mode = model.training
    model.train()
    bar = tqdm(total=epochs, initial=done.epochs, disable=not progress, desc="training")
    try:
        for epoch in range(done.epochs, epochs):
            if hasattr(defense, "start_epoch"):
                defense.start_epoch(epoch)
            with _seeded(seed, epoch) as generator:
                entry = _epoch(model, data, defense, optimiser, batch_size, generator, place)
            scheduler.step()
            done.history.append(entry)
            bar.set_postfix(loss=f"{entry['loss']:.3f}")
            bar.update()
            if checkpoint:
                _save(checkpoint, parts, fingerprint, done.history)
    finally:
        bar.close()
        model.train(mode)
    return done


def _epoch(model, data, defense, optimiser, batch_size, generator, place) -> dict:
    start, total, seen = time.perf_counter(), 0.0, 0
    loader = DataLoader(_Indexed(data), batch_size, shuffle=True, generator=generator)
    for x, y, index in loader:
        loss = defense.loss(model, x.to(place), y.to(place), index.to(place))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} after {seen} images of this epoch; lower the learning "
                f"rate, or check the images. A checkpoint holds the last good epoch"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * len(x)
        seen += len(x)
    return {"loss": total / seen, "seconds": time.perf_counter() - start}


@contextmanager
def _seeded(seed: int, epoch: int):
    """Randomness of one epoch, the same whether training was resumed before it or not."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed * 1_000_003 + epoch)  # the model's own: dropout
        yield torch.Generator().manual_seed(seed * 1_000_003 + epoch)  # shuffling


def _fingerprint(model, optimiser, defense, size, batch_size, seed) -> str:
    """What must agree for a checkpoint to be continued: network, optimizer, defense, data."""
    settings = {
        "weights": {name: list(w.shape) for name, w in model.state_dict().items()},
        "optimizer": [type(optimiser).__name__, repr(optimiser.defaults)],
        "defense": type(defense).__name__,
        "run": [size, batch_size, seed],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _resume(path, parts: dict, fingerprint: str) -> Fit:
    if path is None or not Path(path).exists():
        return Fit()
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
        part.load_state_dict(saved[name])
    return Fit(saved["history"])


def _save(path, parts: dict, fingerprint: str, history: list[dict]) -> None:
    """Write beside the old checkpoint, then put it in its place: a kill leaves one of the two."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(state | {"fingerprint": fingerprint, "history": history}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
