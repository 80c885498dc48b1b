"""Images that are read from disk when asked for, one sub-folder a class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms

# Folder and name of the classes that Tan et al. keep; models.IMAGENET10 has their outputs.
IMAGENET10 = {
    "n02793495": "barn",
    "n03743016": "megalith",
    "n09193705": "alp",
    "n09246464": "cliff",
    "n09256479": "coral reef",
    "n09332890": "lakeside",
    "n09428293": "seashore",
    "n09468604": "valley",
    "n09472597": "volcano",
    "n12985857": "coral fungus",
}


Which = slice | Sequence[int] | np.ndarray | Tensor


def indices(which: Which, count: int) -> Tensor:
    """Places among `count` images, integers (B,): of a slice, of indices, or of booleans."""
    if isinstance(which, slice):
        return torch.tensor(range(count)[which], dtype=torch.long)
    places = torch.as_tensor(which)
    if places.dtype == torch.bool and places.shape == (count,):
        return places.nonzero()[:, 0]
    whole = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    if places.ndim != 1 or (len(places) and not whole):
        raise ValueError(
            f"which must be a slice, a list of indices or {count} booleans; got "
            f"{places.dtype} of shape {tuple(places.shape)}"
        )
    if bool(((places < -count) | (places >= count)).any()):
        raise ValueError(f"which must hold indices of {count} images; got {places.tolist()}")
    return places.long().cpu() % max(count, 1)


class ImageFolder(Dataset):
    """Images read from disk when asked for, one sub-folder a class. Grey ones become RGB."""

    def __init__(self, path: Path, size: int | None, kind: type | None = None):
        resize = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
        try:
            look = transforms.Compose([*resize, transforms.ToTensor()])
            self._files = (kind or datasets.ImageFolder)(path, look)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} holds no images: one sub-folder a class is needed ({error})"
            ) from error
        self.name, self.classes = path.name, self._files.classes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self._files[index]
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"{self._files.samples[index][0]} is no image that can be read; remove it"
            ) from error

    def tensors(self, which: Which = slice(None)) -> tuple[Tensor, Tensor]:
        """Images (B, 3, size, size) and labels (B,) of a slice, or of indices in any list."""
        places = indices(which, len(self)).tolist()
        if not places:
            raise ValueError("which must name an image; it is empty")
        images, labels = zip(*(self[k] for k in places), strict=True)
        if len({image.shape for image in images}) > 1:
            raise ValueError("the images have several sizes; give load(..., size=pixels)")
        return torch.stack(images), torch.tensor(labels)


class Listed(datasets.ImageFolder):
    """Tiny ImageNet's validation images: all in one folder, their classes in a list."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted((Path(directory).parent / "wnids.txt").read_text().split())
        return names, {name: k for k, name in enumerate(names)}

    @staticmethod
    def make_dataset(directory: str, class_to_idx: dict[str, int], *rest, **more) -> list:
        path = Path(directory) / "val_annotations.txt"
        cells = [row.split("\t") for row in path.read_text().splitlines() if row]
        if strange := {cell[1] if len(cell) > 1 else "" for cell in cells} - set(class_to_idx):
            raise ValueError(
                f"{path} gives images a class that wnids.txt does not list: {min(strange)!r}; "
                f"delete the folder and load again"
            )
        return [
            (str(Path(directory) / "images" / file), class_to_idx[name])
            for file, name, *box in cells
        ]


class Ten(datasets.ImageFolder):
    """The ten class folders of IMAGENET10, whatever lies beside them."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return list(IMAGENET10), dict(zip(IMAGENET10, range(10), strict=True))
