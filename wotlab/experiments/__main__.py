"""Measure what the papers print, and what we claim: one record a number."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from wotlab import results
from wotlab.experiments import (
    certificates,
    colour,
    critics,
    digits,
    dro,
    got,
    hu,
    internal,
    iwd,
    jobs,
    photographs,
    runner,
    strength,
    subramanyam,
    yardstick,
    zoo,
)
from wotlab.experiments.runner import Cell, Run

NOTHING, MNIST, WONG = "nothing", "MNIST", "MNIST, released networks"
FASHION, CIFAR = "Fashion-MNIST", "CIFAR-10"
NIPS = "photographs, wotlab[imagenet]"
IMAGENET, COLOUR = "CIFAR-10, or ImageNet and a GPU", "CIFAR-10, CIFAR-100"
Rows = dict[str, tuple[str, Callable[[Run], Iterator[Cell]]]]  # what they need, and their cells


def tables(
    paper: str, needs: str, cells: Callable[[int, Run], Iterator[Cell]], *which: int
) -> Rows:
    """A paper's tables that one function measures."""
    return {f"{paper}-table-{k}": (needs, partial(cells, k)) for k in which}


PAPERS: dict[str, Rows] = {
    "Wong et al. (2019), Hu et al. (2020)": {
        **tables("hu", WONG, hu.table, 1, 2, 3, 5),
        **tables("hu", WONG, partial(hu.accuracies, "hu"), 4),
        "hu-cifar10": (CIFAR, colour.table),
        "hu-dimming": (WONG, hu.dimming),
        **tables("hu", MNIST, partial(hu.distances, "hu", ("w", "l2")), 6),
        **{what: (f"{runner.TITLES[data]}, released networks",
                  partial(strength.robust_accuracy, data))
           for data, what in strength.WHAT.items()},
        strength.RADII: (WONG, strength.radii),
        strength.EVERYBODY: (WONG, strength.union),
        strength.WIDE: (WONG, strength.windows),
        strength.PICTURES: ("CIFAR-10, released networks", strength.pictures),
        "wasserstein-at": (MNIST, strength.wasserstein_at),
    },
    "Subramanyam (2022)": {
        "subramanyam-defense": (MNIST, subramanyam.defense),
        "subramanyam-table-1": (WONG, subramanyam.table_1),
        **tables("subramanyam", WONG, subramanyam.table, 2, 3),
        **tables("subramanyam", FASHION, subramanyam.table, 4),
        "subramanyam-cifar10": (CIFAR, colour.unbalanced),
        "subramanyam-settings": (WONG, subramanyam.settings),
        "subramanyam-targeted": (WONG, subramanyam.targeted),
        **tables("subramanyam", WONG, partial(hu.accuracies, "subramanyam"), 5),
        **tables("subramanyam", MNIST,
                 partial(hu.distances, "subramanyam", ("procrustes", "w")), 6),
    },
    "Tan et al., internal Wasserstein distance": {
        "iwd-attacks": (IMAGENET, iwd.attack_all),
        "iwd-beta": (IMAGENET, iwd.beta),
        "iwd-critic": (NOTHING, critics.critics),
        "iwd-photographs": (NIPS, photographs.table),
        "iwd-pictures": (NIPS, photographs.pictures),
        "iwd-settings": (NOTHING, internal.settings),
        **tables("iwd", IMAGENET, iwd.success, 1, 2),
        "iwd-table-3": (IMAGENET, iwd.defend),
        "iwd-tau": (IMAGENET, iwd.tau),
    },
    "Regniez et al. (2022), distributional robustness": {
        "chain-sweep": (MNIST, dro.chain_sweep),
        "linf-over-seeds": (MNIST, dro.over_seeds),
        "linf-training": (MNIST, dro.linf_training),
        **tables("regniez", MNIST, dro.regniez, 1, 4),
        **tables("regniez", CIFAR, dro.regniez, 2, 5),
    },
    "All, one yardstick": {
        "smoothed-radii": (MNIST, certificates.radii),
        "smoothing-sweep": (MNIST, certificates.sweep),
        "yardstick": (MNIST, yardstick.yardstick),
        "yardstick-fashion-mnist": (FASHION, partial(yardstick.elsewhere, "fashion-mnist")),
        "yardstick-eps": ("MNIST, Fashion-MNIST", yardstick.over_eps),
        "yardstick-cifar10": (
            "CIFAR-10, released networks", partial(yardstick.elsewhere, "cifar10")
        ),
    },
    "GOT": {
        "digits-got-settings": (NOTHING, digits.got_settings),
        "got-beta": (MNIST, got.betas),
        "got-cures": (MNIST, got.cures),
        "got-over-seeds": (MNIST, got.over_seeds),
        **tables("got", MNIST, got.table, 1, 4, 5),
        **tables("got", f"{COLOUR}, SVHN", got.table, 2),
        **tables("got", COLOUR, got.table, 3),
        **tables("got", MNIST, got.sweep, 6),
        **tables("got", COLOUR, got.sweep, 7),
        **tables("got", f"{COLOUR}, SVHN", got.sweep, 8),
    },
}  # fmt: skip
EXPERIMENTS = {name: cells for paper in PAPERS.values() for name, (_, cells) in paper.items()}

ABOUT = {  # what --help says of a paper's tables that one function measures
    "hu-table-1": "Mean radii of Wong's robust network: Wong's attack, and Hu's. In hu-growing.",
    "hu-table-2": "Mean radii without a defense: from Wong's attack to Hu's. In hu-growing.",
    "hu-table-3": "Mean radii of Wong's robust network: long steps, too. In hu-growing.",
    "hu-table-4": "Accuracy on images that are shifted, turned or blurred.",
    "hu-table-5": "Mean radii of Hu's robust network: four lengths of a step. In hu-growing.",
    "hu-table-6": "Mean distances of those images, exact W and l2.",
    "hu-cifar10": "The same tables on CIFAR-10 and networks of ours. In hu-growing-cifar10, "
                  "hu-table-4-cifar10 and hu-table-6-cifar10.",
    "subramanyam-cifar10": "His first table likewise. In subramanyam-table-1-cifar10.",
    "subramanyam-table-2": "Eight usual attacks on a network without a defense.",
    "subramanyam-table-3": "Five attacks at eps 0.3, five networks; his: subramanyam-defense.",
    "subramanyam-table-4": "The eight attacks on two networks; his: subramanyam-defense.",
    "subramanyam-table-5": "Accuracy on images that are shifted or turned.",
    "subramanyam-table-6": "Mean distances of those images, Procrustes' and exact W.",
    "iwd-table-1": "What each attack breaks: no defense, free and fast training.",
    "iwd-table-2": "What each attack breaks: PGD-AT and TRADES.",
    "regniez-table-1": "The chain beside PGD-40, architecture A; table 3 has the same networks.",
    "regniez-table-2": "The chain beside PGD-40, ResNet-18.",
    "regniez-table-4": "The chain beside PGD-40, architecture B.",
    "regniez-table-5": "The chain beside PGD-40, WideResNet-34-10.",
    "got-table-1": "PGD-AT, TRADES, MART and the four variants of GOT.",
    "got-table-2": "PGD-AT, TRADES and the four variants of GOT, ResNet-18.",
    "got-table-3": "The four variants of GOT, WideResNet-34-10.",
    "got-table-4": "GOT with a middle layer as its latent. In got-table-1, beside the last layer.",
    "got-table-5": "GOT with three other costs. In got-table-1, beside the paper's cost.",
    "got-table-6": "PGD over eps on networks of table 1, as printed and with steps that reach it.",
    "got-table-7": "PGD over eps on networks of table 3, the same two ways.",
    "got-table-8": "PGD over eps on networks of table 2, the same two ways.",
    "yardstick-fashion-mnist": "The same under six threats, 200 images of Fashion-MNIST.",
    "yardstick-eps": "Transport after PGD-AT at several eps, on MNIST and on Fashion-MNIST.",
    "yardstick-cifar10": "The same under six threats, 200 images of CIFAR-10.",
    **{what: f"What attacks on the plan leave of the networks {', '.join(runner.NETWORKS[data])}."
       for data, what in strength.WHAT.items()},
}  # fmt: skip

BY_ITSELF = {n for rows in PAPERS.values() for n, (needs, _) in rows.items() if needs == NOTHING}

# What --epochs is for: trainings of which a short and a long version are recorded.
OF_EPOCHS = {"iwd-beta", "iwd-table-1", "iwd-table-2", "iwd-table-3"}
OF_EPOCHS |= {name for name in EXPERIMENTS if name.startswith(("got-", "regniez-"))}


class Parser(runner.Parser):
    """Its help ends with the experiments, by paper and table."""

    def format_help(self) -> str:
        spent: dict[str, set[float]] = {}
        for record in results.read():
            if record.command.startswith(self.prog):  # a training is in each record after it
                took = record.seconds, record.details.get("training_seconds", 0.0)
                spent.setdefault(shlex.split(record.command)[3], set()).update(took)
        lines = [
            "\nexperiments, what they need, and the minutes that those took which are recorded; a "
            "record's folder\nhas the name of its experiment, where none other is named:"
        ]
        for paper, rows in PAPERS.items():
            lines.append(f"\n{paper}")
            for name, (needs, cells) in sorted(rows.items()):
                about = ABOUT.get(name) or (cells.__doc__ or "").split("\n")[0]
                minutes = f"{math.ceil(sum(spent[name]) / 60):,} min" if name in spent else ""
                lines += [f"  {name:21} {needs:32} {minutes:>9}".rstrip(), f"      {about}"]
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
    add("--data", type=folder,
        help="root of the data sets, as torchvision lays them out; "
             "wotlab.data.load(NAME, SPLIT, ROOT) fetches them")  # fmt: skip
    files = (file for named in runner.NETWORKS.values() for file in named.values())
    theirs = ", ".join(file for file in files if file.endswith(".pth"))
    add("--checkpoints", type=folder,
        help=f"folder of the networks that others published, {theirs}, and of ours, which are not "
             "trained again while they lie there; ./checkpoints by default")  # fmt: skip
    add("--out", type=Path, default=Path("results"), help="folder of the records; ./results")
    add("--images", type=count, default=1000, help="the first so many test images; 1000")
    add("--epochs", type=count,
        help="of trainings on all images (got-*, regniez-*, iwd-beta, iwd-table-*): by default a "
             "short one of some images on a CPU, as long as in the paper on a GPU")  # fmt: skip
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="a GPU where there is one")  # fmt: skip
    add("--anew", action="store_true", help="measure what is recorded again")
    add("--jobs", type=count, default=1, metavar="N",
        help="measure in N processes, each on its share of the cores; what cells share, such as a "
             "network, is trained and attacked once, so that an experiment on one network has work "
             "for one process alone; 1")  # fmt: skip
    add("--only", metavar="CASE",
        help="measure this case alone, or those of a pattern such as 'fast-*'")  # fmt: skip
    return made


def main() -> None:
    if sys.argv[1:2] == ["zoo"]:  # it needs neither data nor networks of others
        return zoo.main(sys.argv[2:])
    words = parser()
    given = vars(words.parse_args())
    name, several = given.pop("name"), given.pop("jobs")
    if given["epochs"] and name not in OF_EPOCHS:
        words.error(f"argument --epochs: {name} does not take it")
    if given["data"] is None and name not in BY_ITSELF:
        words.error(f"argument --data: {name} needs it")
    if several > 1 and given["device"].type != "cpu":
        words.error(
            f"argument --jobs: {several} processes would take turns on one GPU, and hold their "
            f"networks on it several times; leave it out, or add --device cpu"
        )
    given["checkpoints"] = given["checkpoints"] or Path("checkpoints")
    for option in ("checkpoints", "out"):
        if not runner.has_room(given[option]):
            words.error(f"argument --{option}: no folder can be made at {given[option]}")
    run = Run(**given)
    try:
        log = jobs.measure(run, EXPERIMENTS[name], several)
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
