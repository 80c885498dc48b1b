"""How the networks that ship are made: data, training, budget, and the attacks on their cards."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wotlab import attacks, data, training
from wotlab.balls import InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments import strength
from wotlab.experiments.trials import adam
from wotlab.gibbs import Chain
from wotlab.training import pgd_adversary

Pair = tuple[Tensor, Tensor]
STRONG = partial(attacks.pgd, steps=40, early_stop=False)
BALL = LinfBall(0.15)
LINF = LinfBall(0.3)  # of the networks on MNIST
INTERNAL = InternalWassersteinBall(0.5, tile=4)
JUDGES: dict[str, Callable] = {  # of the networks on digits
    "pgd, 40 steps of eps / 10, l-infinity 0.15": partial(STRONG, ball=BALL, step_size=0.015)
}
DIGITS = (
    "digits, all 1500 training images", lambda split, root: data.load("digits", split).tensors()
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How one network is made.

    Attributes
    ----------
    told : str
        The training in words.
    defense : function
        Makes the defense.
    fit : dict
        Options of `training.fit`.
    network, num_classes, in_channels
        As for `models.build`.
    start : str, optional
        The network of this table whose weights the training goes on from; untrained by default.
    drawn, precision : dtype
        Of the first weights as they are drawn, and of the training.
    source : (str, function)
        The training images in words, and a function of "train" or "test" and of the folder of
        data sets that gives images and labels.
    seed : int
        Of the first weights.
    judges : dict
        Attack by its name on the card, called as `attack(model, x, y)`.
    again : int
        Every so many test images are judged a second time: what the tests of a card can repeat.
    watch : (str, attack), optional
        What the card's history also holds: the share of test images that this attack leaves
        after each epoch, by this name.
    """

    told: str
    defense: Callable[[], training.Defense]
    fit: dict
    network: str = "digits-small"
    num_classes: int = 10
    in_channels: int = 1
    start: str | None = None
    drawn: torch.dtype = torch.double
    precision: torch.dtype = torch.double
    seed: int = 0
    source: tuple[str, Callable[[str, Path | None], Pair]] = DIGITS
    judges: dict[str, Callable] = field(default_factory=lambda: JUDGES)
    again: int = 1
    watch: tuple[str, Callable] | None = None


def to_zero(epochs: int) -> Callable[[float], float]:
    """A factor on the learning rate that falls from 1 to 0."""
    return lambda epoch: 1 - epoch / epochs


def falling(epochs: int) -> dict:
    """Options of `fit`: minibatches of 50, a rate that falls from 0.05 to zero."""
    return {"epochs": epochs, "batch_size": 50, "lr": 0.05, "schedule": to_zero(epochs)}


def growing(eps: float, epochs: float) -> Callable[[float], float]:
    """The budget: grows to eps over so many epochs, then stays."""
    return lambda epoch: eps * min(1.0, epoch / epochs)


def pieces(split: str, root: Path | None) -> Pair:
    """Squares of 28 pixels cut from six scenes, and which scene each is from."""
    photographs, scenes = (
        data.load(name).tensors()[0].double() for name in ("photographs", "scenes")
    )
    shrink = partial(torch.nn.functional.interpolate, mode="area")
    small = [*shrink(photographs, scale_factor=0.25), *shrink(scenes, size=(106, 106))]
    count, seed = {"train": (1200, 0), "test": (300, 1)}[split]
    which, cut = torch.arange(count) % len(small), []
    draw = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float)
    for k, at in zip(which.tolist(), draw, strict=True):
        top, left = ((torch.tensor(small[k].shape[1:]) - 28) * at).long().tolist()
        cut.append(small[k][:, top : top + 28, left : left + 28])
    return torch.stack(cut), which


GROWS = "eps grows over the first half"


def pgd_at(steps: int, eps: Callable[[float], float] | None = None) -> training.PGDAT:
    return training.PGDAT(BALL, eps, pgd_adversary(steps))


def trades() -> training.TRADES:
    return training.TRADES(BALL, attack=pgd_adversary(5, "kl"))


def grown(told: str, eps: float, epochs: int, defense: Callable) -> Recipe:
    """A training whose budget grows over its first half."""
    return Recipe(
        f"{told} {eps:g}, {epochs} epochs; {GROWS}", lambda: defense(growing(eps, epochs / 2)),
        falling(epochs),
    )  # fmt: skip


RECIPES = {
    # examples of the docstrings
    "digits-standard": Recipe(
        "cross-entropy, 10 epochs", training.Standard,
        {"epochs": 10, "lr": 0.05}, drawn=torch.float,
    ),
    # chapters 5 and 7
    "digits-standard-6": Recipe("cross-entropy, 6 epochs", training.Standard, falling(6)),
    "digits-pgd-at-6": grown("PGD-AT, 5 steps, l-infinity", 0.15, 6, partial(pgd_at, 5)),
    # chapter 5
    "digits-standard-4": Recipe("cross-entropy, 4 epochs", training.Standard, falling(4)),
    "digits-pgd-at-4": grown(
        "PGD-AT, 5 steps, l-infinity", 0.1, 4,
        lambda eps: training.PGDAT(
            LinfBall(0.1), eps, partial(attacks.pgd, steps=5, early_stop=False)
        ),
    ),
    "digits-iwdd-4": grown(
        "IWDD, 3 steps of pgd, IWD", 0.25, 4,
        lambda eps: training.IWDD(
            InternalWassersteinBall(0.25), eps, partial(attacks.pgd, steps=3, early_stop=False)
        ),
    ),
    "scenes-standard": Recipe(
        "cross-entropy, 10 epochs", training.Standard, falling(10),
        network="wong-mnist", num_classes=6, in_channels=3,
        source=("squares of scenes, all 1200 training images", pieces),
        judges={"pgd, 40 steps, l-infinity 1/255": partial(STRONG, ball=LinfBall(1 / 255))},
    ),
}  # fmt: skip


def equal_work(told: str, each: int, defense: Callable) -> Recipe:
    """A row of chapter 6: 33 back-propagations per image, or as near as whole epochs come."""
    epochs = 33 // each
    return Recipe(
        f"{told}, l-infinity 0.15, {epochs} epochs", lambda: defense(growing(0.15, epochs / 2)),
        falling(epochs), watch=("fgsm", partial(attacks.fgsm, ball=BALL)),
    )  # fmt: skip


def carried(rule: Chain, **options: Any) -> Callable:
    """Adversarial Transport by the budget."""
    return lambda eps: training.AdversarialTransport(BALL, eps, chain=rule, **options)


def tuned(told: str, defense: Callable[[], training.Defense]) -> Recipe:
    """A row of chapter 7: trains on from PGD-AT, with the paper's optimizer and rate."""
    return Recipe(
        f"{told}, l-infinity 0.15, 3 epochs, Adam from 0.001", defense,
        falling(3) | {"optimizer": adam}, start="digits-pgd-at-6",
    )  # fmt: skip


def got(loss: str, term: dict | None = None, **options: Any) -> Callable[[], training.GOT]:
    """GOT on PGD-AT or TRADES with five steps; `term` are options of `JointTransport`."""
    inner = trades if loss == "trades" else partial(pgd_at, 5)
    return lambda: training.GOT(inner(), training.JointTransport(**(term or {})), **options)


HALF = Chain("sign", sigma=BALL.eps / 2, eta=BALL.eps / 2)
REFLECTED = Chain("reflected", lam=300.0, sigma=0.04)
MATCHED = {"match_labels": True}
RECIPES |= {
    # chapter 6
    "digits-pgd-10": equal_work(f"PGD-AT, 10 steps; {GROWS}", 11, partial(pgd_at, 10)),
    "digits-pgd-10-all-at-once": equal_work("PGD-AT, 10 steps", 11, lambda eps: pgd_at(10)),
    "digits-pgd-3": equal_work(f"PGD-AT, 3 steps; {GROWS}", 4, partial(pgd_at, 3)),
    "digits-fast": equal_work(f"FastAT; {GROWS}", 2, partial(training.FastAT, BALL)),
    "digits-free-4": equal_work(
        f"FreeAT, 4 repeats; {GROWS}", 4, lambda eps: training.FreeAT(BALL, eps, repeats=4)
    ),
    "digits-chain": equal_work(
        f"Adversarial Transport, sign chain, sigma = eta = eps / 2; {GROWS}", 2, carried(HALF)
    ),
    "digits-chain-reflected": equal_work(
        f"Adversarial Transport, reflected chain, lam 300, sigma 0.04; {GROWS}", 2,
        carried(REFLECTED),
    ),
    "digits-chain-4-samples": equal_work(
        f"Adversarial Transport, sign chain, 4 samples, soft maximum; {GROWS}", 8,
        carried(HALF, copies=4, soft=5.0),
    ),
    # chapter 7
    "digits-pgd-at-6-seed-1": replace(RECIPES["digits-pgd-at-6"], seed=1),
    "digits-more-pgd-at": tuned("PGD-AT, 5 steps", partial(pgd_at, 5)),
    "digits-trades": tuned("TRADES, 5 steps", trades),
    "digits-mart": tuned("MART, 5 steps", lambda: training.MART(BALL, attack=pgd_adversary(5))),
    "digits-got-pgd-s": tuned("GOT-PGD-S", got("pgd")),
    "digits-got-trades-s": tuned("GOT-TRADES-S", got("trades")),
    "digits-got-pgd-lm": tuned("GOT-PGD-LM", got("pgd", MATCHED)),
    "digits-got-trades-lm": tuned("GOT-TRADES-LM", got("trades", MATCHED)),
    "digits-got-pgd-s-weak": tuned("GOT-PGD-S, beta 1", got("pgd", beta=1.0)),
    "digits-got-pgd-paired": tuned("GOT on pairs", got("pgd", {"kind": "paired"})),
    "digits-got-pgd-exact": tuned("GOT, exact cost", got("pgd", {"kind": "exact"})),
}  # fmt: skip


def mnist(split: str, root: Path | None) -> Pair:
    """What "mnist-5k" leaves of MNIST's training images, and its test images."""
    if split == "test":
        return data.load("mnist-5k").tensors()
    return data.load("mnist", "train", root).tensors(slice(5848, None))


def transported(model: nn.Module, x: Tensor, y: Tensor) -> attacks.AttackResult:
    """The strongest attack, with the same noise in each call, so that a card can be checked."""
    noise = torch.Generator(x.device).manual_seed(0)
    return attacks.transport(model, x, y, WassersteinBall(100 / 784), generator=noise)


def on_mnist(
    told: str, epochs: int, defense: Callable, schedule: Callable | None = None, **judges: Callable
) -> Recipe:
    """A training of Wong's network, by Adam; judges beside those of all."""
    fit = {
        "epochs": epochs, "batch_size": 128, "schedule": schedule or to_zero(epochs),
        "optimizer": adam,
    }  # fmt: skip
    judges |= {
        "transport, eps * 784 = 100": transported,
        "pgd, 40 steps of eps / 10, l-infinity 0.3": partial(STRONG, ball=LINF, step_size=0.03),
    }
    return Recipe(
        f"{told}, {epochs} epochs, Adam from 0.001", defense, fit, network="wong-mnist",
        precision=torch.float, drawn=torch.float, judges=judges, again=20,
        source=("MNIST training images 5,848 to 59,999", mnist),
    )  # fmt: skip


def as_much_work(told: str, each: int, defense: Callable) -> Recipe:
    """On MNIST, with about 110 back-propagations an image; the budget grows as PGD-AT's does."""
    epochs = round(110 / each)
    return on_mnist(
        f"{told}, l-infinity 0.3; eps grows over the first 40 % of the epochs", epochs,
        lambda: defense(growing(0.3, 0.4 * epochs)),
    )  # fmt: skip


RECIPES |= {
    # chapters 1 to 4
    "mnist-standard": on_mnist("cross-entropy", 8, training.Standard),
    "mnist-wasserstein-at": on_mnist(
        "WassersteinAT, 3 steps of mirror ascent, eps * 784 = 125 from the fourth epoch on",
        strength.EPOCHS, strength.defense, strength.rate,
    ),
    "mnist-pgd-at": on_mnist(
        "PGD-AT, 10 steps, l-infinity 0.3; eps grows over the first four epochs", 10,
        lambda: training.PGDAT(LINF, growing(0.3, 4), pgd_adversary(10)),
    ),
    # chapters 5 to 8: as many back-propagations an image as PGD-AT, 110, or as near as epochs come
    "mnist-trades": as_much_work("TRADES, 10 steps", 12, partial(training.TRADES, LINF)),
    "mnist-mart": as_much_work("MART, 10 steps", 12, partial(training.MART, LINF)),
    "mnist-adversarial-transport": as_much_work(
        "Adversarial Transport, sign chain", 2,
        lambda eps: training.AdversarialTransport(LINF, eps, chain=Chain("sign")),
    ),
    "mnist-got-pgd-lm": as_much_work(
        "GOT-PGD-LM, 10 steps", 12,
        lambda eps: training.GOT(
            training.PGDAT(LINF, eps, pgd_adversary(10)),
            training.JointTransport(match_labels=True), clean=1.0,
        ),
    ),
    "mnist-fast-at": replace(  # as its authors do; after 55 epochs at our rate PGD breaks it
        on_mnist("", 10, partial(training.FastAT, LINF)),
        told="FastAT, l-infinity 0.3, 10 epochs, batches of 100, Adam, whose rate rises to 0.005 "
        "until the fourth epoch and then falls to 0",
        fit={
            "epochs": 10, "batch_size": 100,
            "schedule": lambda epoch: min(epoch / 4, (10 - epoch) / 6),
            "optimizer": lambda model: torch.optim.Adam(model.parameters(), 5e-3),
        },
    ),
    "mnist-free-at": as_much_work(
        "FreeAT, 8 repeats", 8, lambda eps: training.FreeAT(LINF, eps, repeats=8)
    ),
    "mnist-iwdd": on_mnist(
        "IWDD, 3 steps of pgd, IWD 0.5 by matchings within tiles of 4 x 4 patches; eps grows over "
        "the first 40 % of the epochs", 6,
        lambda: training.IWDD(
            INTERNAL, growing(INTERNAL.eps, 2.4), partial(attacks.pgd, steps=3, early_stop=False)
        ),
        **{"pgd, 40 steps, IWD 0.5 by tiles of 4 x 4": partial(STRONG, ball=INTERNAL)},
    ),
}  # fmt: skip
