"""Data sets in their real formats, on small files made here; and every way they can be wrong."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from wotlab import data
from wotlab.data import _published as published

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_is_unpickled_and_nothing_downloaded(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)

    def no_network(url, *arguments):
        raise URLError("no route to host")

    monkeypatch.setattr(published, "download_url", no_network)
    monkeypatch.setattr(published, "DEBIAN", Path("nowhere"))  # whatever is installed here


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    pixels, labels = RANDOM.integers(0, 256, (7, 28, 28)), RANDOM.integers(0, 10, 7)
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte"] = idx(pixels)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    packed = {name + ".gz": gzip.compress(content) for name, content in files.items()}
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    listed = [(name, md5(content)) for name, content in packed.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", listed)
    monkeypatch.setattr(published, "UNPACKED", {name: md5(c) for name, c in files.items()})
    return tmp_path, pixels, labels, files


@pytest.mark.parametrize("layout", ["packed", "packed anew", "unpacked"])
def test_mnist(mnist, layout):
    root, pixels, labels, files = mnist
    for name, content in files.items():
        path = root / "MNIST" / "raw" / name
        if layout == "packed anew":
            path.with_name(name + ".gz").write_bytes(gzip.compress(content, 1, mtime=7))
        if layout == "unpacked":
            path.write_bytes(content)
            path.with_name(name + ".gz").unlink()
    for split in ("train", "test"):
        images = data.load("mnist", split, root)
        x, y = images.tensors()
        assert x.dtype == torch.float32 and x.shape == (7, 1, 28, 28)
        assert np.allclose(x[:, 0].numpy(), pixels / 255) and y.tolist() == labels.tolist()
        assert images.classes[3] == "three" and len(images) == 7
        assert torch.equal(images[2][0], x[2]) and images[2][1] == labels[2]
        assert torch.equal(images.tensors([4, 1])[0], x[[4, 1]])
        assert torch.equal(images.tensors(slice(2, 5))[1], y[2:5])


def test_root_is_taken_from_the_environment(mnist, monkeypatch):
    monkeypatch.setenv("WOTLAB_DATA", str(mnist[0]))
    assert len(data.load("mnist")) == 7


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_damaged_mnist_is_named(mnist, packed, damage):
    root, _, _, files = mnist
    name = "t10k-images-idx3-ubyte"
    path = root / "MNIST" / "raw" / (name + ".gz" if packed else name)
    content = path.read_bytes() if packed else files[name]
    path.write_bytes(content[:-9] if damage == "truncated" else content[:-1] + b"?")
    with pytest.raises(ValueError, match=rf"{path.name}.* delete it"):
        data.load("mnist", "test", root)


def test_truncated_idx_without_a_known_checksum_is_named(mnist):
    root, _, _, files = mnist
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="truncated"):
        data.load("fashion-mnist", "test", root)


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_idx_files_cut_anywhere_are_named(mnist, name):
    root, _, _, files = mnist
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    other = "t10k-labels-idx1-ubyte" if "images" in name else "t10k-images-idx3-ubyte"
    for bad in [files[name][:k] for k in (0, 3, 4, 6, 7, 9, 14)] + [files[other], b"?" * 99]:
        (folder / name).write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{name} is truncated or no idx file; delete"):
            data.load("fashion-mnist", "test", root)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.arange(6), "hold 7 images and 6 labels"), (np.full(7, 200), "labels from 200 to 200"),
     (np.full(7, 10), "from 10 to 10 for the 10 classes"), (np.arange(8), "7 images and 8 labels")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(mnist, labels, says):
    root, _, _, files = mnist
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(idx(labels) if "labels" in file else content)
    with pytest.raises(ValueError, match=rf"t10k-labels-idx1-ubyte .*{says}"):
        data.load("fashion-mnist", "test", root)


def test_fashion_mnist_has_its_own_folder_and_classes(mnist):
    root, pixels, labels, files = mnist
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    images = data.load("fashion-mnist", "test", root)
    x, y = images.tensors()
    assert np.allclose(x[:, 0].numpy(), pixels / 255) and y.tolist() == labels.tolist()
    assert images.classes[0] == "T-shirt/top" and images.classes[9] == "Ankle boot"


def test_fashion_mnist_is_read_from_debians_package(mnist, monkeypatch):
    """Its archives are packed anew: the content is checked. What lies in root goes first."""
    root, pixels, labels, files = mnist
    package = root / "usr"
    package.mkdir()
    monkeypatch.setattr(published, "DEBIAN", package)
    monkeypatch.setattr(published, "DEBIAN_UNPACKED", {n: md5(c) for n, c in files.items()})
    for name, content in files.items():
        (package / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=7))
    x, y = data.load("fashion-mnist", "train", root, download=False).tensors()
    assert np.allclose(x[:, 0].numpy(), pixels / 255) and y.tolist() == labels.tolist()
    with pytest.raises(FileNotFoundError):  # another data set with files of the same names
        data.load("mnist", "test", root / "nowhere", download=False)
    for bad in (
        b"",
        b"?" * 50,
        gzip.compress(b"other"),
        (package / f"{name}.gz").read_bytes()[:-9],
    ):
        (package / "t10k-images-idx3-ubyte.gz").write_bytes(bad)
        with pytest.raises(
            ValueError, match=r"t10k-images.*package dataset-fashion-mnist; install"
        ):
            data.load("fashion-mnist", "test", root)
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert len(data.load("fashion-mnist", "test", root)) == 7


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny ImageNet with two classes, as its archive."""
    files = {"wnids.txt": b"n02\nn01\n", "words.txt": b"n01\tgoldfish\nn02\tbee\nn03\tcar\n"}

    def picture(level):
        file = io.BytesIO()
        Image.new("L" if level == 60 else "RGB", (64, 64), level).save(file, "PNG")
        return file.getvalue()

    for k, name in enumerate(("n01", "n02")):
        for j in range(3):
            files[f"train/{name}/images/{name}_{j}.JPEG"] = picture(100 * k + j)
        files[f"train/{name}/{name}_boxes.txt"] = b""
    rows = [("val_0.JPEG", "n02", 50), ("val_1.JPEG", "n01", 60), ("val_2.JPEG", "n02", 70)]
    for name, _, level in rows:
        files[f"val/images/{name}"] = picture(level)
    files["val/val_annotations.txt"] = "".join(
        f"{name}\t{label}\t0\t0\t62\t62\n" for name, label, _ in rows
    ).encode()
    archive = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in files.items():
            packed.writestr(f"tiny-imagenet-200/{name}", content)
    monkeypatch.setitem(published.TINY, "md5", md5(archive.read_bytes()))
    return archive


def test_tiny_imagenet(tiny):
    train, test = (data.load("tiny-imagenet", s, tiny.parent) for s in ("train", "test"))
    assert train.classes == test.classes == ["goldfish", "bee"]
    x, y = train.tensors()
    assert x.shape == (6, 3, 64, 64) and y.tolist() == [0, 0, 0, 1, 1, 1]
    x, y = test.tensors()  # the list's labels, not the folder's; the grey one as RGB
    assert y.tolist() == [1, 0, 1]
    assert torch.allclose(x[1], torch.full((3, 64, 64), 60 / 255))
    assert data.load("tiny-imagenet", "test", tiny.parent, size=32)[0][0].shape == (3, 32, 32)
    tiny.unlink()  # the folder is enough
    assert len(data.load("tiny-imagenet", "train", tiny.parent, download=False)) == 6
    for listed in ("words.txt", "wnids.txt"):  # as copies that are passed on have it
        path = tiny.parent / "tiny-imagenet-200" / listed
        whole = path.read_text()
        path.unlink()
        again = data.load("tiny-imagenet", "test", tiny.parent)
        assert again.tensors()[1].tolist() == [1, 0, 1]
        names = ["n01", "n02"] if listed == "words.txt" else ["goldfish", "bee"]
        assert again.classes == data.load("tiny-imagenet", "train", tiny.parent).classes == names
        path.write_text(whole)
    rows = tiny.parent / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    rows.write_text(rows.read_text().replace("n01", "n77"))
    with pytest.raises(ValueError, match=r"val_annotations.txt gives .* 'n77'"):
        data.load("tiny-imagenet", "test", tiny.parent)


def test_a_damaged_tiny_imagenet_leaves_nothing_behind(tiny, monkeypatch):
    tiny.write_bytes(tiny.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        data.load("tiny-imagenet", "train", tiny.parent)
    monkeypatch.setitem(published.TINY, "md5", md5(tiny.read_bytes()))  # or it is no archive at all
    with pytest.raises(zipfile.BadZipFile):
        data.load("tiny-imagenet", "train", tiny.parent)
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]


@pytest.fixture
def ten(tmp_path):
    """ImageNet's ten classes, an eleventh in their midst; sizes vary, the colour is the class."""
    for split, each in (("train", 2), ("val", 1)):
        for k, name in enumerate([*data.IMAGENET10, "n09300000"]):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for j in range(each):
                picture = Image.new("RGB", (40 + 3 * k, 50 - 2 * k + j), (20 * k, 0, 200))
                picture.save(folder / f"{name}_{j}.JPEG")
    return tmp_path


def test_ten_classes_of_imagenet(ten):
    train, test = (data.load("imagenet10", s, ten, size=32) for s in ("train", "test"))
    assert len(train) == 20 and len(test) == 10 and test.name == "imagenet10"
    assert train.classes == test.classes == list(data.IMAGENET10.values())
    assert train.classes[0] == "barn" and train.classes[9] == "coral fungus"
    x, y = train.tensors()
    assert x.shape == (20, 3, 32, 32) and y.tolist() == [k // 2 for k in range(20)]
    assert torch.allclose(x[:, 0].mean((1, 2)), y * 20 / 255, atol=0.02)
    assert test[9][1] == 9 and test.tensors([3, 0])[1].tolist() == [3, 0]
    whole = data.load("imagenet10", "test", ten)
    assert whole[1][0].shape == (3, 48, 43)
    with pytest.raises(ValueError, match="size="):
        whole.tensors()


def test_imagenet_that_is_not_there_says_where_and_what(ten):
    with pytest.raises(FileNotFoundError, match=r"nowhere.imagenet.val .*n02793495.*WOTLAB_DATA"):
        data.load("imagenet10", "test", ten / "nowhere")
    folder = ten / "imagenet" / "train" / "n09256479"
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no images.*n09256479"):
        data.load("imagenet10", "train", ten)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"train lacks .* n09256479; put"):
        data.load("imagenet10", "train", ten)
    assert len(data.load("imagenet10", "test", ten)) == 10


SHIPPED = ("digits", "mnist-5k", "photographs", "scenes")
FETCHED = [n for n in data.NAMES if n not in (*SHIPPED, "imagenet10")]


@pytest.mark.parametrize("name", FETCHED)
def test_missing_files_say_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.*root=.*WOTLAB_DATA.*download=True"):
        data.load(name, "test", tmp_path, download=False)
    with pytest.raises(ConnectionError, match=r"missing.*no route to host.*network.*WOTLAB_DATA"):
        data.load(name, "test", tmp_path)


def test_half_a_download_never_counts(mnist, monkeypatch):
    root = mnist[0]
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.unlink()

    def interrupted(url, folder, name, checksum):
        (Path(folder) / name).write_bytes(whole[:50])
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(published, "download_url", interrupted)
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        data.load("mnist", "test", root)
    assert not path.exists() and not list(path.parent.glob("*.part"))

    def complete(url, folder, name, checksum):
        assert checksum == md5(whole)
        (Path(folder) / name).write_bytes(whole)

    monkeypatch.setattr(published, "download_url", complete)
    assert len(data.load("mnist", "test", root)) == 7
    assert path.read_bytes() == whole


def cifar(name: str, count: int, root: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    about = published.CIFAR[name]
    counts = {"train": count * len(about.train), "test": count}
    monkeypatch.setattr(published, "CIFAR_IMAGES", counts)
    pixels = RANDOM.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = RANDOM.integers(0, 10, (count, about.labels), dtype=np.uint8)
    classes = [f"class{k}" for k in range(10 if name == "cifar10" else 100)]
    records = np.concatenate([labels, pixels.reshape(count, -1)], 1).tobytes()
    archive = root / about.url.split("/")[-1]
    with tarfile.open(archive, "w:gz") as tar:
        files = {file: records for file in about.train + about.test}
        files[about.names] = ("\n".join(classes) + "\n\n").encode()
        for file, content in files.items():
            info = tarfile.TarInfo(f"{about.folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    monkeypatch.setitem(published.CIFAR, name, about._replace(md5=md5(archive.read_bytes())))
    return pixels, labels[:, -1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar(name, unpacked, tmp_path, monkeypatch):
    pixels, labels = cifar(name, 4, tmp_path, monkeypatch)
    (archive,) = tmp_path.iterdir()
    if unpacked:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        archive.unlink()
    images = data.load(name, "test", tmp_path)
    x, y = images.tensors()
    assert np.allclose(x.numpy(), pixels / 255) and y.tolist() == labels.tolist()
    assert images.classes[9] == "class9" and len(images.classes) == (
        10 if name == "cifar10" else 100
    )
    assert len(data.load(name, "train", tmp_path)) == 4 * len(published.CIFAR[name].train)
    if unpacked:
        path = tmp_path / published.CIFAR[name].folder / published.CIFAR[name].test[0]
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=r"hold .* bytes where"):
            data.load(name, "test", tmp_path)
        path.write_bytes(bytes([200] * len(whole)))
        with pytest.raises(ValueError, match=rf"{path.name} of {name} hold labels from 200 to 200"):
            data.load(name, "test", tmp_path)
    else:
        archive.write_bytes(archive.read_bytes()[:-5])
        with pytest.raises(ValueError, match=r"tar\.gz is truncated or not the published"):
            data.load(name, "test", tmp_path)


def test_svhn(tmp_path, monkeypatch):
    pixels = RANDOM.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    labels = np.array([[1], [10], [3], [9], [10]], dtype=np.uint8)

    def write(labels):
        savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": labels})
        checksum = md5((tmp_path / "test_32x32.mat").read_bytes())
        entry = [*datasets.SVHN.split_list["test"][:2], checksum]
        monkeypatch.setitem(datasets.SVHN.split_list, "test", entry)

    for bad in (labels[:4], labels + 1):
        write(bad)
        with pytest.raises(ValueError, match=r"test_32x32\.mat hold"):
            data.load("svhn", "test", tmp_path)
    write(labels)
    x, y = data.load("svhn", "test", tmp_path).tensors()
    assert y.tolist() == [1, 0, 3, 9, 0]
    assert np.allclose(x.permute(2, 3, 1, 0).numpy(), pixels / 255)
