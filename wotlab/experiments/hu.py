"""Hu et al. (2020): attacks whose eps grows until an image breaks, and images that nobody aimed.

Tables 1, 2, 3 and 5, as published: eps starts at 0.01 and grows by 0.01 a gradient step, 200 steps
at most; the radius of an image is the eps at which it first breaks, whether or not its exact
distance keeps it. Tables 4 and 6 are of shifted, turned and blurred images, as are Subramanyam's
tables V and VI.
"""

import csv
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from wotlab import GroundCost, attacks, evaluate, models, transformations
from wotlab.balls import L2Ball, WassersteinBall, hu_step
from wotlab.experiments.runner import CIFAR10, Cell, Run, answers, printed
from wotlab.projections import Projection, constrained_sinkhorn, projected_sinkhorn
from wotlab.results import Keys

STEPS = 200
PIXELS = {"mnist": 784, "cifar10": 1024}  # in whose units the papers print budgets
EPOCHS = {"cifar10": 200}  # of Hu's network where they released none
DEVIATION = 0.2023, 0.1994, 0.2010  # of a colour in an image of CIFAR-10, in the mean
RADII = "hu2020_radii_against_wong2019.tsv"
DARK = 30  # Hu et al.'s divisor of an image
EIGHT = (5, 10, 20, 50, 100, 200, 500, 1000)  # eps * 784 of tables 1 and 3


Growth = Callable[[int], float]


def grow(t: int) -> float:
    """eps at step t."""
    return 0.01 * (t + 1)


HU = partial(constrained_sinkhorn, rule="published")  # stops by the paper's own test


def cold(x: Tensor, w: Tensor, eps: Tensor | float, ground_cost: GroundCost) -> Projection:
    """Hu's projection without the duals of the last step."""
    return HU(x, w, eps, ground_cost)


WONG: dict[str, Any] = {"rule": "sign", "step_size": 0.1}
ATTACKS: dict[str, dict[str, Any]] = {
    "wong": {**WONG, "projection": partial(projected_sinkhorn, clamp=True)},
    "cold": {**WONG, "projection": cold},
    "warm": {**WONG, "projection": HU},
    "large-step": {"rule": "sign", "step_size": hu_step, "projection": HU},
    "hu": {"projection": HU},
    **{
        f"step-{s}": {"step_size": partial(hu_step, share=s), "projection": HU}
        for s in (0.02, 0.04, 0.08)
    },
}
ROWS = {  # by table: the network, and the attacks on it
    1: ("wong2019", ("wong", "hu")),
    2: ("standard", ("wong", "cold", "warm", "hu")),
    3: ("wong2019", ("wong", "large-step", "hu")),
    5: ("hu2020", ("step-0.02", "step-0.04", "hu", "step-0.08")),
}
SIGMAS = {3: 1.0, 5: 2.0, 7: 3.0}  # the papers' kernel sizes; deviations that fit their distances
SIZES = {  # per cent of a side, degrees, pixels of a kernel
    "hu": {"translation": (5, 10, 20), "rotation": (5, 10, 20), "blur": (3, 5, 7)},
    "subramanyam": {"translation": (5, 15, 20), "rotation": (10, 20, 30)},
}


def table(number: int, run: Run) -> Iterator[Cell]:
    """Mean radii under attacks whose eps grows.

    Of table 1 also of the radii that Hu et al. released, where they are at hand.
    """
    name, kinds = ROWS[number]
    given = cache(partial(run.named, name))
    for kind in kinds:
        keys: Keys = {"network": name, "attack": kind}
        theirs = printed("hu", 2, keys, metric="eps")
        at_budgets = answers("hu", number, keys)  # by the radii in the details: see `standing`
        yield Cell(
            "hu-growing", keys, run, partial(radii, ATTACKS[kind], grow), given, "eps",
            details={"stop_test": "dual" if kind == "wong" else HU.keywords["rule"]},
            note="Mean radius; an image that never broke counts with the largest eps, 2.",
            **theirs | {"answers": theirs.get("answers", []) + at_budgets},
        )  # fmt: skip
    if number == 1 and (run.checkpoints / RADII).exists():
        yield Cell(
            "hu-growing", {"network": name, "attack": "released"}, run, partial(released, run),
            unit="eps",
        )  # fmt: skip


def radii(
    options: dict, growth: Growth, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[float, dict]:
    """Mean radius; and every radius, with what the broken images really spent."""
    ball = WassersteinBall(growth(STEPS - 1))
    done = attacks.pgd(
        model, x, y, ball, steps=STEPS, schedule=growth, repaired=False, batch_size=100, **options
    )
    with torch.no_grad():
        broken = model(done.x_adv).argmax(1) != y
    at = torch.tensor([0.0, *map(growth, range(STEPS))], device=x.device)
    radius = torch.where(broken, at[done.steps], torch.inf)
    right = done.steps > 0  # the others were wrong from the start
    details = {"radii": listed(radius), "attack_seconds": done.seconds}
    if bool((broken & right).any()):
        spent = (done.cost / radius)[broken & right]
        details |= {
            "w_over_eps_mean": float(spent.mean()),
            "w_over_eps_worst": float(spent.max()),
            "share_over_by_one_percent": float((spent > 1.01).float().mean()),
            "largest_mass_error": float(done.mass_error[broken & right].max()),
        }
    return float(radius.clamp(max=ball.eps)[right].mean()), details


def released(run: Run) -> tuple[float, dict]:
    """The radii that Hu et al. released, of the same images."""
    with (run.checkpoints / RADII).open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[: run.images]
    found = torch.tensor([float(row["radius"]) for row in rows])
    right = found[found > 0].clamp(max=grow(STEPS - 1))
    accuracy = {b: 100 * float((found > b / PIXELS["mnist"]).double().mean()) for b in EIGHT}
    return float(right.mean()), {"radii": listed(found), "accuracy": accuracy}


def standing(radii: list[float | None], budget: float, data: str = "mnist") -> evaluate.Share:
    """The share of images that break at no eps up to a budget, which is in eps * pixels."""
    left = sum(radius is None or radius > budget / PIXELS[data] for radius in radii)
    return evaluate.share(left, len(radii))


def listed(radius: Tensor) -> list[float | None]:
    """Radii as JSON takes them: None where an image never broke."""
    return [round(r, 5) if r < float("inf") else None for r in radius.tolist()]


def changed(paper: str, kind: str, size: int, x: Tensor) -> Tensor:
    """The images of a case; each draws the same numbers, whatever was measured before it."""
    draw = torch.Generator().manual_seed(0)
    if kind == "translation":
        return transformations.translate(x, share=size / 100, generator=draw)
    if kind == "rotation":
        exactly = paper == "hu"
        return transformations.rotate(x, degrees=size, exactly=exactly, generator=draw)
    return transformations.blur(x, sigma=SIGMAS[size])


def cases(paper: str) -> Iterator[tuple[str, int]]:
    return ((kind, size) for kind, sizes in SIZES[paper].items() for size in sizes)


def accuracies(paper: str, number: int, run: Run) -> Iterator[Cell]:
    """Accuracy on shifted, turned and blurred images."""
    for name in run.networks():
        given = cache(partial(run.named, name))
        for kind, size in cases(paper):
            keys: Keys = {"network": name, "transformation": kind, "size": size}
            yield Cell(
                f"{paper}-table-{number}", keys, run, partial(accuracy, paper, kind, size), given,
                seed=0, **printed(paper, number, keys),
            )  # fmt: skip


def accuracy(
    paper: str, kind: str, size: int, model: nn.Module, x: Tensor, y: Tensor
) -> evaluate.Share:
    return evaluate.accuracy(model, (changed(paper, kind, size, x), y))


def distances(paper: str, measures: tuple[str, ...], number: int, run: Run) -> Iterator[Cell]:
    """Mean distances of the same images. W of Subramanyam's table has no unit that we know."""

    def mean(which: str, kind: str, size: int, x: Tensor, _: Tensor) -> float:
        return float(MEASURES[which][0](x, changed(paper, kind, size, x)).nanmean())

    end = "" if run.dataset == "mnist" else f"-{run.dataset}"
    given = cache(run.test_images)
    for which, (kind, size) in product(measures, cases(paper)):
        keys: Keys = {"measure": which, "transformation": kind, "size": size}
        yield Cell(
            f"{paper}-table-{number}{end}", keys, run,
            partial(mean, which, kind, size), given, MEASURES[which][1], seed=0,
            **printed(paper, number, keys, run.dataset, metric=which.partition("-")[0]),
        )  # fmt: skip


def dimming(run: Run) -> Iterator[Cell]:
    """The share of images that a network misreads once they are 30 times as dark: W is 0."""

    def misread(model: nn.Module, x: Tensor, y: Tensor) -> evaluate.Share:
        wrong = ~evaluate.are_right(model, x / DARK, y)
        return evaluate.share(int(wrong.sum()), len(x))

    for name in run.networks():
        yield Cell(
            "hu-dimming", {"network": name, "divisor": DARK}, run, misread,
            cache(partial(run.named, name)),
            **printed("hu", "text", {"network": name}, metric="dimming-x-30-misclassified"),
        )  # fmt: skip


def moved(x: Tensor, z: Tensor) -> Tensor:
    """Exact W of images scaled to the same mass."""
    return WassersteinBall(0.0).spent(x.double(), z.double())


def standardised(x: Tensor) -> Tensor:
    """CIFAR-10 as many train on it: less the mean colour, by the mean deviation of an image."""
    return models.Normalise(CIFAR10[0], DEVIATION).to(x.device)(x)


def above(x: Tensor, z: Tensor) -> Tensor:
    """Exact W of what is brighter than the mean colour; of images where a channel has none, NaN."""
    u, v = (standardised(part).clamp_min(0) for part in (x, z))
    most = torch.maximum(u.amax((1, 2, 3)), v.amax((1, 2, 3)))[:, None, None, None]
    found = moved(u / most, v / most)
    return found.where(found.isfinite(), torch.nan)


def apart(x: Tensor, z: Tensor) -> Tensor:
    """The l2 distance of standardised images."""
    return L2Ball(0.0).distance(standardised(x), standardised(z))


MEASURES = {  # and their units
    "w": (moved, "pixels"),
    "l2": (L2Ball(0.0).distance, "brightness"),
    "procrustes": (transformations.procrustes, "dissimilarity"),
    "w-standardised": (above, "pixels"),
    "l2-standardised": (apart, "deviations"),
}
