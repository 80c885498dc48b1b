"""What `load` returns: images in memory, or read from disk when they are asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from wotlab._base import checks

Which = slice | Sequence[int] | np.ndarray | Tensor


def indices(which: Which, count: int) -> Tensor:
    """Places among `count` images, integers (B,): of a slice, of indices, or of booleans."""
    if isinstance(which, slice):
        return torch.tensor(range(count)[which], dtype=torch.long)
    places = torch.as_tensor(which)
    if places.dtype == torch.bool and places.shape == (count,):
        return places.nonzero()[:, 0]
    if places.ndim != 1 or (len(places) and not checks.are_integers(places)):
        raise ValueError(
            f"which must be a slice, a list of indices or {count} booleans; got "
            f"{places.dtype} of shape {tuple(places.shape)}"
        )
    if bool(((places < -count) | (places >= count)).any()):
        raise ValueError(f"which must hold indices of {count} images; got {places.tolist()}")
    return places.long().cpu() % max(count, 1)


def unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.clone()


class Images(Dataset):
    """Images held in memory: `data[i]` is (image float32 (C, H, W) in [0, 1], label).

    Parameters
    ----------
    name : str
    pixels : Tensor (N, C, H, W)
        Bytes from 0 to 255, or floats in [0, 1].
    labels : Tensor (N,), integers
    classes : sequence of str
        Names of the classes, by label.
    where : object, optional
        What a message names as their source; the name by default.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data
    >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> labels, classes = torch.tensor([0, 1]), ["black", "white"]
    >>> images = data.Images("two", pixels, labels, classes)
    >>> images, images[1]
    (Images(two: 2 images of 2 classes), (tensor([[[1.]]]), 1))
    """

    def __init__(
        self, name: str, pixels: Tensor, labels: Tensor, classes: Sequence[str], where: object = ""
    ):
        where = where or name  # the files that a message should name
        if len(pixels) != len(labels):
            raise ValueError(
                f"{where} hold {len(pixels)} images and {len(labels)} labels; delete them and load "
                f"again"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(
                f"{where} hold labels from {int(labels.min())} to {int(labels.max())} for the "
                f"{len(classes)} classes of {name}; delete them and load again"
            )
        self.name, self.classes = name, list(classes)
        self._pixels, self._labels = pixels, labels.long()

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        return f"Images({self.name}: {len(self):,} images of {len(self.classes)} classes)"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return unit(self._pixels[index]), int(self._labels[index])

    def tensors(self, which: Which = slice(None)) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a slice, or of indices in any kind of list.

        Copies: what is done to them leaves the data set as it is.
        """
        which = indices(which, len(self))
        return unit(self._pixels[which]), self._labels[which]


def rgb(path: str) -> Image.Image:
    """An image of any mode in RGB; of 16 bits the upper eight, which PIL would take for white."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


class ImageFolder(Dataset):
    """Images read from disk when asked for, one sub-folder a class, all of them as RGB.

    Grey, palette and CMYK images are converted, transparency is left out, and of 16 bits the upper
    eight are kept. Files that are no images by their names are passed over; one that is none inside
    raises a ValueError with its name where it is asked for.

    Parameters
    ----------
    path : Path
    size : int or None
        Pixels of the shorter side after resizing; the centre is cut out. None: as they are.
    kind : class
        torchvision's ImageFolder, or one that looks elsewhere for classes and images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from wotlab import data
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for k, label in enumerate(("cat", "dog")):
    ...         (Path(name) / label).mkdir()
    ...         image = Image.new("L", (20, 10), 200 * k)
    ...         image.save(Path(name) / label / "one.png")
    ...     x, y = data.ImageFolder(Path(name), size=8).tensors()
    >>> x.shape, y
    (torch.Size([2, 3, 8, 8]), tensor([0, 1]))
    """

    def __init__(self, path: Path, size: int | None, kind: Callable = datasets.ImageFolder):
        resize = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
        try:
            look = transforms.Compose([*resize, transforms.ToTensor()])
            self._files = kind(path, look, loader=rgb)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} holds no images: one sub-folder a class is needed ({error})"
            ) from error
        self.name, self.classes = path.name, self._files.classes

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"ImageFolder({self.name}: {len(self):,} images of {len(self.classes)} classes)"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self._files[index]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self._files.samples[index][0]} is no image that can be read; remove it or fetch "
                f"it again ({error})"
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
