"""The tables of Regniez et al. (2022), and defenses at equal work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from wotlab import attacks, training
from wotlab.balls import Ball, LinfBall
from wotlab.experiments.runner import Cell, Run
from wotlab.experiments.trials import Trial, autoattack, pgd, trial
from wotlab.gibbs import Chain
from wotlab.results import Keys
from wotlab.training import pgd_adversary

MNIST = LinfBall(0.3)
SHORT, IMAGES, SEEDS = 33, 20_000, (0, 1, 2)  # as many, training images, where seeds are compared
SWEEP = (0.01, 0.05, 0.1, 0.2, 0.4)  # of the chain's step, and of its noise
GRADIENTS = 82  # back-propagations an image: 41 epochs of one step, two of PGD-40


def growing(ball: Ball, epochs: int) -> Callable[[float], float]:
    """eps of an epoch: grows to the middle of the training. Some networks learn nothing at 0.3."""
    return lambda epoch: ball.eps * min(1.0, 2 * epoch / epochs)


def pgd_40(ball: LinfBall, epochs: int, step: float = 0.01) -> training.PGDAT:
    """The papers' baseline."""
    return training.PGDAT(ball, growing(ball, epochs), pgd_adversary(40, step=step))


def chain(
    ball: LinfBall, epochs: int, *, copies: int = 1, steps: int = 1, **rule: Any
) -> training.AdversarialTransport:
    """Algorithm 1; the step as printed unless said otherwise."""
    return training.AdversarialTransport(
        ball, growing(ball, epochs), chain=Chain(**{"rule": "sign"} | rule),
        copies=copies, steps=steps,
    )  # fmt: skip


SMALL: dict[str, Any] = {"lam": 1000.0, "sigma": 0.05}  # steps of chains with the true gradient
# name: the defense for so many epochs, and how many back-propagations an epoch takes an image
DEFENSES: dict[str, tuple[Callable[[int], Any], int]] = {
    "standard": (lambda epochs: training.Standard(), 1),
    "pgd-40": (lambda epochs: pgd_40(MNIST, epochs), 41),
    "chain-sign": (lambda epochs: chain(MNIST, epochs), 2),
    "chain-quiet": (partial(chain, MNIST, sigma=0.01), 2),  # hardly samples: does that matter?
    "fast": (lambda epochs: training.FastAT(MNIST, growing(MNIST, epochs)), 2),
    "free-8": (lambda epochs: training.FreeAT(MNIST, growing(MNIST, epochs), repeats=8), 8),
    "pgd-2": (lambda epochs: training.PGDAT(MNIST, growing(MNIST, epochs), pgd_adversary(2)), 3),
    "pgd-3": (lambda epochs: training.PGDAT(MNIST, growing(MNIST, epochs), pgd_adversary(3)), 4),
    "pgd-7": (lambda epochs: training.PGDAT(MNIST, growing(MNIST, epochs), pgd_adversary(7)), 8),
    "chain-true": (partial(chain, MNIST, rule="projected", **SMALL), 2),
    "chain-reflected": (partial(chain, MNIST, rule="reflected", **SMALL), 2),
    "chain-4-copies": (partial(chain, MNIST, copies=4), 8),
    "chain-4-steps": (partial(chain, MNIST, steps=4), 5),
}  # fmt: skip


def judges(step: float, *parts: str) -> dict[str, Callable]:
    """The papers' attacks; AutoAttack whole, or the parts that are named."""
    return {
        "fgsm": attacks.fgsm, "pgd-40": pgd(40, step), "pgd-100": pgd(100, step),
        "autoattack": autoattack(*parts),
    }  # fmt: skip


def linf_training(run: Run) -> Iterator[Cell]:
    """Every defense on Wong's network, with the same number of back-propagations an image.

    Without a defense ten epochs are enough.
    """
    for name, (make, each) in DEFENSES.items():
        epochs = 10 if name == "standard" else round(GRADIENTS / each)
        yield from trial(run, Trial(
            "linf-training", {"training": name}, "wong-mnist", MNIST, make(epochs), epochs,
            judges(0.01), few=500,
        ))  # fmt: skip


def over_seeds(run: Run) -> Iterator[Cell]:
    """Equal work again, less of it, with three seeds: which training wins beyond their noise?

    Watched by FGSM after each epoch: the paper's figures 1 and 2.
    """
    names = [name for name in DEFENSES if name not in ("standard", "pgd-40")]
    for seed, name in product(SEEDS, names):
        make, each = DEFENSES[name]
        epochs = round(SHORT / each)
        yield from trial(run, Trial(
            "linf-over-seeds", {"training": name, "seed": seed}, "wong-mnist", MNIST, make(epochs),
            epochs, judges(0.01), images=IMAGES, batch=100, few=1000, seed=seed,
            watch=attacks.fgsm,
        ))  # fmt: skip


def chain_sweep(run: Run) -> Iterator[Cell]:
    """The printed chain with other steps and noise: the paper's figures 3 and 4."""
    pairs = dict.fromkeys([(eta, 0.2) for eta in SWEEP] + [(0.2, sigma) for sigma in SWEEP])
    epochs = round(SHORT / 2)
    for eta, sigma in pairs:
        yield from trial(run, Trial(
            "chain-sweep", {"eta": eta, "sigma": sigma}, "wong-mnist", MNIST,
            chain(MNIST, epochs, eta=eta, sigma=sigma), epochs,
            {"fgsm": attacks.fgsm, "pgd-40": pgd(40, 0.01)}, images=IMAGES, batch=100,
        ))  # fmt: skip


@dataclass(frozen=True)
class Table:
    """What a table trains, and for how long.

    `epochs` are the paper's, for a GPU. On a CPU both defenses have `work` back-propagations for
    each image of the training set: the chain sees all of them, PGD-40 a part, once. Where a call
    names epochs both have these, as on a GPU, with the paper's minibatches of 100, and each with
    both of the learning rates that the paper prints: its own is among `printed`. AutoAttack runs
    its two APGD attacks on a CPU, on the first `few` test images.
    """

    network: str
    dataset: str
    ball: LinfBall
    step: float
    epochs: int
    work: int = 4
    few: int = 100


RATES = {"chain": 0.1, "pgd-40": 0.01}  # as printed
CIFAR = LinfBall(8 / 255)
TABLES = {  # table 3 is table 1 without AutoAttack
    1: Table("arch-a", "mnist", MNIST, 0.01, 100),
    2: Table("resnet18", "cifar10", CIFAR, 2 / 255, 100),
    4: Table("arch-b", "mnist", MNIST, 0.01, 100, work=12, few=200),
    5: Table("wrn-34-10", "cifar10", CIFAR, 2 / 255, 36),
}


def regniez(number: int, run: Run) -> Iterator[Cell]:
    """Both trainings of a table, and where they are as long as the paper's, at both rates."""
    table = TABLES[number]
    run = replace(run, dataset=table.dataset)
    parts = () if run.whole else ("apgd-ce", "apgd-t")
    all_of_them = run.epochs or (table.epochs if run.whole else None)
    part = None if all_of_them else len(run.load("train")) * table.work // 41
    many, once = (all_of_them, all_of_them) if all_of_them else (table.work // 2, 1)
    tail: Keys = {"whole": run.whole, **({"epochs": run.epochs} if run.epochs else {})}
    defenses: dict[str, tuple[Any, int, int | None]] = {
        "chain": (chain(table.ball, many), many, None),
        "pgd-40": (pgd_40(table.ball, once, table.step), once, part),
    }
    for name, (defense, epochs, images) in defenses.items():
        row = Trial(
            f"regniez-table-{number}", {"training": name, **tail}, table.network,
            table.ball, defense, epochs, judges(table.step, *parts), images=images,
            few=None if run.whole else table.few, printed=("regniez", number),
        )  # fmt: skip
        long = [
            replace(
                row, keys=row.keys | {"lr": rate}, lr=rate, batch=100,
                printed=row.printed if rate == RATES[name] else None,
            )
            for rate in RATES.values()
        ]  # fmt: skip
        for each in long if all_of_them else [row]:
            yield from trial(run, each)
