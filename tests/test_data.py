"""Data sets that ship with libraries, folders of images, and how both are indexed."""

import numpy as np
import pytest
import torch
from PIL import Image

from wotlab import data

RANDOM = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    for label, mode, size in (
        ("cat", "RGB", (9, 7)),
        ("cat", "L", (6, 12)),
        ("dog", "RGBA", (8, 8)),
    ):
        (tmp_path / label).mkdir(exist_ok=True)
        channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
        pixels = RANDOM.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / f"{mode}.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


def test_image_folder(folder):
    images = data.load(f"folder:{folder}", size=6)
    x, y = images.tensors()
    assert x.shape == (3, 3, 6, 6) and y.tolist() == [0, 0, 1] and images.classes == ["cat", "dog"]
    assert x.min() >= 0 and x.max() <= 1
    with pytest.raises(ValueError, match="size="):
        data.load(f"folder:{folder}").tensors()
    exact = np.array(Image.open(folder / "dog" / "RGBA.png").convert("RGB")) / 255
    assert np.allclose(data.load(f"folder:{folder}")[2][0].permute(1, 2, 0), exact, atol=1e-6)
    (folder / "dog" / "a.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"a\.jpg is no image"):
        data.load(f"folder:{folder}", size=6).tensors()


RAMP = np.linspace(0, 255, 12 * 16).astype(np.uint8).reshape(12, 16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], 2)
KINDS = {  # an image, its format, what it is in RGB
    "grey.jpg": (Image.fromarray(RAMP), np.stack([RAMP] * 3, 2)),
    "colour.jpg": (Image.fromarray(COLOURS), COLOURS),
    "cmyk.jpg": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "rgba.png": (Image.fromarray(np.dstack([COLOURS, RAMP])), COLOURS),
    "palette.png": (Image.fromarray(RAMP).quantize(256), np.stack([RAMP] * 3, 2)),
    "16-bit.png": (Image.fromarray(RAMP.astype(np.uint16) * 256 + 7), np.stack([RAMP] * 3, 2)),
    "bits.png": (Image.fromarray(RAMP > 99), np.stack([255 * (RAMP > 99)] * 3, 2)),
}


@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_become_rgb(tmp_path, name):
    image, expected = KINDS[name]
    (tmp_path / "class").mkdir()
    options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    image.save(tmp_path / "class" / name, **options)
    x, _ = data.load(f"folder:{tmp_path}").tensors()
    assert x.shape == (1, 3, 12, 16)
    worst = 0.04 if name.endswith("jpg") else 1e-6
    assert (x[0].permute(1, 2, 0) - torch.from_numpy(expected) / 255).abs().max() < worst


@pytest.mark.parametrize("size", [(1, 40), (33, 2), (7, 7), (1, 1)])
def test_images_of_odd_sizes_are_resized(tmp_path, size):
    (tmp_path / "class").mkdir()
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "class" / "a.png")
    x, _ = data.load(f"folder:{tmp_path}", size=8).tensors()
    assert x.shape == (1, 3, 8, 8) and torch.equal(x.amax((2, 3)), torch.tensor([[1.0, 0, 0]]))


BROKEN = ("empty.png", "cut.jpg", "cut.png", "other.bmp", "header.ppm", "huge.bmp")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_named(tmp_path, name):
    (tmp_path / "class").mkdir()
    path = tmp_path / "class" / name
    Image.fromarray(COLOURS).save(path)
    whole = path.read_bytes()
    broken = {
        "empty": b"", "cut": whole[: len(whole) // 2], "other": b"<html>not found</html>",
        "header": b"P6\n16 xx\n255\n" + whole[13:],
        "huge": whole[:18] + (60_000).to_bytes(4, "little") * 2 + whole[26:],
    }  # fmt: skip
    path.write_bytes(broken[path.stem])
    with pytest.raises(ValueError, match=rf"class.{name} is no image that can be read; remove it"):
        data.load(f"folder:{tmp_path}").tensors()


def test_an_empty_class_is_named(folder):
    (folder / "eel").mkdir()
    (folder / "eel" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no images: one sub-folder a class.* eel"):
        data.load(f"folder:{folder}")


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.load(f"folder:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="no images"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        data.load(f"folder:{tmp_path}")


def test_what_ships_with_libraries():
    train, test = (data.load("digits", split) for split in ("train", "test"))
    assert repr(test) == "Images(digits: 297 images of 10 classes)"
    assert (len(train), len(test)) == (1500, 297)
    x, y = test.tensors(slice(0, 5))
    assert x.shape == (5, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.max() == 1 and test.classes == list("0123456789")
    train, test = (data.load("mnist-5k", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4000, 1000) and train[0][0].shape == (1, 28, 28)
    for part in (train, test):
        x, y = part.tensors()
        assert torch.equal(y, torch.arange(len(y)) % 10) and x.max() == 1
        assert torch.equal(x * 255, (x * 255).round()) and 0.12 < x.mean() < 0.14
    photographs = data.load("photographs")
    assert photographs[1][0].shape == (3, 427, 640) and photographs.classes == ["china", "flower"]
    scenes, small = data.load("scenes"), data.load("scenes", size=32)
    assert scenes.tensors()[0].shape == (4, 3, 256, 256) and scenes.classes[1] == "cat"
    wide, narrow = (each.tensors()[0].mean((2, 3)) for each in (scenes, small))
    assert small.tensors()[0].shape == (4, 3, 32, 32) and (wide - narrow).abs().max() < 0.01


LISTS = [torch.tensor([3, 0, 4]), np.array([3, 0, 4]), [3, 0, 4], (3, 0, 4), [np.int64(3), 0, -293],
         [torch.tensor(3), 0, 4]]  # fmt: skip


@pytest.mark.parametrize("which", LISTS)
def test_any_kind_of_list_selects(which):
    digits = data.load("digits")
    x, y = digits.tensors()
    images, labels = digits.tensors(which)
    assert torch.equal(images, x[[3, 0, 4]]) and torch.equal(labels, y[[3, 0, 4]])


def test_slices_and_single_places_keep_the_batch(folder):
    digits = data.load("digits")
    x, y = digits.tensors()
    for which in (torch.tensor([3]), np.array([3]), [3], slice(3, 4), torch.arange(297) == 3):
        images, labels = digits.tensors(which)
        assert torch.equal(images, x[3:4]) and torch.equal(labels, y[3:4])
    assert torch.equal(digits.tensors(slice(5, None, -2))[0], x[[5, 3, 1]])
    assert torch.equal(digits.tensors(torch.arange(5))[0], x[:5])
    assert digits.tensors([])[0].shape == (0, 1, 8, 8)
    images = data.load(f"folder:{folder}", size=6)
    for which in (torch.tensor([2]), np.array([2]), [2], slice(2, 3), slice(-1, None)):
        assert images.tensors(which)[0].shape == (1, 3, 6, 6)
        assert images.tensors(which)[1].tolist() == [1]
    with pytest.raises(ValueError, match="which must name an image"):
        images.tensors([])
    for bad in (3, [0.5], torch.zeros(2, 2).long(), torch.ones(5).bool(), [297], [-298]):
        with pytest.raises(ValueError, match="which must"):
            digits.tensors(bad)


def test_what_is_done_to_tensors_leaves_the_data_set_alone():
    digits = data.load("digits")
    for which in (slice(None), slice(0, 3), [0, 1]):
        images, labels = digits.tensors(which)
        before = images[0].clone(), int(labels[0])
        images.zero_(), labels.fill_(9), digits[0][0].zero_()
        images, labels = digits.tensors(which)
        assert torch.equal(images[0], before[0]) and int(labels[0]) == before[1]


@pytest.mark.parametrize("name", ["digits", "photographs", "mnist", "cifar10", "svhn"])
def test_size_is_refused_where_there_is_one(name, tmp_path):
    with pytest.raises(ValueError, match=f"size must be left out for {name}"):
        data.load(name, "test", tmp_path, size=32)


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(ValueError, match="name must"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="split must"):
        data.load("digits", "val")
    assert data.load("scenes", size=np.int64(8)).tensors()[0].shape == (4, 3, 8, 8)
    for size in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="size must be a positive integer"):
            data.load("scenes", size=size)
    for name in ("photographs", "scenes"):
        with pytest.raises(ValueError, match='"test" only'):
            data.load(name, "train")
