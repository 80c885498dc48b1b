"""Internal Wasserstein distance: attacks at equal distances, and the attack's weight tau."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate
from wotlab.attacks import AttackResult
from wotlab.balls import TOLERANCE, InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments.iwd_networks import Setting, settings
from wotlab.experiments.runner import Run

NUMBERS = 27  # of a 3x3 patch in colour: a change of every pixel by h costs at most 27 h
DISTANCES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
FEW = 200  # test images
TILE = 16  # of photographs too large to be matched whole


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ball(d: float, x: Tensor) -> InternalWassersteinBall:
    """Exact for small images, by the upper bound for large ones."""
    return InternalWassersteinBall(d, tile=TILE if x.shape[-1] > 64 else None)


def linf(d: float, x: Tensor) -> LinfBall:
    """Its images are at most d away in IWD."""
    return LinfBall(d / NUMBERS)


def mass(d: float, x: Tensor) -> WassersteinBall:
    """Mass moves by a pixel or more, so 2 eps of it changes; an image's mean is about a half."""
    return WassersteinBall(d / NUMBERS)


def any_image(d: float, x: Tensor) -> InternalWassersteinBall:
    """For attacks without a budget."""
    return ball(float(NUMBERS), x)


ATTACKS: dict[str, tuple[Callable, Callable]] = {  # and the ball of a distance
    "fgsm": (attacks.fgsm, linf),
    "pgd-10": (partial(attacks.pgd, steps=10), linf),
    "eot": (lambda *a, **k: attacks.eot(*a, steps=10, generator=generator(), **k), linf),
    "stadv": (attacks.stadv, any_image),
    "adef": (attacks.adef, any_image),
    "fwadv": (partial(attacks.frank_wolfe, steps=100), mass),
    "iwda": (lambda *a, **k: attacks.iwda(*a, generator=generator(), **k), any_image),
    "direct": (attacks.pgd, ball),
}


def perform(name: str, model: nn.Module, x: Tensor, y: Tensor, d: float, **options) -> AttackResult:
    """The attack by its name, with the budget that belongs to the distance d if it has one.

    The result's cost is IWD (of large images its upper bound), whatever the attack's own ball.
    """
    attack, budget = ATTACKS[name]
    done = attack(model, x, y, budget(d, x), **options)
    if budget in (ball, any_image):
        return done
    return replace(done, cost=ball(0.0, x).distance(x, done.x_adv.clamp(0, 1)))


def near(done: AttackResult, d: float) -> AttackResult:
    """The same, where only images count whose IWD is at most d."""
    return replace(done, success=done.success & (done.cost <= d * (1 + TOLERANCE)))


def right_ones(setting: Setting, name: str) -> tuple[nn.Module, Tensor, Tensor, dict]:
    """A network, the test images that it reads rightly, and how many it does not."""
    model = setting.model(name)
    x, y = setting.run.test_images()
    right = evaluate.are_right(model, x, y)
    return model, x[right], y[right], {"misread_from_the_start": int((~right).sum())}


def hits(done: AttackResult) -> evaluate.Share:
    return evaluate.share(int(done.success.sum()), len(done.success))


def sizes(x: Tensor, done: AttackResult) -> dict:
    """Medians over the broken images, as in Figure 5; seconds an image."""
    change, hit = done.x_adv - x, done.success
    found = {
        "l2": change.flatten(1).norm(dim=1), "linf": change.abs().amax((1, 2, 3)),
        "iwd": done.cost,
    }  # fmt: skip
    middle = {k: float(v[hit].median()) if bool(hit.any()) else None for k, v in found.items()}
    return middle | {"seconds_an_image": done.seconds / len(x)}


def attack_all(run: Run) -> None:
    """Each attack on undefended networks: how much of what is read rightly it breaks within d."""
    for setting in settings(run.first(FEW)):
        model, x, y, counted = right_ones(setting, setting.undefended)
        made = {}
        for name, d in product(ATTACKS, DISTANCES):

            def broken(name=name, d=d, model=model, x=x, y=y, counted=counted, made=made):
                free = ATTACKS[name][1] is any_image  # the same images for every d
                if not free or name not in made:
                    made[name] = perform(name, model, x, y, d)
                done = near(made[name], d)
                return hits(done), sizes(x, done) | counted

            case = f"{setting.network}-{name}-within-{d:g}"
            setting.run.number("iwd-attacks", case, "%", broken, seed=0)


def tau(run: Run) -> None:
    """The attack's weight of the classifier's loss: success, and distance of what broke."""
    for setting in settings(run.first(FEW)):
        model, x, y, counted = right_ones(setting, setting.undefended)
        for weight in TAUS:

            def broken(weight=weight, model=model, x=x, y=y, counted=counted):
                done = perform("iwda", model, x, y, 0.0, tau=weight)
                return hits(done), sizes(x, done) | counted

            case = f"{setting.network}-tau-{weight:g}"
            setting.run.number("iwd-tau", case, "%", broken, seed=0)
