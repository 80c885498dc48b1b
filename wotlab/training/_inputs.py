"""What can be trained, and its minibatches.

These are the same for any number of processes, and from any of them on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import BatchNorm1d
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from wotlab._base import checks
from wotlab._base.dataset import MapDataset
from wotlab._base.modes import keep_modes
from wotlab.balls import TOLERANCE


def check_model(model: nn.Module) -> None:
    """ValueError for what is no network, or one whose weights or modes are no longer its own."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "model has no weight that learns: all have requires_grad=False, or it is frozen "
            "(torch.jit.freeze) and holds them as constants. Train the network it was made from"
        )
    try:
        with keep_modes(model):
            model.train()
            model.eval()
    except Exception as error:
        raise ValueError(
            f"model must know train and eval mode; {type(model).__name__} does not (an exported "
            f"program?). Train the network it was made from"
        ) from error
    if torch.is_inference_mode_enabled():
        raise ValueError("fit needs gradients: call it outside of torch.inference_mode()")


def check_functions(
    defense: object, optimizer: object = None, schedule: object = None, validate: object = None
) -> None:
    """ValueError for what is no defense, or stands where `fit` wants a function."""
    if isinstance(defense, type) or not hasattr(defense, "loss"):
        raise ValueError(
            f"defense must be an object with a function `loss`, such as PGDAT(LinfBall(0.1)) or "
            f"Standard(); got {checks.found(defense)}"
        )
    if optimizer is not None:
        example = "lambda model: torch.optim.Adam(model.parameters(), 1e-3)"
        checks.function("optimizer", optimizer, example)
    if schedule is not None:
        checks.function("schedule", schedule, "lambda epoch: 0.1 ** (epoch // 30)")
    if validate is not None:
        checks.function("validate", validate, "lambda model: evaluate.accuracy(model, data)")


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """A network that learns, and every part back in its own mode afterwards.

    A part in eval mode within a network in train mode is frozen and stays as it is: its
    BatchNorm keeps its statistics. A network that is in eval mode as a whole is put into train
    mode as a whole.
    """
    with keep_modes(model):
        if not model.training:
            model.train()
        yield


def check_sizes(model: nn.Module, smallest: int) -> None:
    """ValueError if some minibatch leaves a single image to a layer that needs two."""
    needs = any(isinstance(part, BatchNorm1d) and part.training for part in model.modules())
    if needs and smallest < 2:
        raise ValueError(
            "batch_size leaves the last minibatch (or a process's part of it) with one image, and "
            "BatchNorm1d in train mode needs two; take another batch_size, or leave an image out"
        )


def as_labels(y: object) -> Tensor:
    """Class numbers (B,) in int64, from integers of any kind; ValueError for others."""
    if not checks.are_integers(y) or y.ndim != 1:
        found = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"labels must be class numbers, one integer an image (y.long(), y.flatten()); "
            f"got {found} for a minibatch"
        )
    return y.long()


def check_images(x: Tensor) -> None:
    """ValueError for images that are not finite numbers in [0, 1]; a little beyond is rounding."""
    checks.tensor("images", x, 4, "(B, C, H, W)")
    low, high = float(x.min()), float(x.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(
            f"images must lie in [0, 1]; those of a minibatch go from {low:g} to {high:g}. Divide "
            f"pixels of 0 to 255 by 255; a normalisation belongs inside the model"
        )


def as_number(value: object) -> float:
    """What `validate` returned, as a number: of a `Share` its value."""
    try:
        return float(getattr(value, "value", value))  # type: ignore[arg-type] # else TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"validate must return one number, the larger, the better; got {type(value).__name__}"
        ) from error


class Places(Sampler):
    """Places of the images of each minibatch that are this process's.

    One permutation an epoch, cut into minibatches, and each of these dealt out to the processes
    in turn: two processes see together what one sees alone. A last minibatch that leaves a
    process without an image is left out.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1):
        draw = torch.Generator().manual_seed(seed)
        # one number first, as DataLoader takes it: the order is that of a plain shuffled loader
        torch.empty((), dtype=torch.int64).random_(generator=draw)
        parts = torch.randperm(size, generator=draw).split(batch_size)
        self.sizes = [len(part) for part in parts if len(part) >= processes]
        self.parts = [part[rank::processes] for part in parts if len(part) >= processes]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self.parts)

    def skip(self, count: int) -> None:
        """Leave out the first minibatches."""
        self.sizes, self.parts = self.sizes[count:], self.parts[count:]


class _Indexed(Dataset):
    """A data set that also says which image it gives."""

    def __init__(self, data: MapDataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        return *self.data[index], index


def minibatches(data: MapDataset, places: Places, workers: int) -> Iterator[tuple]:
    """(images, labels, places) of each minibatch."""
    if isinstance(data, TensorDataset):  # one indexing a minibatch, not one an image
        for part in places.parts:
            yield *data[part], part
    else:
        yield from DataLoader(_Indexed(data), batch_sampler=places, num_workers=workers)


def reduced(fabric: Fabric, part: Tensor, how: str = "sum") -> Tensor:
    """The sum, or the mean, of what all processes have."""
    return cast(Tensor, fabric.all_reduce(part, reduce_op=how))
