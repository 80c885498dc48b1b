"""The papers' networks by name. Each takes images in [0, 1] and returns logits."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models.resnet import BasicBlock, ResNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The classes of the data set "imagenet10" among ImageNet's 1,000, in its order.
IMAGENET10 = (425, 649, 970, 972, 973, 975, 978, 979, 980, 991)


class Normalise(nn.Module):
    """(x - mean) / std a channel, so that the model takes pixels in [0, 1] as they are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Among(nn.Module):
    """A classifier that knows only some of another's classes: `model(x)[:, classes]`.

    Parameters
    ----------
    model : nn.Module
        Returns logits (B, K). It is held, not copied; load its weights before.
    classes : sequence of int
        Which of the K, each once: class j here is `classes[j]` there. `IMAGENET10` makes a
        network with ImageNet's 1,000 classes one for the data set "imagenet10".

    Raises
    ------
    ValueError
        For classes that are none, repeated, negative or no integers; when called, for a class
        that the model has no logit of.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]):
        super().__init__()
        whole = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in classes)
        if not whole or not 0 < len(classes) == len(set(classes)):
            raise ValueError(
                f"classes must be distinct integers from 0 on, at least one; got {classes!r}"
            )
        self.model, self.most = model, max(classes)
        self.register_buffer("classes", torch.tensor(list(classes)), persistent=False)
        self.training = model.training  # a frozen network must not look like one in training

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if self.most >= logits.shape[1]:
            raise ValueError(
                f"classes must be below {logits.shape[1]}, the number of the model's logits; "
                f"got {self.most}"
            )
        return logits[:, self.classes]


class WideBlock(nn.Module):
    """Pre-activation residual block of Zagoruyko and Komodakis (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        skip = self.shortcut(h) if self.shortcut else x
        return skip + self.conv2(self.bn2(self.conv1(h)).relu())


def _wong_mnist(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def _cw_mnist(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 200), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes),
    )  # fmt: skip


def _arch_a(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5), nn.ReLU(), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * 20 * 20, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, classes),
    )  # fmt: skip


def _arch_b(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def _digits_small(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def _cifar_small(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        for inputs in (channels, width):
            conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)]
    return nn.Sequential(*layers, *head)


def _resnet18(channels: int, classes: int) -> nn.Module:
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)  # 32x32: no early halving
    network.maxpool = nn.Identity()
    return network


def _wrn_34_10(channels: int, classes: int) -> nn.Module:
    widths, blocks = (16, 160, 320, 640), (34 - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)]
    for group in (1, 2, 3):
        for block in range(blocks):
            inputs = widths[group - 1] if block == 0 else widths[group]
            layers.append(WideBlock(inputs, widths[group], 2 if block == 0 and group > 1 else 1))
    head = [nn.BatchNorm2d(640), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(640, classes))


# name: builder, and the channels of the images that it is made for
OWN: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "digits-small": (_digits_small, 1),
    "wong-mnist": (_wong_mnist, 1),
    "cw-mnist": (_cw_mnist, 1),
    "arch-a": (_arch_a, 1),
    "arch-b": (_arch_b, 1),
    "cifar-small": (_cifar_small, 3),
    "resnet18": (_resnet18, 3),
    "wrn-34-10": (_wrn_34_10, 3),
}
TORCHVISION = {
    "resnet101": (vision.resnet101, vision.ResNet101_Weights.DEFAULT),
    "inception-v3": (vision.inception_v3, vision.Inception_V3_Weights.DEFAULT),
}


def names() -> list[str]:
    """Names that `build` knows."""
    return [*OWN, *TORCHVISION]


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A network of the papers that takes images in [0, 1] and returns logits.

    Parameters
    ----------
    name : str
        For 28x28: "wong-mnist" (Wong et al., 2019; Hu et al., 2020), "cw-mnist" (Carlini and
        Wagner, 2017; GOT), "arch-a" and "arch-b" (Adversarial Transport; B with the strides
        that make it compose). For 32x32: "resnet18", "wrn-34-10"; "cifar-small" trains on a CPU.
        For 8x8: "digits-small". For photographs: torchvision's "resnet101" (224x224) and
        "inception-v3" (299x299).
    num_classes : int, optional
        10 by default; 1,000 for torchvision's networks.
    in_channels : int, optional
        1 for digits, 3 for colour by default; torchvision's networks take 3.
    mean, std : sequence of float, optional
        Normalisation inside the model, a value a channel; none by default, ImageNet's for
        torchvision's networks.
    weights : "default", optional
        Only for torchvision's networks: their published weights, downloaded and checked.
    seed : int, optional
        Of the initial weights; the global random state is left alone. None: the global one.

    Returns
    -------
    nn.Module
        In train mode, as PyTorch makes it. Inception's auxiliary head is left out (its output
        would be no logits of the model).

    Raises
    ------
    ValueError
        For an unknown name, channels or classes out of range, or weights where there are none.
    ConnectionError
        If weights cannot be downloaded.
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}; got {name!r}")
    for what, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{what} must be a positive integer; got {count!r}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together; got only one of them")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if name in OWN:
            if weights is not None:
                raise ValueError(f"weights must be None for {name}: none are published with it")
            builder, channels = OWN[name]
            channels = in_channels or channels
            network = builder(channels, num_classes or 10)
        else:
            channels = 3
            if in_channels not in (None, 3):
                raise ValueError(f"in_channels must be 3 for {name}; got {in_channels}")
            network = _torchvision(name, num_classes, weights)
            if name == "inception-v3":
                # Its weights want (x - 0.5) / 0.5, which it makes itself from ImageNet's
                # normalisation; so the layer before it is that of the other networks.
                network.transform_input = mean is None
            mean, std = (mean, std) if mean is not None else IMAGENET
    if mean is None:
        return network
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"mean and std must hold {channels} values, std above 0; got {mean}, {std}"
        )
    return nn.Sequential(Normalise(mean, std), network)


def _torchvision(name: str, classes: int | None, weights: str | None) -> nn.Module:
    builder, published = TORCHVISION[name]
    if weights not in (None, "default"):
        raise ValueError(f'weights must be None or "default"; got {weights!r}')
    if weights and classes not in (None, 1000):
        raise ValueError(f"num_classes must be 1000 with published weights; got {classes}")
    options = {"init_weights": True} if name == "inception-v3" else {}
    network = builder(num_classes=classes or 1000, **options)
    if weights:
        try:
            state = published.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except OSError as error:
            raise ConnectionError(
                f"the weights of {name} could not be downloaded ({error}); check the network, or "
                f"put {published.url.split('/')[-1]} into torch.hub's checkpoints folder"
            ) from error
        network.load_state_dict(state)
    if name == "inception-v3":
        network.aux_logits, network.AuxLogits = False, None
    return network


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Store a model's weights as safetensors; the file is replaced whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    try:
        save_file(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read weights into `model`, in place, and return it.

    Parameters
    ----------
    model : nn.Module
    path : path
        A .safetensors file, or one of torch.save (.pt, .pth; read without running any code)
        that holds the weights by themselves, under `net`, or under `state_dict` (there perhaps
        in a list of one, as Hu et al. published theirs).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or its weights are not those of this network; says which differ.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); fetch it again") from error
    except Exception as error:  # pickle.UnpicklingError and its like: code, or no weights at all
        raise ValueError(f"{path} holds something else than weights ({error})") from error
    for key in ("net", "state_dict"):
        if isinstance(state, dict) and key in state:
            state = state[key]
    if isinstance(state, (list, tuple)) and len(state) == 1:
        state = state[0]
    state = {key.removeprefix("module."): w for key, w in dict(state).items()}  # DataParallel's
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or shaped:
        raise ValueError(
            f"{path} holds weights of another network: missing {missing}, unexpected {unexpected}, "
            f"of another shape {sorted(shaped)}"
        )
    model.load_state_dict(state)
    return model
