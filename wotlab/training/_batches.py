"""Minibatches: the same for any number of processes, and from any of them on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset


def as_dataset(data: Dataset | tuple[Tensor, Tensor]) -> Dataset:
    """A data set of (image, label), from a pair of tensors or arrays, too; else ValueError."""
    if isinstance(data, (tuple, list)):
        if not all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in data):
            kinds = " and ".join(type(part).__name__ for part in data[:2])
            raise ValueError(f"data must be a pair of tensors or arrays, or a Dataset; got {kinds}")
        if len(data) != 2 or len(data[0]) != len(data[1]):
            raise ValueError("data must be (images, labels) of one length, or a Dataset")
        data = TensorDataset(*map(torch.as_tensor, data))
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not sized or isinstance(data, IterableDataset):
        raise ValueError(
            "data must be a map-style Dataset, with a length and an index for each image; "
            f"got {type(data).__name__}. Defenses that remember images need their places"
        )
    if len(data) == 0:
        raise ValueError("data holds no images")
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise ValueError("data must give pairs (image, label); this one gives something else")
    return data


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

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return *self.data[index], index


def minibatches(data: Dataset, places: Places, workers: int) -> Iterator[tuple]:
    """(images, labels, places) of each minibatch."""
    if isinstance(data, TensorDataset):  # one indexing a minibatch, not one an image
        for part in places.parts:
            yield *data[part], part
    else:
        yield from DataLoader(_Indexed(data), batch_sampler=places, num_workers=workers)
