"""What all experiments share: cells, the settings of a call, and what measures and records them."""

import argparse
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wotlab import data, evaluate, models, results
from wotlab.data import ImageFolder, Images
from wotlab.results import Keys

NETWORKS = {  # their files: released by Wong et al., Hu et al. and others, and our own
    "mnist": {
        "standard": "wong2019_mnist_vanilla.pth",
        "wong2019": "wong2019_mnist_adv_training.pth",
        "hu2020": "hu2020_mnist_adv_training.pth",
        "ours": "wasserstein_at_mnist.safetensors",
        "pgd-at": "fastadv_mnist_pgd.pth",  # Wong et al. (2020), l-infinity 0.3
    },
    "fashion-mnist": {"certified": "wk_fashion_mnist.pth"},  # Wong and Kolter (2018), l-infinity
    "cifar10": {  # "cnn_a" of the model zoo of alpha-beta-CROWN, l-infinity
        "adversarial": "cifar_cnn_a_adv.pth",
        "mixed": "cifar_cnn_a_mix.pth",
    },
}
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # mean and deviation that cnn_a takes
TITLES = {
    "digits": "8x8 digits,",
    "mnist": "MNIST",
    "mnist-5k": "mnist-5k",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet photographs of NIPS 2017,",
    "imagenet10": "ten classes of ImageNet,",
    "svhn": "SVHN",
}
PAPERS = {  # by their files in results/printed
    "iwd": "Tan et al.",
    "hu": "Hu et al. (2020)",
    "got": "GOT",
    "regniez": "Regniez et al. (2022)",
    "subramanyam": "Subramanyam (2022)",
}


class Parser(argparse.ArgumentParser):
    """Whatever is wrong is said in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}\n")


def has_room(folder: Path) -> bool:
    """Whether a folder is there or can be made; it is made with the first file in it."""
    whole = folder.absolute()
    there = next(each for each in (whole, *whole.parents) if each.exists())
    return there.is_dir() and (there == whole or os.access(there, os.W_OK))


class Refused(Exception):
    """What a call asks for cannot be had."""


class Missing(Exception):
    """The weights of a network, by its name, are not there."""


@lru_cache(maxsize=4)  # the two parts of two data sets: rows and columns of a table share them
def loaded(
    name: str, split: str = "test", root: Path | None = None, size: int | None = None
) -> Images | ImageFolder:
    """A data set that is at hand, read once in a call."""
    return data.load(name, split, root, download=False, size=size)


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
    only: str | None = None  # the cells to measure, by name: one, or a pattern such as "fast-*"

    @property
    def whole(self) -> bool:
        """Trainings as long as in the papers, for which a GPU is needed."""
        return self.device.type == "cuda"

    def first(self, count: int | None) -> "Run":
        """The same on no more test images than that."""
        return self if count is None else replace(self, images=min(self.images, count))

    def load(self, split: str) -> Images | ImageFolder:
        """The data set; a folder below `data` for what is no name of `wotlab.data`."""
        if self.dataset in data.NAMES:
            try:
                return loaded(self.dataset, split, self.data, self.size)
            except FileNotFoundError as error:  # behind its semicolon: what `load` could be told
                raise Refused(
                    f"{str(error).partition(';')[0]}; name another root by --data, or call "
                    f"wotlab.data.load({self.dataset!r}, {split!r}, {str(self.data)!r}), which "
                    f"fetches what can be fetched"
                ) from error
        return loaded(f"folder:{self.data / self.dataset}", split)

    @lru_cache(maxsize=2)  # noqa: B019, slow attacks see fewer images than the others
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

    def some(self, images: Images | ImageFolder, count: int | None) -> tuple[Tensor, Tensor]:
        """The first `count` images (all: None); of a folder, which is sorted by class, a spread."""
        if count is None or not self.sorted:
            return images.tensors(slice(0, count))
        count = min(count, len(images))
        return images.tensors([k * len(images) // count for k in range(count)])

    @lru_cache(maxsize=1)  # noqa: B019, the rows of a table train on the same images
    def training_images(self, count: int | None) -> tuple[Tensor, Tensor, int]:
        """The same of the training images, on the CPU, and the number of classes."""
        images = self.load("train")
        return *self.some(images, count), len(images.classes)

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
        """Wong's network with released weights, with ours, or with those of a file."""
        model = self.untrained()
        own = model.get_submodule("1" if self.dataset == "cifar10" else "")  # what was released
        models.load_weights(own, self.checkpoints / self.released.get(name, name))
        return model.eval().to(self.device)

    def untrained(self, seed: int | None = None) -> nn.Module:
        """Wong's network, for these images in [0, 1]."""
        if self.dataset != "cifar10":
            return models.build("wong-mnist", seed=seed)
        return nn.Sequential(models.Normalise(*CIFAR10), models.build("wong-cifar", seed=seed))

    @property
    def released(self) -> dict[str, str]:
        """Networks of this data set, and their files."""
        return NETWORKS.get(self.dataset, {})

    def networks(self) -> list[str]:
        """Those whose weights are there."""
        return [k for k, file in self.released.items() if (self.checkpoints / file).exists()]

    def named(self, name: str) -> tuple[nn.Module, Tensor, Tensor]:
        """A network of `networks` and the test images."""
        return self.network(name), *self.test_images()

    def shipped(self, name: str) -> tuple[nn.Module, Tensor, Tensor]:
        """A network that ships and the test images."""
        return models.load(name).to(self.device), *self.test_images()

    def recorded(self, what: str, keys: Keys) -> results.Record | None:
        """This number on the same images, if it is there."""
        found = results.find(what, keys, self.out)
        return found if found is not None and found.samples == self.samples else None

    def wants(self, name: str) -> bool:
        """Whether a cell of that name is asked for."""
        return self.only is None or fnmatchcase(name, self.only)


class Dry(Run):
    """A call in which nothing is recorded, all networks are there, and data sets are noise."""

    def recorded(self, what: str, keys: Keys) -> results.Record | None:
        return None

    def load(self, split: str) -> Images:
        noise = torch.rand(20, 1, 8, 8)
        return Images(self.dataset, noise, torch.arange(20) % 10, list("0123456789"))

    def networks(self) -> list[str]:
        return list(self.released)


@dataclass(frozen=True)
class Cell:
    """One number of an experiment.

    Attributes
    ----------
    what, keys
        As in its record.
    run : Run
        The settings, with the images that it is measured on.
    measure : function
        Takes what `given` gives; returns a number or an `evaluate.Share`, or that and details.
    given : function
        What cells share, such as a network and images; called where one of them is due, and not
        part of the seconds. Cells that share work must have the same function, and one that keeps
        what it gives (`functools.cache`): by it they know that one process measures them all.
    unit, printed, source, seed, note, details
        As in its record.
    answers : list of dict
        The papers' entries that it measures, as `answers` finds them.
    """

    what: str
    keys: Keys
    run: Run
    measure: Callable[..., Any]
    given: Callable[[], tuple] = tuple
    unit: str = "%"
    printed: float | None = None
    source: str | None = None
    seed: int | None = None
    note: str = ""
    details: dict = field(default_factory=dict)
    answers: list[dict[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return results.name(self.keys)


def answers(
    paper: str, table: int | str, keys: Keys, data: str = "mnist", metric: str = "accuracy"
) -> list[dict[str, str]]:
    """A paper's numbers that a cell with these keys measures: rows of results/printed."""
    rows = results.printed(paper, keys, table=table, data=data, metric=metric)
    return [{"paper": paper} | row for row in rows]


def printed(
    paper: str, table: int | str, keys: Keys, data: str = "mnist", metric: str = "accuracy"
) -> dict[str, Any]:
    """What a paper prints of a cell, and where, as options of `Cell`; nothing if it prints none."""
    rows = answers(paper, table, keys, data, metric)
    if not rows:
        return {}
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} printed numbers of {paper!r} have the keys {keys}; say more")
    place = table if table == "text" else f"table {table}"
    return {
        "printed": float(rows[0]["value"]), "source": f"{PAPERS[paper]}, {place}",
        "answers": rows,
    }  # fmt: skip


@dataclass
class Log:
    """What a call has come to: the cells that there are, that were asked for, that were measured.

    And the networks that were left out, because their weights are missing; how many cells were
    recorded before, and how many each group had left.
    """

    cells: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    recorded: int = 0
    due: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Step:
    """What has become of a cell: a line to say, its group, and what it took, in seconds.

    `shared` is the time of what the cell is given, `seconds` that of its own measurement; None
    where it was left out.
    """

    group: str
    line: str
    shared: float = 0.0
    seconds: float | None = None


class Groups:
    """Cells that share what they are given: a group is called by the first of them."""

    def __init__(self) -> None:
        self.names: WeakKeyDictionary[Callable, str] = WeakKeyDictionary()  # holds no network

    def of(self, cell: Cell) -> str:
        own = f"{cell.what} {cell.name}"
        return own if cell.given is tuple else self.names.setdefault(cell.given, own)


def say(step: Step) -> None:
    if step.line:
        print(step.line, flush=True)


def perform(
    run: Run,
    cells: Iterable[Cell],
    claim: Callable[[str], bool] = lambda group: True,
    tell: Callable[[Step], None] = say,
) -> Log:
    """Measure and record the cells that are asked for and not recorded yet, one by one.

    `claim` says of a group of cells whether they are measured here; `tell` hears of each cell that
    was.
    """
    log, groups = Log(), Groups()
    for cell in cells:
        group = groups.of(cell)  # of each cell, asked for or not: so every process names it alike
        log.cells.add(cell.name)
        if not run.wants(cell.name):
            continue
        log.chosen.add(cell.name)
        if not run.anew and cell.run.recorded(cell.what, cell.keys) is not None:
            log.recorded += 1
            continue
        log.due[group] += 1
        if not claim(group):
            continue
        start = time.perf_counter()
        try:
            given = cell.given()
        except Missing as error:
            line = f"{error}: no weights in the folder of checkpoints; left out"
            tell(Step(group, "" if str(error) in log.missing else line))
            log.missing.add(str(error))
            continue
        shared = time.perf_counter() - start
        made = record(cell, given)
        log.measured.add(cell.name)
        tell(Step(
            group, f"{cell.what} {cell.name}: {made.value:.4g} {cell.unit}", shared, made.seconds
        ))  # fmt: skip
    return log


def record(cell: Cell, given: tuple) -> results.Record:
    """Measure a cell, and write it down."""
    start = time.perf_counter()
    value, details, interval = cell.measure(*given), cell.details, None
    if isinstance(value, tuple):
        value, details = value[0], details | value[1]
    if isinstance(value, evaluate.Share):
        interval = (100 * value.low, 100 * value.high)
        details = details | {"count": value.count, "total": value.total}
        value = 100 * value.value
    made = results.Record(
        what=cell.what, keys=cell.keys, value=value, unit=cell.unit, samples=cell.run.samples,
        seed=cell.seed, command=command(), seconds=time.perf_counter() - start,
        interval=interval, printed=cell.printed, source=cell.source, note=cell.note,
        details=details,
    )  # fmt: skip
    results.write(made, cell.run.out)
    return made


def command() -> str:
    """How to run this again, without the paths of this machine."""
    words, hide = [], False
    for word in sys.argv[1:]:
        words.append("FOLDER" if hide else word)
        hide = word in ("--data", "--checkpoints", "--out")
    return "python -m wotlab.experiments " + shlex.join(words)
