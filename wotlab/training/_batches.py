"""Minibatches: the same for any number of processes, and from any of them on; their cost."""

from collections.abc import Iterator
from typing import Self, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from wotlab._base.dataset import MapDataset


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


class Gradients:
    """Counts the images whose loss is propagated back through the network, whoever asks for it."""

    def __init__(self, model: nn.Module):
        self.model, self.images = model, 0

    def __enter__(self) -> Self:
        self.hook = self.model.register_forward_hook(self.watch)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def watch(self, model: nn.Module, given: tuple, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(self.count)

    def count(self, gradient: Tensor) -> None:
        self.images += len(gradient)
