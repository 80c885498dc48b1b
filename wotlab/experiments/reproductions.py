"""Every number that the five papers print, beside ours: what was repeated, and how far we are.

The experiments' own cells say which numbers they measure: they are gone through without measuring
anything, and their records are looked up.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wotlab import results
from wotlab.experiments import dro, got, hu, subramanyam
from wotlab.experiments.__main__ import EXPERIMENTS, OF_EPOCHS
from wotlab.experiments.runner import Cell, Dry
from wotlab.results import Keys, Record

Entry = dict[str, str]  # a row of results/printed, and its paper
Known = dict[tuple[str, str], list[Record]]  # records by experiment and name
FULL, REDUCED, MISSING, NOTHING = "full", "reduced", "not run", "nothing to measure"
STATES = FULL, REDUCED, MISSING, NOTHING
SHARES = "success", "clean-at", "dimming-x-30-misclassified"  # metrics beside accuracies
POINTS, SHARE = 2.0, 0.05  # how near is repeated: in points of percentages, as a share of all else

TEST = {  # images that the papers' numbers are of
    "mnist": 10_000, "fashion-mnist": 10_000, "cifar10": 10_000, "cifar100": 10_000,
    "svhn": 26_032, "imagenet": 50_000, "imagenet10": 500, "tiny-imagenet": 10_000,
}  # fmt: skip
TRAIN = {"mnist": 60_000, "fashion-mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
TRAINED: dict[str, tuple[str, Keys]] = {  # records that tell how networks of ours were trained
    "subramanyam": ("subramanyam-defense", {"data": "mnist", "attack": "clean", "whole": False}),
    "linf": ("linf-training", {"training": "pgd-40", "attack": "clean"}),
}

# Why an entry has no number of ours: the first whose words fit it; each is the entry's own or one
# of several. What none fits an experiment would measure, and has not yet.
SETTING: Entry = {"paper": "subramanyam", "table": "7"}
REASONS: tuple[tuple[str, Entry], ...] = (
    ("A time on the paper's GPU, which we do not have.",
     {"metric": "minutes hours minutes-ours-v100 minutes-hu-v100"}),
    ("A defense with another network (ARN) or with generated images (Proxy), which we do not have.",
     {"training": "arn proxy"}),
    ("The package has this defense, but no experiment trains it for this table.",
     {"training": "lgbat awp ates"}),
    ("SVHN could not be had.", {"data": "svhn"}),
    ("CIFAR-100 could not be had.", {"data": "cifar100"}),
    ("ImageNet's test images were not at hand. The same attacks on CIFAR-10 are in `iwd-table-1`, "
     "on photographs and another network in `iwd-photographs`.",
     {"paper": "iwd", "table": "1"}),
    ("Photographs of the ten ImageNet classes to train on were not at hand. The same attacks and "
     "defenses on CIFAR-10 are in `iwd-table-2` and `iwd-table-3`.", {"paper": "iwd"}),
    ("Accuracy on the training's own adversarial images, which no experiment records.",
     {"attack": "train-adv"}),
    ("ResNet-18 needs many hours of a GPU.", {"network": "resnet18"}),
    ("WideResNet-34-10 needs many hours of a GPU.", {"network": "wrn-34-10"}),
    ("A claim of the text. The chapter shows the effect on other images, without a record.",
     {"paper": "hu", "table": "text"}),
    ("We did not train ResNet-50 on Tiny ImageNet.", {"data": "tiny-imagenet"}),
    ("A distance by the papers' solvers whose unit is not said. Exact W, in pixels, is in "
     "`subramanyam-table-6`.", {"metric": "w-ours w-wong w-hu"}),
    ("The same numbers stand in table 1 for other networks. Hu's tables compare these attacks.",
     {"paper": "subramanyam", "table": "2", "attack": "wong hu"}),
    ("We trained no network of this defense on Fashion-MNIST.",
     {"paper": "subramanyam", "data": "fashion-mnist", "network": "subramanyam"}),
    ("His network, which no experiment tries on shifted and turned images.",
     {"paper": "subramanyam", "table": "5 6", "network": "subramanyam"}),
    ("No experiment does this on Fashion-MNIST.",
     {"paper": "subramanyam", "table": "1 5", "data": "fashion-mnist"}),
    ("No experiment does this on Fashion-MNIST.",
     {"paper": "subramanyam", "data": "fashion-mnist", "attack": "subramanyam"}),
)  # fmt: skip


def cells(name: str, epochs: int | None = None) -> Iterator[Cell]:
    """All that an experiment would measure, on a CPU and on a GPU, whatever it needs."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "imagenet").mkdir()  # so that whatever needs more is gone through, too
        (folder / hu.RADII).touch()
        for kind in ("cpu", "cuda"):
            device = torch.device(kind)
            yield from EXPERIMENTS[name](
                Dry(folder, folder, folder, 1000, device, False, epochs=epochs)
            )


@dataclass(frozen=True)
class Reading:
    """A record that answers an entry, and how.

    `other`: what it measures in another way than the entry says, such as by another attack.
    `less`: what was reduced.
    """

    record: Record
    value: float
    interval: tuple[float, float] | None
    other: str
    less: tuple[str, ...]
    near: bool

    @property
    def size(self) -> tuple[int, int]:
        """Epochs of the training, and test images."""
        return training(self.record).get("epochs", 0), images(self.record)

    @property
    def state(self) -> str:
        return REDUCED if self.less or self.other else FULL


@dataclass(frozen=True)
class Row:
    """One entry of a paper's table, and ours: `readings`, the paper's own way first.

    Of trainings of several lengths the longest counts; of several readings that the paper's text
    allows the first is the nearest to what it prints. `why` there is none, and by which `command`
    there would be one.
    """

    entry: Entry
    state: str
    readings: tuple[Reading, ...] = ()
    why: str = ""
    command: str = ""

    @property
    def near(self) -> bool:
        """Whether ours repeats what is printed."""
        return bool(self.readings) and self.readings[0].near


def entries(paper: str) -> list[Entry]:
    """All entries of a paper's tables, also those without a number."""
    text = resources.files("wotlab.records").joinpath("printed", f"{paper}.csv").read_text()
    return [{"paper": paper} | row for row in csv.DictReader(text.splitlines())]


def question(entry: Entry) -> tuple[str, ...]:
    """What tells an entry from others: a number that is printed in two tables is one."""
    return tuple(v for k, v in entry.items() if k not in ("table", "certain", "note"))


@cache
def measured() -> dict[tuple[str, ...], dict[tuple[str, str], tuple[str, Cell]]]:
    """Experiments and their cells by the entries that they answer."""
    found: dict = defaultdict(dict)
    for name, epochs in product(EXPERIMENTS, (None, 1)):
        if epochs and name not in OF_EPOCHS:
            continue
        for cell in cells(name, epochs):
            keys = {key: value for key, value in cell.keys.items() if key != "epochs"}
            for entry in cell.answers:
                where = cell.what, results.name(keys)
                found[question(entry)].setdefault(where, (name, cell))
    return found


def reproductions(paper: str) -> list[Row]:
    """Every entry of a paper's tables, with the records that answer it or why there are none."""
    known: Known = defaultdict(list)
    for record in results.read():  # epochs that a call names are among the keys, not the cells'
        keys = {key: value for key, value in record.keys.items() if key != "epochs"}
        known[record.what, results.name(keys)].append(record)
    return [row_of(entry, known) for entry in entries(paper)]


def row_of(entry: Entry, known: Known) -> Row:
    if entry["value"] in "-?":
        here = {"-": "a dash", "?": "a number that our copy leaves out"}[entry["value"]]
        return Row(entry, NOTHING, why=f"The paper has {here}.")
    if fits(entry, SETTING):
        return Row(entry, NOTHING, why="A setting of an attack, and no measurement.")
    answers = measured().get(question(entry), {})
    readings = [reading(entry, one) for where in answers for one in known.get(where, ())]
    if readings:
        readings.sort(key=lambda r: (bool(r.other), *(-k for k in r.size), away(entry, r.value)))
        first = readings[0]
        apart: dict[tuple, Reading] = {}
        for each in readings:  # one of the same, and none that a longer training replaces
            if each.other or each.size == first.size:
                apart.setdefault((each.value, each.other, each.less), each)
        return Row(entry, first.state, tuple(apart.values()))
    command = ""
    if answers:
        name, cell = next(iter(answers.values()))
        gpu = " --device cuda" if cell.run.whole else ""
        command = f"python -m wotlab.experiments {name} --data FOLDER{gpu}"
    fitting = (why for why, words in REASONS if fits(entry, words))
    return Row(entry, MISSING, why=next(fitting, "Not measured yet." if answers else ""),
               command=command)  # fmt: skip


def fits(entry: Entry, words: Entry) -> bool:
    return all(entry.get(key) in several.split() for key, several in words.items())


def reading(entry: Entry, record: Record) -> Reading:
    """What a record says of an entry; one of radii, the share of images beyond its budget."""
    value, interval = record.value, record.interval
    if entry.get("budget") and "radii" in record.details:
        share = hu.standing(record.details["radii"], float(entry["budget"]), entry["data"])
        value, interval = 100 * share.value, (100 * share.low, 100 * share.high)
    own = {key: f"{v:g}" if isinstance(v, (int, float)) else v for key, v in record.keys.items()}
    if record.details.get("network") == got.SMALL:
        own.pop("network", None)  # it stands for the paper's, as `reduced` says
    other = ", ".join(f"{key} {v}" for key, v in own.items() if entry.get(key) not in (v, "", None))
    printed = float(entry["value"])
    inside = interval is not None and interval[0] <= printed <= interval[1]
    near = inside or away(entry, value) <= 1 + 1e-9
    return Reading(record, value, interval, other, tuple(reduced(entry, record)), near)


def away(entry: Entry, value: float) -> float:
    """How far a number is from the printed one: at most 1 if that repeats it.

    Two points of percentages; of all else 5 %, or what rounding the printed number may change.
    """
    printed, decimals = float(entry["value"]), len(entry["value"].partition(".")[2])
    allowed = POINTS if share(entry) else max(SHARE * printed, 0.5 * 10**-decimals)
    return abs(value - printed) / allowed


def share(entry: Entry) -> bool:
    """Whether it is a percentage."""
    return "accuracy" in entry["metric"] or entry["metric"] in SHARES


def images(record: Record) -> int:
    """How many test images a record is of."""
    if between := re.search(r"(\d+) to (\d+)$", record.samples):
        return int(between[2]) - int(between[1]) + 1
    return int(record.samples.split(" test images")[0].split()[-1])


def training(record: Record) -> dict:
    """Details of the training: in the record, or in that of a network of ours."""
    what = TRAINED.get(str(record.keys.get("network")))
    told = results.find(*what) if what else None
    return told.details if told else record.details


def epochs(entry: Entry) -> int | None:
    """How many a paper trains for, where an experiment of ours trains, too."""
    paper, table = entry["paper"], entry["table"]
    if paper == "regniez":
        return dro.TABLES[1 if table == "3" else int(table)].epochs  # the same networks
    if paper == "subramanyam" and entry["network"] == "subramanyam":
        return subramanyam.WHOLE[entry["data"]][1]
    if paper == "hu" and entry["network"] == "hu2020" and entry["data"] in hu.EPOCHS:
        return hu.EPOCHS[entry["data"]]
    return got.WHOLE.epochs if paper == "got" else None


def reduced(entry: Entry, record: Record) -> Iterator[str]:
    """What was less than in the paper."""
    seen, told, planned = images(record), training(record), epochs(entry)
    if seen < TEST[entry["data"]]:
        yield f"{seen:,} of {TEST[entry['data']]:,} test images"
    if planned and told.get("epochs", planned) < planned:
        yield f"{told['epochs']} of {planned} epochs"
    shown = told.get("training_images", TRAIN.get(entry["data"], 0))
    if shown < TRAIN.get(entry["data"], 0):
        yield f"{shown:,} of {TRAIN[entry['data']]:,} training images"
    if entry["paper"] == "regniez":
        yield "eps grows over the first half of the training"
    if entry.get("network") == "linf":
        yield "another network: ours by PGD-40"
    if told.get("network") == got.SMALL:
        yield f"another network: {got.SMALL}"
    parts = record.details.get("autoattack_parts", "standard")
    if entry.get("attack") == "autoattack" and parts != "standard":
        yield f"of AutoAttack only {' and '.join(parts)}"
