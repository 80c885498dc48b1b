"""Networks by name: their sizes, their weights on disk, what they refuse."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet101_Weights

import wotlab
from wotlab import models

PARAMETERS = {
    "digits-small": 320 + 9248 + 32_832 + 650,
    "wong-mnist": 272 + 8224 + 156_900 + 1010,
    "cw-mnist": 320 + 9248 + 18_496 + 36_928 + 205_000 + 40_200 + 2010,
    "arch-a": 1664 + 102_464 + 64 * 400 * 128 + 128 + 1290,
    "arch-b": 320 + 9248 + 18_496 + 36_928 + 313_700 + 1010,
    "cifar-small": 864 + 9216 + 18_432 + 36_864 + 73_728 + 147_456 + 2 * 2 * 224 + 1290,
    "resnet18": 11_173_962,
    "wrn-34-10": 46_160_474,
    "resnet101": 44_549_160,
    "inception-v3": 23_834_568,
}
COLOUR = {"cifar-small": 32, "resnet18": 32, "wrn-34-10": 32, "resnet101": 64, "inception-v3": 75}
SIZES = {"digits-small": 8, **COLOUR}


@pytest.mark.parametrize("name", models.names())
def test_number_of_parameters(name):
    with torch.device("meta"):
        network = models.build(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [n for n in models.names() if n != "wrn-34-10"])
def test_logits_and_gradients(name):
    network = models.build(name, num_classes=7, seed=0)
    network.eval()
    channels = 3 if name in COLOUR else 1
    size = SIZES.get(name, 28)
    x = torch.rand(2, channels, size, size).requires_grad_()
    logits = network(x)
    assert logits.shape == (2, 7)
    (slope,) = torch.autograd.grad(logits.square().sum(), x)
    assert slope.isfinite().all() and slope.abs().sum() > 0


def test_inception_sees_what_its_weights_were_trained_on_and_gives_logits_in_train_mode():
    network = models.build("inception-v3", seed=0)
    seen = []
    network[1].Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x = torch.rand(2, 3, 75, 75)
    network.train()
    assert network(x).shape == (2, 1000)
    assert torch.allclose(seen[0], (x - 0.5) / 0.5, atol=1e-5)


def test_cifar_small_halves_three_times():
    network = models.build("cifar-small", seed=0).eval()
    x, shapes = torch.rand(2, 3, 32, 32), []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 16, 16), (64, 8, 8), (128, 4, 4)] and x.shape == (2, 10)
    grey = models.build("cifar-small", in_channels=1, num_classes=3, seed=0)
    assert grey(torch.rand(2, 1, 28, 28)).shape == (2, 3)


def test_the_ten_classes_are_where_torchvision_has_them():
    categories = ResNet101_Weights.DEFAULT.meta["categories"]
    assert [categories[k] for k in models.IMAGENET10] == list(wotlab.data.IMAGENET10.values())
    assert len(categories) == 1000 and all(
        categories.count(name) == 1 for name in wotlab.data.IMAGENET10.values()
    )


def test_a_network_among_some_of_its_classes():
    network = models.build("digits-small", seed=0).eval()
    few = models.Among(network, (7, 0, 3))
    x = torch.rand(4, 1, 8, 8).requires_grad_()
    assert torch.equal(few(x), network(x)[:, [7, 0, 3]])
    (slope,) = torch.autograd.grad(few(x).logsumexp(1).sum(), x)
    assert slope.abs().sum() > 0
    assert not few.training and models.Among(models.build("digits-small"), [0]).training
    ten = models.Among(nn.Flatten(), models.IMAGENET10)
    assert ten(torch.arange(1000.0)[None]).tolist() == [list(models.IMAGENET10)]


@pytest.mark.parametrize("classes", [(), (1, 1), (-1, 2), (0.5, 1), (False, True), ("cat",)])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(ValueError, match="classes must be distinct"):
        models.Among(nn.Flatten(), classes)


def test_a_class_that_the_network_lacks_is_named():
    few = models.Among(models.build("digits-small", seed=0), (2, 10))
    with pytest.raises(ValueError, match=r"below 10, .* got 10"):
        few(torch.rand(1, 1, 8, 8))


def test_seed_is_reproducible_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    one, two, other = (models.build("wong-mnist", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_normalisation_lives_inside():
    plain = models.build("wong-mnist", seed=0).eval()
    inside = models.build("wong-mnist", seed=0, mean=[0.1], std=[0.3]).eval()
    x = torch.rand(2, 1, 28, 28)
    assert torch.allclose(inside(x), plain((x - 0.1) / 0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("lenet", {}, "name must"),
        ("wong-mnist", {"num_classes": 0}, "num_classes"),
        ("wong-mnist", {"in_channels": 1.5}, "in_channels"),
        ("wong-mnist", {"weights": "default"}, "weights must"),
        ("wong-mnist", {"mean": [0.5]}, "mean and std"),
        ("wong-mnist", {"mean": [0.5], "std": [0.0]}, "mean and std"),
        ("resnet101", {"in_channels": 1}, "in_channels"),
        ("resnet101", {"weights": "best"}, "weights must"),
        ("resnet101", {"weights": "default", "num_classes": 10}, "num_classes"),
    ],
)
def test_bad_input_is_named(name, options, named):
    with pytest.raises(ValueError, match=named):
        models.build(name, **options)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ConnectionError, match=r"resnet101.*checkpoints folder"):
        models.build("resnet101", weights="default")


@pytest.mark.parametrize("layout", ["plain", "net", "state_dict", "list", "parallel"])
def test_published_layouts_load_bit_for_bit(tmp_path, layout):
    network = models.build("wong-mnist", seed=1)
    state = network.state_dict()
    content = {
        "plain": state,
        "net": {"net": state},
        "state_dict": {"state_dict": state, "epoch": 3},
        "list": {"state_dict": [state]},
        "parallel": {"module." + k: v for k, v in state.items()},
    }[layout]
    torch.save(content, tmp_path / "weights.pth")
    other = models.load_weights(models.build("wong-mnist", seed=2), tmp_path / "weights.pth")
    assert all(torch.equal(state[k], v) for k, v in other.state_dict().items())


def test_safetensors_round_trip(tmp_path):
    network = models.build("resnet18", seed=1)
    models.save_weights(network, tmp_path / "w.safetensors")
    other = models.load_weights(models.build("resnet18", seed=2), tmp_path / "w.safetensors")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in other.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


class Surprise:
    def __reduce__(self):
        return (os.system, ("false",))


def test_weights_that_are_none_are_refused(tmp_path):
    network = models.build("wong-mnist", seed=0)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        models.load_weights(network, tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    torch.save({"net": Surprise()}, tmp_path / "code.pth")
    for name in ("page.pth", "page.safetensors", "code.pth"):
        with pytest.raises(ValueError, match=name):
            models.load_weights(network, tmp_path / name)
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"missing \['0.bias'.*another shape \['0.weight'\]"):
        models.load_weights(network, tmp_path / "other.safetensors")


PUBLISHED = {
    "wong2019_mnist_vanilla.pth": 9889,
    "wong2019_mnist_adv_training.pth": 9728,
    "hu2020_mnist_adv_training.pth": 9277,
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_networks_have_their_accuracy(file):
    folder = Path(os.environ.get("WOTLAB_CHECKPOINTS", "nowhere"))
    if not (folder / file).exists() or "WOTLAB_DATA" not in os.environ:
        pytest.skip("WOTLAB_CHECKPOINTS and WOTLAB_DATA name no folders with networks and MNIST")
    network = models.load_weights(models.build("wong-mnist"), folder / file)
    data = wotlab.data.load("mnist", "test", download=False)
    assert wotlab.evaluate.accuracy(network, data).count == PUBLISHED[file]
