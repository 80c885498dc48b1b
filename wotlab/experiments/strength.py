"""How many images survive each attack on the plan, as the budget grows: the book's headline.

And the training of the last network of that table: Wong's, on MNIST, on two cores within an hour.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn

from wotlab import GroundCost, attacks, certify, evaluate, models, training
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import NETWORKS, Cell, Missing, Run, printed
from wotlab.experiments.trials import fitted, judged
from wotlab.results import Keys

PIXELS = 784
BUDGETS = (5, 10, 20, 50, 100, 200, 400, 800, 1600)  # eps * 784, as the papers print it
ATTACKS: dict[str, Callable[..., attacks.AttackResult]] = {
    "transport": attacks.transport,
    "mirror": partial(attacks.mirror_ascent, steps=150),
    "frank-wolfe": partial(attacks.frank_wolfe, steps=300),
    "frank-wolfe-published": partial(attacks.frank_wolfe, steps=300, published=True),
}
WINDOWS = {"transport": 9}  # its own; the others move mass as published, in
NEAR = 5  # pixels a side
WHAT = "mnist-robust-accuracy"
PRINTED = {"wong2019": 1, "hu2020": 5}  # Hu's tables of their attack on these networks

EPOCHS, EPS, GROW = 12, 0.16, 3  # of our training


def robust_accuracy(run: Run) -> Iterator[Cell]:
    """Robust accuracy of every network under every attack.

    Balls are nested: an image that breaks at one eps is broken at every larger one, so each budget
    is tried on what the last one left. Every success is certified by the exact distance on the
    whole grid. Moves go up to two pixels, as published; those of `transport` up to four.
    """
    for attack in ATTACKS:
        for name in run.networks():
            yield from fall(run, cache(partial(run.named, name)), name, attack)


def fall(run: Run, given: Callable[[], tuple], name: str, attack: str) -> Iterator[Cell]:
    """One attack on one network as the budget grows."""
    left: list[int] | None = None  # the places of images that the last budget left; None: all
    window = WINDOWS.get(attack, NEAR)
    for budget in BUDGETS:
        keys: Keys = {"network": name, "attack": attack, "budget": budget, "window": window}
        ball = WassersteinBall(budget / PIXELS, GroundCost(NEAR))
        where: Keys = {"network": name, "attack": "hu", "budget": budget}
        yield Cell(
            WHAT, keys, run, partial(measure, left, ball, ATTACKS[attack]), given,
            details={"eps": ball.eps, "network": name, "attack": attack, "window": window},
            **(printed("hu", PRINTED[name], where)
               if attack == "transport" and name in PRINTED else {}),
        )  # fmt: skip
        found = run.recorded(WHAT, keys)
        if found is not None:  # else it is not asked for: then the next budget has more to break
            left = found.details["left"]


def measure(
    places: list[int] | None, ball: WassersteinBall, attack: Callable,
    model: nn.Module, x: Tensor, y: Tensor,
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """Attack what is left; the share of all images that still stand, with its evidence."""
    left = torch.tensor(range(len(x)) if places is None else places, device=x.device).long()
    if not len(left):
        return evaluate.share(0, len(x)), {"left": [], "broken": 0, "attack_seconds": 0.0}
    done = attack(model, x[left], y[left], ball)
    broken = done.success.clone()
    evidence = {"left": left.tolist(), "broken": 0, "attack_seconds": done.seconds}
    if bool(broken.any()):
        seen = certify(x[left[broken]], done.x_adv[broken], ball)
        broken[done.success] = seen.inside
        evidence |= {
            "left": left[~broken].tolist(),
            "broken": int(broken.sum()),
            "refused_by_exact_lp": int((~seen.inside).sum()),
            "largest_exact_w_over_eps": float(seen.cost.max()) / ball.eps,
            "largest_mass_error": float(seen.mass_error.max()),
            "largest_box_error": float(seen.box_error.max()),
        }
    return evaluate.share(len(evidence["left"]), len(x)), evidence


def budget(epoch: float) -> float:
    """eps: grows over the first epochs, step by step, then stays."""
    return EPS * min(1.0, (int(epoch) + 1) / (GROW + 1))


def rate(epoch: float) -> float:
    """Learning rate of an epoch: half a cosine, from 1 down to 0.02."""
    return 0.02 + 0.98 * (1 + math.cos(math.pi * int(epoch) / EPOCHS)) / 2


def train(run: Run, seed: int = 0) -> tuple[nn.Module, dict]:
    """The network, and what its training took, with the weights' checksum."""
    path = run.checkpoints / NETWORKS["ours"]
    model = models.build("wong-mnist", seed=seed).to(run.device)
    attack = partial(attacks.mirror_ascent, steps=3, step_size=16.0, early_stop=False)
    model, took = fitted(
        model, run.load("train").tensors(),
        training.WassersteinAT(WassersteinBall(EPS), budget, attack), path,
        epochs=EPOCHS, batch_size=128, schedule=rate, seed=seed,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3),
    )  # fmt: skip
    seal = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, {"eps": EPS, "epochs": EPOCHS, "sha256": seal, **took}


def wasserstein_at(run: Run) -> Iterator[Cell]:
    """Train, and record clean accuracy."""
    clean = partial(judged, run, None, None)
    yield Cell("wasserstein-at", {"attack": "clean"}, run, clean, partial(train, run), seed=0)


CERTIFIED = "mnist-certified-accuracy"
PROVEN = (*BUDGETS[:-2], 2, 1)  # no bound reaches beyond
IMAGES = 100  # a bound takes a second
NAMES = ("hu2020", "standard", "wong2019", "fastadv_mnist_pgd.pth")


def certified_accuracy(run: Run) -> Iterator[Cell]:
    """Share of images that no attack on the Wasserstein ball can break, as far as it is proven.

    Balls are nested: each budget is tried on what is certified at the next smaller one, and not at
    the next larger one.
    """
    run = run.first(IMAGES)
    for name in NAMES:
        given, sure = cache(partial(released, run, name)), dict[int, list[int]]()
        for budget in PROVEN:
            keys: Keys = {"network": name.removesuffix(".pth"), "budget": budget}
            ball = WassersteinBall(budget / PIXELS)
            known = next((sure[k] for k in sorted(sure) if k > budget), [])
            open_ = next((sure[k] for k in sorted(sure, reverse=True) if k < budget), None)
            yield Cell(
                CERTIFIED, keys, run, partial(prove, known, open_, ball), given,
                details={"eps": ball.eps},
            )  # fmt: skip
            found = run.recorded(CERTIFIED, keys)
            if found is not None:
                sure[budget] = found.details["certified"]


def released(run: Run, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and the test images; Missing, where its weights are."""
    try:
        return run.named(name)
    except FileNotFoundError as error:
        raise Missing(name) from error


def prove(
    known: list[int], places: list[int] | None, ball: WassersteinBall,
    model: nn.Module, x: Tensor, y: Tensor,
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """The share of all images that are certified: those that are known, and others at `places`.

    None: all others are tried.
    """
    tried = sorted(set(range(len(x)) if places is None else places) - set(known))
    certified = list(known)
    if tried:
        margin = evaluate.certified_margin(model, x[tried], y[tried], ball)
        certified += [k for k, bound in zip(tried, margin.tolist(), strict=True) if bound > 0]
    return evaluate.share(len(certified), len(x)), {"certified": sorted(certified), "tried": tried}
