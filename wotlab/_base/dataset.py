"""Data sets in the forms in which a user hands them in."""

from collections.abc import Sized
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset


class MapDataset(Dataset, Sized):
    """A data set with a length, and an index for each of its pairs (image, label)."""


def as_dataset(data: Dataset | tuple[Tensor, Tensor]) -> MapDataset:
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
    data = cast(MapDataset, data)
    if len(data) == 0:
        raise ValueError("data holds no images")
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise ValueError("data must give pairs (image, label); this one gives something else")
    return data
