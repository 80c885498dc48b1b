"""The tables of Regniez et al. (2022), and defenses at equal work."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from wotlab import attacks, training
from wotlab.balls import LinfBall
from wotlab.experiments.runner import Run
from wotlab.experiments.trials import Trial, autoattack, pgd, trial
from wotlab.gibbs import Chain
from wotlab.training._defenses import pgd_adversary

MNIST = LinfBall(0.3)
GRADIENTS = 82  # back-propagations an image: 41 epochs of one step, two of PGD-40


def growing(ball: LinfBall, epochs: int) -> Callable[[float], float]:
    """eps of an epoch: grows to the middle of the training. Some networks learn nothing at 0.3."""
    return lambda epoch: ball.eps * min(1.0, 2 * epoch / epochs)


def pgd_40(ball: LinfBall, epochs: int, step: float = 0.01) -> training.PGDAT:
    """The papers' baseline."""
    return training.PGDAT(ball, growing(ball, epochs), pgd_adversary(40, step=step))


def chain(ball: LinfBall, epochs: int, **rule) -> training.AdversarialTransport:
    """Algorithm 1; the step as printed unless said otherwise."""
    rule = {"rule": "sign"} | rule
    return training.AdversarialTransport(ball, Chain(**rule), eps=growing(ball, epochs))


# name: the defense for so many epochs, and how many back-propagations an epoch takes an image
DEFENSES: dict[str, tuple[Callable[[int], object], int]] = {
    "standard": (lambda epochs: training.Standard(), 1),
    "pgd-40": (lambda epochs: pgd_40(MNIST, epochs), 41),
    "chain-sign": (lambda epochs: chain(MNIST, epochs), 2),
    "fast": (lambda epochs: training.FastAT(MNIST, growing(MNIST, epochs)), 2),
    "free-8": (lambda epochs: training.FreeAT(MNIST, 8, eps=growing(MNIST, epochs)), 8),
    "pgd-7": (lambda epochs: training.PGDAT(MNIST, growing(MNIST, epochs), pgd_adversary(7)), 8),
    "chain-reflected": (
        lambda epochs: chain(MNIST, epochs, rule="reflected", lam=1000.0, sigma=0.05), 2,
    ),
}  # fmt: skip


def judges(step: float, *parts: str) -> dict[str, Callable]:
    """The papers' attacks; AutoAttack whole, or the parts that are named."""
    return {
        "fgsm": attacks.fgsm, "pgd-40": pgd(40, step), "pgd-100": pgd(100, step),
        "autoattack": autoattack(*parts),
    }  # fmt: skip


def equal_gradients(run: Run) -> None:
    """Every defense on Wong's network, with the same number of back-propagations an image.

    Without a defense ten epochs are enough.
    """
    for name, (make, each) in DEFENSES.items():
        epochs = 10 if name == "standard" else round(GRADIENTS / each)
        trial(run, Trial(
            "linf-training", name, "wong-mnist", MNIST, make(epochs), epochs, judges(0.01), few=500
        ))  # fmt: skip


@dataclass(frozen=True)
class Table:
    """What a table trains, for how long, and what it prints.

    `epochs` are the paper's, for a GPU. On a CPU both defenses have `work` back-propagations for
    each image of the training set: the chain sees all of them, PGD-40 a part, once. AutoAttack
    then runs its two APGD attacks on the first `few` test images.
    """

    network: str
    dataset: str
    ball: LinfBall
    step: float
    epochs: int
    printed: dict[str, tuple[float, ...]]
    work: int = 4
    few: int = 100


NAMES = ("clean", "fgsm", "pgd-40", "pgd-100", "autoattack")
CIFAR = LinfBall(8 / 255)
TABLES = {  # table 3 is table 1 without AutoAttack
    1: Table("arch-a", "mnist", MNIST, 0.01, 100, {
        "chain": (99.16, 96.53, 93.12, 91.87, 88.55),
        "pgd-40": (98.82, 94.95, 92.28, 91.18, 89.10),
    }),
    2: Table("resnet18", "cifar10", CIFAR, 2 / 255, 100, {
        "chain": (78.72, 53.40, 49.57, 49.50),
        "pgd-40": (68.93, 45.58, 44.70, 43.74),
    }),
    4: Table("arch-b", "mnist", MNIST, 0.01, 100, {
        "chain": (99.10, 97.73, 94.82, 94.18), "pgd-40": (),
    }, work=12, few=200),
    5: Table("wrn-34-10", "cifar10", CIFAR, 2 / 255, 36, {
        "chain": (84.07, 56.47, 55.64, 54.50, 26.12),
        "pgd-40": (83.54, 59.51, 58.88, 57.97, 26.04),
    }),
}  # fmt: skip


def regniez(number: int, run: Run) -> None:
    """Both trainings of a table."""
    table = TABLES[number]
    run = replace(run, dataset=table.dataset)
    size, whole = len(run.load("train")), run.device.type == "cuda"
    epochs = table.epochs if whole else table.work // 2
    suffix = "-whole" if whole else ""  # another network, with its own weights and records
    parts = () if whole else ("apgd-ce", "apgd-t")
    row = Trial(
        f"regniez-table-{number}", "chain" + suffix, table.network, table.ball,
        chain(table.ball, epochs), epochs, judges(table.step, *parts),
        source=f"Regniez et al. (2022), table {number}", few=None if whole else table.few,
    )  # fmt: skip
    epochs = table.epochs if whole else 1
    rival = replace(
        row, case="pgd-40" + suffix, defense=pgd_40(table.ball, epochs, table.step), epochs=epochs,
        images=None if whole else size * table.work // 41,
    )  # fmt: skip
    for each in (row, rival):
        printed = dict(zip(NAMES, table.printed[each.case.removesuffix(suffix)], strict=False))
        trial(run, replace(each, printed=printed))
