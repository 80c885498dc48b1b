"""Command line of the experiments."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from wotlab import results
from wotlab.experiments import (
    digits,
    dro,
    got,
    hu,
    iwd,
    natural,
    runner,
    strength,
    subramanyam,
    zoo,
)
from wotlab.experiments import wasserstein_at as wat
from wotlab.experiments.runner import Cell, Run

NOTHING, MNIST, WONG = "nothing", "MNIST", "MNIST, released networks"
FASHION, CIFAR = "Fashion-MNIST", "CIFAR-10"
IMAGENET = "CIFAR-10, or ImageNet and a GPU"
# By paper: what each experiment needs, and its cells.
PAPERS: dict[str, dict[str, tuple[str, Callable[[Run], Iterator[Cell]]]]] = {
    "Wong et al. (2019), Hu et al. (2020)": {
        "hu-table-1": (WONG, partial(hu.table, 1)),
        "hu-table-2": (WONG, partial(hu.table, 2)),
        "hu-table-3": (WONG, partial(hu.table, 3)),
        "hu-table-4": (WONG, partial(natural.accuracies, "hu", 4)),
        "hu-table-5": (WONG, partial(hu.table, 5)),
        "hu-table-6": (MNIST, partial(natural.distances, "hu", 6, ("w", "l2"))),
        "strength": (WONG, strength.strength),
        "wasserstein-at": (MNIST, wat.wasserstein_at),
    },
    "Subramanyam (2021)": {
        "subramanyam-defense": (MNIST, subramanyam.defense),
        "subramanyam-table-1": (WONG, subramanyam.table_1),
        "subramanyam-table-2": (WONG, partial(subramanyam.table, 2)),
        "subramanyam-table-3": (WONG, partial(subramanyam.table, 3)),
        "subramanyam-table-4": (FASHION, partial(subramanyam.table, 4)),
        "subramanyam-table-5": (WONG, partial(natural.accuracies, "subramanyam", 5)),
        "subramanyam-table-6": (
            MNIST, partial(natural.distances, "subramanyam", 6, ("procrustes", "w"))
        ),
    },
    "Tan et al., internal Wasserstein distance": {
        "iwd-attacks": (IMAGENET, iwd.attack_all),
        "iwd-beta": (IMAGENET, iwd.beta),
        "iwd-table-1": (IMAGENET, partial(iwd.success, 1)),
        "iwd-table-2": (IMAGENET, partial(iwd.success, 2)),
        "iwd-table-3": (IMAGENET, iwd.defend),
        "iwd-tau": (IMAGENET, iwd.tau),
    },
    "Regniez et al. (2022), distributional robustness": {
        "digits-chain-steps": (NOTHING, digits.chain_steps),
        "equal-gradients": (MNIST, dro.equal_gradients),
        "regniez-table-1": (MNIST, partial(dro.regniez, 1)),
        "regniez-table-2": (CIFAR, partial(dro.regniez, 2)),
        "regniez-table-4": (MNIST, partial(dro.regniez, 4)),
        "regniez-table-5": (CIFAR, partial(dro.regniez, 5)),
    },
    "GOT": {
        "digits-got-settings": (NOTHING, digits.got_settings),
        "got-over-seeds": (MNIST, got.over_seeds),
        "got-table-1": (MNIST, partial(got.table, 1)),
        "got-table-2": ("CIFAR-10, CIFAR-100, SVHN", partial(got.table, 2)),
        "got-table-3": ("CIFAR-10, CIFAR-100", partial(got.table, 3)),
        "got-table-4": (MNIST, partial(got.table, 4)),
        "got-table-5": (MNIST, partial(got.table, 5)),
        "got-table-6": (MNIST, partial(got.sweep, 6)),
        "got-table-7": ("CIFAR-10, CIFAR-100", partial(got.sweep, 7)),
        "got-table-8": ("CIFAR-10, CIFAR-100, SVHN", partial(got.sweep, 8)),
    },
}  # fmt: skip
EXPERIMENTS = {name: cells for paper in PAPERS.values() for name, (_, cells) in paper.items()}

# What --epochs is for: trainings of which a short and a long version are recorded.
OF_EPOCHS = {"iwd-beta", "iwd-table-1", "iwd-table-2", "iwd-table-3"}


class Parser(runner.Parser):
    """Its help ends with the experiments, by paper and table."""

    def format_help(self) -> str:
        spent: Counter[str] = Counter()
        for record in results.read():
            if record.command.startswith(self.prog):
                spent[shlex.split(record.command)[3]] += int(record.seconds)
        lines = ["\nexperiments, what they need, and the seconds that their records took:"]
        for paper, rows in PAPERS.items():
            lines.append(f"\n{paper}")
            for name, (needs, cells) in rows.items():
                function = cells.func if isinstance(cells, partial) else cells
                about = (function.__doc__ or "").split("\n")[0]
                took = f"{spent[name]:,} s" if name in spent else "-"
                lines += [f"  {name:21} {needs:32} {took:>9}", f"      {about}"]
        lines.append("\n  zoo                   the networks that ship; see zoo --help\n")
        return super().format_help() + "\n".join(lines)


def count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return int(text)


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        return torch.zeros(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # no such kind; built or started without it
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not at hand: {reason}") from error


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def parser() -> Parser:
    made = Parser(prog="python -m wotlab.experiments", description=__doc__)
    add = made.add_argument
    add("name", choices=sorted([*EXPERIMENTS, "zoo"]), metavar="name", help="which experiment")
    add("--data", type=folder, required=True,
        help="root of the data sets, as torchvision lays them out")  # fmt: skip
    add("--checkpoints", type=folder,
        help="folder of the networks that Wong et al. and Hu et al. published, by their file "
             "names, and of ours, which are not trained again while they lie there; "
             "./checkpoints by default")  # fmt: skip
    add("--out", type=Path, default=Path("results"), help="folder of the records")
    add("--images", type=count, default=1000, help="the first so many test images")
    add("--epochs", type=count,
        help=f"of trainings on all images ({', '.join(sorted(OF_EPOCHS))}): by default a short "
             "one of some images on a CPU, as long as in the paper on a GPU")  # fmt: skip
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--anew", action="store_true", help="measure what is recorded again")
    add("--only", metavar="CASE",
        help="measure this case alone, or those of a pattern such as 'fast-*'")  # fmt: skip
    return made


def main() -> None:
    if sys.argv[1:2] == ["zoo"]:  # it needs neither data nor networks of others
        return zoo.main(sys.argv[2:])
    words = parser()
    given = vars(words.parse_args())
    name = given.pop("name")
    if given["epochs"] and name not in OF_EPOCHS:
        words.error(f"argument --epochs: {name} does not take it")
    given["checkpoints"] = given["checkpoints"] or Path("checkpoints")
    for option in ("checkpoints", "out"):
        try:
            given[option].mkdir(parents=True, exist_ok=True)
        except OSError:
            words.error(f"argument --{option}: no folder can be made at {given[option]}")
    run = Run(**given)
    try:
        log = runner.perform(run, EXPERIMENTS[name](run))
    except (FileNotFoundError, runner.Refused) as error:  # data or weights; too many images
        words.error(f"{name} cannot go on: {error}")
    if not log.cells:
        words.error(f"{name} found nothing to do: it needs networks in {run.checkpoints}")
    if not log.chosen:
        there = ", ".join(sorted(log.cells))
        words.error(f"argument --only: no case is {run.only!r}; there are {there}")
    if log.missing and not log.measured:
        words.error(
            f"{name} found nothing to do: there are no weights of "
            f"{', '.join(sorted(log.missing))} in {run.checkpoints}"
        )
    if not log.measured:
        print(f"everything is recorded already in {run.out}; --anew measures it again")


if __name__ == "__main__":
    main()
