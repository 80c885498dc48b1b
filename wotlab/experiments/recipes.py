"""How the networks that ship are made: data, training, budget, and the attacks on their cards."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wotlab import attacks, data, models, training
from wotlab.balls import InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments import strength
from wotlab.experiments.noise import Flows, Noise, Splitting
from wotlab.experiments.runner import loaded
from wotlab.experiments.trials import adam
from wotlab.gibbs import Chain
from wotlab.training import pgd_adversary

Pair = tuple[Tensor, Tensor]
STRONG = partial(attacks.pgd, steps=40, early_stop=False)
BALL = LinfBall(0.15)
LINF = LinfBall(0.3)  # of the networks on MNIST
OTHERS = 5848  # where the training images of MNIST begin that "mnist-5k" has nothing of
SIGMA, LAM = 0.01, 8.0  # of the noise on flows, and of splitting noise
INTERNAL = InternalWassersteinBall(0.2, tile=4)
JUDGES: dict[str, Callable] = {  # of the networks on digits
    "pgd, 40 steps of eps / 10, l-infinity 0.15": partial(STRONG, ball=BALL, step_size=0.015)
}
DIGITS = (
    "digits, all 1500 training images", lambda split, root: loaded("digits", split).tensors()
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


def to_zero(epochs: int) -> Callable[[float], float]:
    """A factor on the learning rate that falls from 1 to 0."""
    return lambda epoch: 1 - epoch / epochs


def falling(epochs: int) -> dict:
    """Options of `fit`: minibatches of 50, a rate that falls from 0.05 to zero."""
    return {"epochs": epochs, "batch_size": 50, "lr": 0.05, "schedule": to_zero(epochs)}


def growing(eps: float, epochs: float) -> Callable[[float], float]:
    """The budget: grows to eps over so many epochs, then stays."""
    return lambda epoch: eps * min(1.0, epoch / epochs)


GROWS = "eps grows over the first half"


def pgd_at(steps: int, eps: Callable[[float], float] | None = None) -> training.PGDAT:
    return training.PGDAT(BALL, eps, pgd_adversary(steps))


def grown(told: str, eps: float, epochs: int, defense: Callable) -> Recipe:
    """A training whose budget grows over its first half."""
    return Recipe(
        f"{told} {eps:g}, {epochs} epochs; {GROWS}", lambda: defense(growing(eps, epochs / 2)),
        falling(epochs),
    )  # fmt: skip


RECIPES = {  # examples of the docstrings, and small networks of the tests
    "digits-standard": Recipe(
        "cross-entropy, 10 epochs", training.Standard,
        {"epochs": 10, "lr": 0.05}, drawn=torch.float,
    ),
    "digits-standard-4": Recipe("cross-entropy, 4 epochs", training.Standard, falling(4)),
    "digits-tiny": Recipe(  # chapter 8 finds its radii exactly
        "cross-entropy, 30 epochs", training.Standard, falling(30), network="digits-tiny",
    ),
    "digits-pgd-at-6": grown("PGD-AT, 5 steps, l-infinity", 0.15, 6, partial(pgd_at, 5)),
    "digits-pgd-10": Recipe(
        f"PGD-AT, 10 steps; {GROWS}, l-infinity 0.15, 3 epochs",
        lambda: pgd_at(10, growing(0.15, 1.5)), falling(3),
    ),
    "digits-chain": Recipe(
        f"Adversarial Transport, sign chain, sigma = eta = eps / 2; {GROWS}, l-infinity 0.15, "
        "16 epochs",
        lambda: training.AdversarialTransport(
            BALL, growing(0.15, 8), chain=Chain("sign", sigma=BALL.eps / 2, eta=BALL.eps / 2)
        ),
        falling(16),
    ),
}  # fmt: skip


def mnist(split: str, root: Path | None, count: int | None = None) -> Pair:
    """What "mnist-5k" leaves of MNIST's training images, or the first of it; its test images."""
    if split == "test":
        return loaded("mnist-5k").tensors()
    last = None if count is None else OTHERS + count
    return data.load("mnist", "train", root).tensors(slice(OTHERS, last))


def transported(model: nn.Module, x: Tensor, y: Tensor) -> attacks.AttackResult:
    """The strongest attack, with the same noise in each call, so that a card can be checked."""
    noise = torch.Generator(x.device).manual_seed(0)
    return attacks.transport(model, x, y, WassersteinBall(100 / 784), generator=noise)


class Open(NamedTuple):
    """What stands where a card has an attack: the images of which a proof says nothing."""

    success: Tensor


def unproven(noise: Noise, eps: float, model: nn.Module, x: Tensor, y: Tensor) -> Open:
    """Images that the smoothed network misreads, or not for sure up to eps."""
    found = noise.certify(model, x)
    return Open((found.prediction != y) | (found.radius < eps))


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
        precision=torch.float, drawn=torch.float, judges=judges,
        again=19,  # every 20th digit is a zero
        source=("MNIST training images 5,848 to 59,999", mnist),
    )  # fmt: skip


def under_noise(told: str, judged: str, noise: Noise) -> Recipe:
    """A training for the network that this noise smooths; its card has what is proven."""
    return replace(
        on_mnist(f"cross-entropy under {told}", 8, lambda: training.NoiseAugmentation(noise)),
        judges={f"{judged}, proven for eps * 784 = 10": partial(unproven, noise, 10 / 784)},
    )


def pgd_within(eps: float) -> training.PGDAT:
    """Ten steps in l-infinity; the budget grows over four epochs."""
    return training.PGDAT(LinfBall(eps), growing(eps, 4), pgd_adversary(10))


def as_much_work(told: str, each: int, defense: Callable) -> Recipe:
    """On MNIST, with about 110 back-propagations an image; the budget grows as PGD-AT's does."""
    epochs = round(110 / each)
    return on_mnist(
        f"{told}, l-infinity 0.3; eps grows over the first 40 % of the epochs", epochs,
        lambda: defense(growing(0.3, 0.4 * epochs)),
    )  # fmt: skip


def lbgat(eps: Callable[[float], float]) -> training.LBGAT:
    """Both networks by Adam, at rates that fall alike."""
    return training.LBGAT(
        LINF, eps, natural=models.build("wong-mnist", seed=1), optimizer=adam,
        schedule=to_zero(round(110 / 12)),
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
        partial(pgd_within, 0.3),
    ),
    # read them by `smoothing.certify` with the same sigma, by `smoothing.certify_l1` with the lam
    "mnist-smoothed": under_noise(
        f"noise on flows of sigma {SIGMA:g}", f"smoothing, sigma {SIGMA:g}",
        Flows(SIGMA, samples=(100, 1000)),  # they prove up to eps * 784 = 1,680 sigma
    ),
    "mnist-split": under_noise(
        f"splitting noise of lam {LAM:g}", f"splitting noise, lam {LAM:g}", Splitting(LAM)
    ),
    # chapters 5 to 8: as many back-propagations an image as PGD-AT, 110, or as near as epochs come
    "mnist-trades": as_much_work("TRADES, 10 steps", 12, partial(training.TRADES, LINF)),
    "mnist-mart": as_much_work("MART, 10 steps", 12, partial(training.MART, LINF)),
    "mnist-awp": as_much_work(  # gamma as its authors have it beside PGD-AT
        "AWP, 10 steps, gamma 0.01", 12, partial(training.AWP, LINF, gamma=0.01)
    ),
    "mnist-lbgat": as_much_work("LBGAT, 10 steps, beside a natural network of its kind", 12, lbgat),
    "mnist-ates": as_much_work(
        "ATES, 10 steps, whose threshold grows from 0 to 1 over the first half", 11,
        lambda eps: training.ATES(LINF, eps, gap=lambda epoch: min(1.0, epoch / 5)),
    ),
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
    "mnist-iwdd": replace(  # against three steps it stands them alone
        on_mnist(
            "IWDD, 10 steps of pgd, IWD 0.2 by matchings within tiles of 4 x 4 patches; eps grows "
            "over the first four epochs", 10,
            lambda: training.IWDD(
                INTERNAL, growing(INTERNAL.eps, 4),
                partial(attacks.pgd, steps=10, early_stop=False),
            ),
            **{"pgd, 40 steps, IWD 0.2 by tiles of 4 x 4": partial(STRONG, ball=INTERNAL)},
        ),
        source=("MNIST training images 5,848 to 15,847", partial(mnist, count=10_000)),
    ),
}  # fmt: skip
