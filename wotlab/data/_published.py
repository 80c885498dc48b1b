"""Data sets as their publishers lay them out: idx files, CIFAR's and SVHN's, ImageNet's folders."""

import gzip
import hashlib
import math
import os
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from wotlab._base.files import replacing
from wotlab.data._images import ImageFolder, Images

PATIENCE = 30  # seconds without an answer before a download is given up

IDX = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
UNPACKED = {  # md5 of MNIST's files without gzip; torchvision lists those of the archives
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
#: Where Debian's package dataset-fashion-mnist puts its archives. They were packed anew, so that
#: it is their content which is checked.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_UNPACKED = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


class Cifar(NamedTuple):
    """A binary archive: those that torchvision reads are pickled, and unpickling runs code."""

    url: str
    md5: str
    folder: str
    train: list[str]
    test: list[str]
    names: str
    labels: int  # bytes before the pixels of an image; the last one is its class


KRIZ = "https://www.cs.toronto.edu/~kriz/"
CIFAR = {
    "cifar10": Cifar(
        KRIZ + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
        [f"data_batch_{k}.bin" for k in range(1, 6)], ["test_batch.bin"], "batches.meta.txt", 1,
    ),
    "cifar100": Cifar(  # labels: coarse, then fine
        KRIZ + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
        ["train.bin"], ["test.bin"], "fine_label_names.txt", 2,
    ),
}  # fmt: skip
CIFAR_IMAGES = {"train": 50_000, "test": 10_000}
TINY = {
    "url": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "md5": "90528d7ca1a48142e341f4ef8d21d0de",
    "folder": "tiny-imagenet-200",
}
#: Folder and name of the classes that Tan et al. keep; `wotlab.models.IMAGENET10` has their
#: outputs.
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


def idx(name: str, split: str, root: Path, download: bool) -> Images:
    """MNIST and its like: big-endian header, then bytes."""
    kind = IDX[name]
    folder = root / kind.__name__ / "raw"
    content = UNPACKED if name == "mnist" else DEBIAN_UNPACKED
    parts, paths = [], []
    for file, md5 in kind.resources:
        if not file.startswith("train" if split == "train" else "t10k"):
            continue
        plain = folder / file.removesuffix(".gz")
        if plain.exists():
            raw, wanted = plain.read_bytes(), content.get(plain.name)
            if name == "mnist" and wanted and hashlib.md5(raw).hexdigest() != wanted:
                raise ValueError(
                    f"{plain} is not the published file (md5); delete it and load again"
                )
        elif name == "fashion-mnist" and not (folder / file).exists() and DEBIAN.is_dir():
            plain = DEBIAN / file
            raw = _of_debian(plain)
        else:
            urls = [mirror + file for mirror in kind.mirrors]
            packed = _fetch(folder / file, urls, md5, download, also=content.get(plain.name))
            raw = _gunzip(packed)
        parts.append(_parse_idx(plain, raw, 1 if "labels" in file else 3))
        paths.append(str(plain))
    pixels, labels = parts
    classes = [c.split(" - ")[-1] for c in kind.classes]
    return Images(name, pixels[:, None], labels, classes, " and ".join(paths))


def _of_debian(path: Path) -> bytes:
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError):
        raw = b""
    if hashlib.md5(raw).hexdigest() != DEBIAN_UNPACKED[path.stem]:
        raise ValueError(
            f"{path} is not the file of Debian's package dataset-fashion-mnist; install that again"
        )
    return raw


def _parse_idx(path: Path, raw: bytes, dims: int) -> Tensor:
    begin = 4 + 4 * dims
    shape = np.frombuffer(raw[4:begin], ">i4").tolist() if len(raw) >= begin else None
    # bytes 0 0 8 (unsigned bytes) and the number of dimensions
    if not shape or raw[:4] != bytes([0, 0, 8, dims]) or len(raw) != begin + math.prod(shape):
        raise ValueError(f"{path} is truncated or no idx file; delete it and load again")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=begin).copy()).view(shape)


def cifar(name: str, split: str, root: Path, download: bool) -> Images:
    about = CIFAR[name]
    files = about.train if split == "train" else about.test
    needed, folder = [*files, about.names], root / about.folder
    if all((folder / file).exists() for file in needed):
        read = {file: (folder / file).read_bytes() for file in needed}
    else:
        archive = _fetch(root / about.url.split("/")[-1], [about.url], about.md5, download)
        with tarfile.open(archive) as tar:  # members are read, never extracted
            wanted = {f"{about.folder}/{file}": file for file in needed}
            packed = ((wanted[m.name], tar.extractfile(m)) for m in tar if m.name in wanted)
            read = {file: member.read() for file, member in packed if member}
    raw, record = b"".join(read[file] for file in files), about.labels + 3072
    where = f"{', '.join(files)} of {name}"
    if len(raw) != CIFAR_IMAGES[split] * record:
        raise ValueError(
            f"{where} hold {len(raw)} bytes where {CIFAR_IMAGES[split] * record} are due; delete "
            f"them and load again"
        )
    rows = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(-1, record)
    pixels, labels = rows[:, about.labels :].reshape(-1, 3, 32, 32), rows[:, about.labels - 1]
    return Images(name, pixels, labels, read[about.names].decode().split(), where)


def svhn(split: str, root: Path, download: bool) -> Images:
    url, file, md5 = datasets.SVHN.split_list[split]
    path = _fetch(root / file, [url], md5, download)
    read = datasets.SVHN(root, split)
    pixels, labels = torch.from_numpy(read.data), torch.from_numpy(read.labels)
    return Images("svhn", pixels, labels, list("0123456789"), path)


def tiny_imagenet(split: str, root: Path, download: bool, size: int | None) -> ImageFolder:
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
    listed = folder / "words.txt"
    rows = listed.read_text().splitlines() if listed.exists() else []
    words = dict(row.split("\t") for row in rows if row)
    images.name, images.classes = "tiny-imagenet", [words.get(c, c) for c in images.classes]
    return images


def imagenet10(split: str, root: Path, size: int | None) -> ImageFolder:
    folder = root / "imagenet" / ("train" if split == "train" else "val")
    if missing := [name for name in IMAGENET10 if not (folder / name).is_dir()]:
        raise FileNotFoundError(
            f"{folder} lacks the ImageNet folders {', '.join(missing)}; put them there with their "
            f"images (from image-net.org, with an account), or name another root= or WOTLAB_DATA"
        )
    images = ImageFolder(folder, size, Ten)
    images.name, images.classes = "imagenet10", list(IMAGENET10.values())
    return images


def annotated(folder: Path) -> list[list[str]]:
    """Rows of a file, a class and a box; a class that is missing is empty."""
    rows = (folder / "val_annotations.txt").read_text().splitlines()
    return [[*row.split("\t"), ""] for row in rows if row]


class Listed(datasets.ImageFolder):
    """Tiny ImageNet's validation images: all in one folder, their classes in a list."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        listed = Path(directory).parent / "wnids.txt"
        if listed.exists():
            names = sorted(listed.read_text().split())
        else:  # images that were passed on without the list: every class is among them
            names = sorted({label for _, label, *_ in annotated(Path(directory))})
        return names, {name: k for k, name in enumerate(names)}

    @staticmethod
    def make_dataset(
        directory: str, class_to_idx: dict[str, int], *rest: object, **more: object
    ) -> list:
        cells = annotated(Path(directory))
        if strange := {label for _, label, *_ in cells} - set(class_to_idx):
            raise ValueError(
                f"{Path(directory) / 'val_annotations.txt'} gives images a class that wnids.txt "
                f"does not list: {min(strange)!r}; delete the folder and load again"
            )
        images = Path(directory) / "images"
        return [(str(images / file), class_to_idx[name]) for file, name, *box in cells]


class Ten(datasets.ImageFolder):
    """The ten class folders of IMAGENET10, whatever lies beside them."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return list(IMAGENET10), dict(zip(IMAGENET10, range(10), strict=True))


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
    failed = []
    for url in urls:
        try:
            with replacing(path) as part, _patience():
                download_url(url, path.parent, part.name, md5)
            return path
        except (OSError, RuntimeError) as error:  # no network, no space, another checksum
            failed.append(f"{url}: {error}")
    raise ConnectionError(
        f"{path} is missing and could not be downloaded ({'; '.join(failed)}). Check the network, "
        f"or put the file there, or name the folder that has it by root= or WOTLAB_DATA"
    )


@contextmanager
def _patience() -> Iterator[None]:
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
