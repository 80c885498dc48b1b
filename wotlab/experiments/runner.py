"""What all experiments share: where things lie, what is done already, how a share is recorded."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from wotlab import data, evaluate, models, results

NETWORKS = {  # released by Wong et al. and Hu et al., and our own
    "standard": "wong2019_mnist_vanilla.pth",
    "wong2019": "wong2019_mnist_adv_training.pth",
    "hu2020": "hu2020_mnist_adv_training.pth",
    "ours": "wasserstein_at_mnist.safetensors",
}
TITLES = {
    "digits": "8x8 digits,",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "JPEG copy of CIFAR-10",  # of older records; a folder of that name
    "cifar100": "CIFAR-100",
    "imagenet10": "ten classes of ImageNet,",
    "svhn": "SVHN",
}


class Parser(argparse.ArgumentParser):
    """Whatever is wrong is said in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}\n")


class Refused(Exception):
    """What a call asks for cannot be had."""


@dataclass
class Log:
    """What a call has come to: the cases that there are, that were asked for, that were measured.

    And the networks that were left out, because their weights are missing.
    """

    cases: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Run:
    """The settings of one call."""

    data: Path
    checkpoints: Path
    out: Path
    images: int
    device: torch.device
    anew: bool
    dataset: str = "mnist"
    size: int | None = None  # pixels, for folders of images of any size
    epochs: int | None = None  # of trainings on all images, in place of an experiment's own
    only: str | None = None  # the cases to measure: one, or a pattern such as "fast-*"
    log: Log = field(default_factory=Log, compare=False)

    def first(self, count: int | None) -> "Run":
        """The same on no more test images than that."""
        return self if count is None else replace(self, images=min(self.images, count))

    def load(self, split: str):
        """The data set; a folder below `data` for what is no name of `wotlab.data`."""
        if self.dataset in data.NAMES:
            return data.load(self.dataset, split, self.data, download=False, size=self.size)
        return data.load(f"folder:{self.data / self.dataset}", split)

    def test_images(self) -> tuple[Tensor, Tensor]:
        """The first test images, or some of each class."""
        images = self.load("test")
        if len(images) < self.images:  # the records would speak of images that are not there
            raise Refused(
                f"there are {len(images)} test images of {TITLES[self.dataset]}; "
                f"--images asks for {self.images}"
            )
        x, y = self.some(images, self.images)
        return x.to(self.device), y.to(self.device)

    def some(self, images, count: int | None) -> tuple[Tensor, Tensor]:
        """The first `count` images (all: None); of a folder, which is sorted by class, a spread."""
        if count is None or not self.sorted:
            return images.tensors(slice(0, count))
        count = min(count, len(images))
        return images.tensors([k * len(images) // count for k in range(count)])

    def training_images(self, count: int | None) -> tuple[Tensor, Tensor, int]:
        """The same of the training images, on the CPU, and the number of classes."""
        return _training_images(self, count)

    @property
    def sorted(self) -> bool:
        """Whether the images of one class stand together."""
        return self.dataset not in data.NAMES or self.dataset == "imagenet10"

    @property
    def samples(self) -> str:
        if not self.sorted:
            return f"{TITLES[self.dataset]} test images 0 to {self.images - 1}"
        return f"{TITLES[self.dataset]}, {self.images} test images evenly spaced"

    def network(self, name: str) -> nn.Module:
        """A released network, or ours."""
        model = models.build("wong-mnist")
        models.load_weights(model, self.checkpoints / NETWORKS[name])
        return model.eval().to(self.device)

    def networks(self) -> list[str]:
        """Those whose weights are there."""
        return [k for k, file in NETWORKS.items() if (self.checkpoints / file).exists()]

    def recorded(self, what: str, case: str) -> results.Record | None:
        """This number on the same images, if it is there."""
        records = results.read(what, self.out)
        same = (r for r in records if r.case == case and r.samples == self.samples)
        return next(same, None)

    def due(self, what: str, case: str) -> bool:
        """Whether this number is asked for, and not there yet."""
        self.log.cases.add(case)
        if self.only is not None and not fnmatchcase(case, self.only):
            return False
        self.log.chosen.add(case)
        return self.anew or self.recorded(what, case) is None

    def number(self, what: str, case: str, unit: str, measure: Callable[[], float], **more) -> None:
        """Measure and record what is due."""
        if not self.due(what, case):
            return
        start = time.perf_counter()
        value = measure()
        details = more.pop("details", {})
        interval = None
        if isinstance(value, tuple):
            value, details = value[0], {**details, **value[1]}
        if isinstance(value, evaluate.Share):
            interval = (100 * value.low, 100 * value.high)
            details = {**details, "count": value.count, "total": value.total}
            value = 100 * value.value
        record = results.Record(
            what=what, case=case, value=value, unit=unit, samples=self.samples,
            seed=more.pop("seed", None), command=command(),
            seconds=time.perf_counter() - start, interval=interval, details=details, **more,
        )  # fmt: skip
        results.write(record, self.out)
        self.log.measured.add(case)
        print(f"{what} {case}: {value:.4g} {unit}", flush=True)


@lru_cache(maxsize=1)  # the rows of a table train on the same images
def _training_images(run: Run, count: int | None) -> tuple[Tensor, Tensor, int]:
    images = run.load("train")
    return *run.some(images, count), len(images.classes)


def command() -> str:
    """How to run this again, without the paths of this machine."""
    words, hide = [], False
    for word in sys.argv[1:]:
        words.append("FOLDER" if hide else word)
        hide = word in ("--data", "--checkpoints", "--out")
    return "python -m wotlab.experiments " + shlex.join(words)
