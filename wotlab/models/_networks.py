"""The layers of the networks that `models.build` knows by name, but for torchvision's."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

LAST = torch.channels_last  # of weights: a CPU convolves so 1.3 times as fast in these networks


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


def _wong(channels: int, classes: int, side: int = 7) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * side**2, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def _cw_mnist(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 200), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes),
    ).to(memory_format=LAST)  # fmt: skip


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


def _digits_tiny(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * 64, 24), nn.ReLU(), nn.Linear(24, classes)
    )


def _cifar_small(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        for inputs in (channels, width):
            conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)]
    return nn.Sequential(*layers, *head).to(memory_format=LAST)


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
    "digits-tiny": (_digits_tiny, 1),
    "wong-mnist": (_wong, 1),
    "cw-mnist": (_cw_mnist, 1),
    "arch-a": (_arch_a, 1),
    "arch-b": (_arch_b, 1),
    "cifar-small": (_cifar_small, 3),
    "wong-cifar": (partial(_wong, side=8), 3),
    "resnet18": (_resnet18, 3),
    "wrn-34-10": (_wrn_34_10, 3),
}
