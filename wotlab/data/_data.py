"""Data sets by name, as images in [0, 1]. Nothing that was downloaded is ever unpickled."""

import gzip
import hashlib
import math
import os
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from skimage import data as scenes
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from torchvision.datasets.utils import download_url

from wotlab._base import checks
from wotlab.data._folders import IMAGENET10, ImageFolder, Listed, Ten, Which, indices

PATIENCE = 30  # seconds without an answer before a download is given up
DIGITS_TRAIN = 1500  # of scikit-learn's 1,797 digits, in their order (by writer), the first ones

IDX = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
UNPACKED = {  # md5 of MNIST's files without gzip; torchvision lists those of the archives
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# The binary archives: those that torchvision reads are pickled, and unpickling runs code.
CIFAR = {
    "cifar10": {
        "url": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "md5": "c32a1d4ab5d03f1284b67883e8d87530",
        "folder": "cifar-10-batches-bin",
        "train": [f"data_batch_{k}.bin" for k in range(1, 6)],
        "test": ["test_batch.bin"],
        "names": "batches.meta.txt",
        "labels": 1,
    },
    "cifar100": {
        "url": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "md5": "03b5dce01913d631647c71ecec9e9cb8",
        "folder": "cifar-100-binary",
        "train": ["train.bin"],
        "test": ["test.bin"],
        "names": "fine_label_names.txt",
        "labels": 2,  # coarse, then fine
    },
}
CIFAR_IMAGES = {"train": 50_000, "test": 10_000}
TINY = {
    "url": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "md5": "90528d7ca1a48142e341f4ef8d21d0de",
    "folder": "tiny-imagenet-200",
}
SCENES = ("astronaut", "cat", "coffee", "rocket")  # of scikit-image, those that ship with it
SIZED = ("scenes", "tiny-imagenet", "imagenet10")  # may be resized, as image folders may
NAMES = ("digits", "photographs", "scenes", *IDX, *CIFAR, "svhn", "tiny-imagenet", "imagenet10")


class Images(Dataset):
    """Images held in memory: `data[i]` is (image float32 (C, H, W) in [0, 1], label)."""

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        where: object = None,
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

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return _unit(self._pixels[index]), int(self._labels[index])

    def tensors(self, which: Which = slice(None)) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a slice, or of indices in any kind of list.

        Copies: what is done to them leaves the data set as it is.
        """
        which = indices(which, len(self))
        return _unit(self._pixels[which]), self._labels[which]


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
        (scikit-learn's two of 427x640, split "test" only) ship with scikit-learn, "scenes" (four
        photographs, split "test" only, the central square of each at `size` pixels, 256 by
        default) with scikit-image. "mnist",
        "fashion-mnist", "cifar10", "cifar100", "svhn" lie under `root` in torchvision's layout
        (CIFAR: the binary archive, or its folder). "tiny-imagenet" (200 classes, 64x64) is the
        folder tiny-imagenet-200 below `root`; its published validation images are the split
        "test". "imagenet10" is ten classes of ImageNet, from barn to coral fungus (Tan et al.'s
        "tiny ImageNet"), read from imagenet/train and imagenet/val (the split "test") below
        `root`, one sub-folder a class by its WordNet name; it is never downloaded. "folder:PATH"
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
    Dataset of (image float32 (C, H, W) in [0, 1], label), with `classes`, and with
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
    """
    if size is not None:
        checks.count("size", size)
        size = int(size)
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
    if name == "photographs":
        return _photographs()
    if name == "scenes":
        return _scenes(size or 256)
    if name in IDX:
        return _idx(name, split, root, download)
    if name in CIFAR:
        return _cifar(name, split, root, download)
    if name == "tiny-imagenet":
        return _tiny(split, root, download, size)
    if name == "imagenet10":
        return _imagenet10(split, root, size)
    return _svhn(split, root, download)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.clone()


def _digits(split: str) -> Images:
    bunch = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    pixels = torch.from_numpy(bunch.images[part]).float()[:, None] / 16
    return Images("digits", pixels, torch.from_numpy(bunch.target[part]), list("0123456789"))


def _photographs() -> Images:
    bunch = load_sample_images()
    pixels = torch.from_numpy(np.stack(bunch.images)).permute(0, 3, 1, 2)
    return Images("photographs", pixels, torch.arange(2), ["china", "flower"])


def _scenes(size: int) -> Images:
    pixels = [
        torch.from_numpy(np.ascontiguousarray(getattr(scenes, name)())).permute(2, 0, 1)
        for name in SCENES
    ]
    resize = transforms.Resize(size)
    cut = [transforms.functional.center_crop(resize(image), [size, size]) for image in pixels]
    return Images("scenes", torch.stack(cut), torch.arange(len(cut)), SCENES)


def _folder(path: Path, split: str, size: int | None) -> ImageFolder:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; check the name after 'folder:'")
    return ImageFolder(path / split if (path / split).is_dir() else path, size)


def _idx(name: str, split: str, root: Path, download: bool) -> Images:
    """MNIST and its like: big-endian header, then bytes."""
    kind = IDX[name]
    folder = root / kind.__name__ / "raw"
    parts, paths = [], []
    for file, md5 in kind.resources:
        if not file.startswith("train" if split == "train" else "t10k"):
            continue
        plain = folder / file.removesuffix(".gz")
        if plain.exists():
            raw = plain.read_bytes()
            _check_unpacked(name, plain, raw)
        else:
            urls = [mirror + file for mirror in kind.mirrors]
            packed = _fetch(folder / file, urls, md5, download, also=UNPACKED.get(plain.name))
            raw = _gunzip(packed)
        parts.append(_parse_idx(plain, raw, 1 if "labels" in file else 3))
        paths.append(str(plain))
    pixels, labels = parts
    classes = [c.split(" - ")[-1] for c in kind.classes]
    return Images(name, pixels[:, None], labels, classes, " and ".join(paths))


def _parse_idx(path: Path, raw: bytes, dims: int) -> Tensor:
    begin = 4 + 4 * dims
    shape = np.frombuffer(raw[4:begin], ">i4").tolist() if len(raw) >= begin else None
    # bytes 0 0 8 (unsigned bytes) and the number of dimensions
    if not shape or raw[:4] != bytes([0, 0, 8, dims]) or len(raw) != begin + math.prod(shape):
        raise ValueError(f"{path} is truncated or no idx file; delete it and load again")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=begin).copy()).view(shape)


def _check_unpacked(name: str, path: Path, raw: bytes) -> None:
    wanted = UNPACKED.get(path.name) if name == "mnist" else None
    if wanted and hashlib.md5(raw).hexdigest() != wanted:
        raise ValueError(f"{path} is not the published file (md5); delete it and load again")


def _cifar(name: str, split: str, root: Path, download: bool) -> Images:
    about = CIFAR[name]
    folder, files = root / about["folder"], about[split]
    if all((folder / file).exists() for file in [*files, about["names"]]):
        read = {file: (folder / file).read_bytes() for file in [*files, about["names"]]}
    else:
        archive = _fetch(root / about["url"].split("/")[-1], [about["url"]], about["md5"], download)
        with tarfile.open(archive) as tar:  # members are read, never extracted
            read = {
                file: tar.extractfile(f"{about['folder']}/{file}").read()
                for file in [*files, about["names"]]
            }
    raw, record = b"".join(read[file] for file in files), about["labels"] + 3072
    if len(raw) != CIFAR_IMAGES[split] * record:
        raise ValueError(
            f"{', '.join(files)} of {name} hold {len(raw)} bytes where "
            f"{CIFAR_IMAGES[split] * record} are due; delete them and load again"
        )
    rows = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(-1, record)
    classes = read[about["names"]].decode().split()
    return Images(
        name,
        rows[:, about["labels"] :].reshape(-1, 3, 32, 32),
        rows[:, about["labels"] - 1],
        classes,
        f"{', '.join(files)} of {name}",
    )


def _svhn(split: str, root: Path, download: bool) -> Images:
    url, file, md5 = datasets.SVHN.split_list[split]
    path = _fetch(root / file, [url], md5, download)
    content = loadmat(path)
    pixels = torch.from_numpy(np.transpose(content["X"], (3, 2, 0, 1)).copy())
    labels = torch.from_numpy(content["y"].astype(np.int64).ravel())
    labels[labels == 10] = 0  # as the publisher writes it
    return Images("svhn", pixels, labels, list("0123456789"), path)


def _tiny(split: str, root: Path, download: bool, size: int | None) -> ImageFolder:
    folder = root / TINY["folder"]
    if not folder.is_dir():
        archive = _fetch(root / f"{folder.name}.zip", [TINY["url"]], TINY["md5"], download)
        with tempfile.TemporaryDirectory(dir=root) as part, zipfile.ZipFile(archive) as packed:
            packed.extractall(part)
            os.replace(Path(part) / folder.name, folder)  # whole or not at all
    if split == "train":
        images = ImageFolder(folder / "train", size)
    else:
        images = ImageFolder(folder / "val", size, Listed)
    rows = (folder / "words.txt").read_text().splitlines()
    words = dict(row.split("\t") for row in rows if row)
    images.name, images.classes = "tiny-imagenet", [words[c] for c in images.classes]
    return images


def _imagenet10(split: str, root: Path, size: int | None) -> ImageFolder:
    folder = root / "imagenet" / ("train" if split == "train" else "val")
    if missing := [name for name in IMAGENET10 if not (folder / name).is_dir()]:
        raise FileNotFoundError(
            f"{folder} lacks the ImageNet folders {', '.join(missing)}; put them there with their "
            f"images (from image-net.org, with an account), or name another root= or WOTLAB_DATA"
        )
    images = ImageFolder(folder, size, Ten)
    images.name, images.classes = "imagenet10", list(IMAGENET10.values())
    return images


def _fetch(path: Path, urls: list[str], md5: str, download: bool, also: str | None = None) -> Path:
    """The file at `path` with the right checksum, downloaded if it is not there.

    `also` is the md5 of the unpacked content: the same data compressed anew is as good.
    """
    if path.exists():
        if hashlib.md5(path.read_bytes()).hexdigest() == md5:
            return path
        if also and hashlib.md5(_gunzip(path)).hexdigest() == also:
            return path
        raise ValueError(
            f"{path} is truncated or not the published file (md5 should be {md5}); "
            f"delete it and load again"
        )
    if not download:
        raise FileNotFoundError(
            f"{path} is missing; put it there, name another folder by root= or WOTLAB_DATA, "
            f"or allow download=True"
        )
    part, failed = path.with_name(path.name + ".part"), []
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _patience():
                download_url(url, path.parent, part.name, md5)
            os.replace(part, path)
            return path
        except (OSError, RuntimeError) as error:  # no network, no space, another checksum
            part.unlink(missing_ok=True)
            failed.append(f"{url}: {error}")
    raise ConnectionError(
        f"{path} is missing and could not be downloaded ({'; '.join(failed)}). Check the network, "
        f"or put the file there, or name the folder that has it by root= or WOTLAB_DATA"
    )


@contextmanager
def _patience():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is truncated or no gzip; delete it and load again") from error
