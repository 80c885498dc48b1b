"""Hu et al. (2020), tables 1, 2, 3 and 5: attacks whose eps grows until an image breaks.

As published: eps starts at 0.01 and grows by 0.01 a gradient step, 200 steps at most; the radius
of an image is the eps at which it first breaks, whether or not its exact distance keeps it.
"""

import csv
from functools import partial

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate
from wotlab.balls import WassersteinBall, hu_step
from wotlab.experiments.runner import Run
from wotlab.projections import constrained_sinkhorn, projected_sinkhorn

PIXELS, STEPS = 784, 200
RADII = "hu2020_radii_against_wong2019.tsv"


def grow(t: int) -> float:
    """eps at step t."""
    return 0.01 * (t + 1)


HU = partial(constrained_sinkhorn, rule="published")  # stops by the paper's own test


def cold(x, w, eps, ground_cost):
    """Hu's projection without the duals of the last step."""
    return HU(x, w, eps, ground_cost)


WONG = {"rule": "sign", "step_size": 0.1}
ATTACKS = {
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
EIGHT = (5, 10, 20, 50, 100, 200, 500, 1000)  # eps * 784 of tables 1 and 3
FIVE = (100, 200, 400, 800, 1600)  # of table 5
PRINTED = {  # accuracy in % at these budgets
    ("wong2019", "wong"): dict(zip(EIGHT, (100, 100, 100, 100, 94, 91, 83, 71), strict=True)),
    ("wong2019", "large-step"): dict(zip(EIGHT, (100, 96, 96, 94, 88, 69, 12, 0), strict=True)),
    ("wong2019", "hu"): dict(zip(EIGHT, (100, 90, 85, 68, 39, 8, 1, 1), strict=True)),
    ("hu2020", "step-0.02"): dict(zip(FIVE, (84, 72, 49, 21, 2), strict=True)),
    ("hu2020", "step-0.04"): dict(zip(FIVE, (81, 68, 42, 15, 1), strict=True)),
    ("hu2020", "hu"): dict(zip(FIVE, (81, 67, 41, 14, 1), strict=True)),
    ("hu2020", "step-0.08"): dict(zip(FIVE, (81, 67, 41, 14, 1), strict=True)),
}
EPS = {"wong": 0.443, "cold": 0.46, "warm": 0.46, "hu": 0.135}  # table 2, standard network
MINUTES = {"wong": 34, "cold": 78, "warm": 38, "hu": 38}  # for 10,000 images on a P100


def table_1(run: Run) -> None:
    """Wong's robust network under Wong's attack and Hu's, and Hu's released radii beside them."""
    several(run, "wong2019", ("wong", "hu"))
    if (run.checkpoints / RADII).exists():
        run.number("hu-growing", "wong2019-released", "eps", lambda: released(run))


def table_2(run: Run) -> None:
    """The standard network: mean radius and time of four attacks."""
    several(run, "standard", tuple(EPS))


def table_3(run: Run) -> None:
    """What each change of Wong's attack gives."""
    several(run, "wong2019", ("wong", "large-step", "hu"))


def table_5(run: Run) -> None:
    """Step sizes on Hu's network."""
    several(run, "hu2020", ("step-0.02", "step-0.04", "hu", "step-0.08"))


def several(run: Run, name: str, kinds: tuple[str, ...]) -> None:
    x, y = run.test_images()
    model = run.network(name)
    for kind in kinds:
        mean = EPS.get(kind) if name == "standard" else None
        run.number(
            "hu-growing", f"{name}-{kind}", "eps",
            lambda: radii(model, x, y, ATTACKS[kind]),  # noqa: B023
            printed=mean, source="Hu et al. (2020), table 2" if mean else None,
            details={
                "printed_accuracy": PRINTED.get((name, kind)),
                "stop_test": "dual" if kind == "wong" else HU.keywords["rule"],
                "printed_minutes": MINUTES.get(kind) if name == "standard" else None,
            },
            note="Mean radius; an image that never broke counts with the largest eps, 2.",
        )  # fmt: skip


def radii(model: nn.Module, x: Tensor, y: Tensor, options: dict) -> tuple[float, dict]:
    """Mean radius; and every radius, with what the broken images really spent."""
    ball = WassersteinBall(grow(STEPS - 1))
    done = attacks.pgd(
        model, x, y, ball, steps=STEPS, schedule=grow, repaired=False, batch_size=100, **options
    )
    with torch.no_grad():
        broken = model(done.x_adv).argmax(1) != y
    radius = torch.where(broken, 0.01 * done.steps, torch.inf)
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
    accuracy = {b: evaluate.share(int((found > b / PIXELS).sum()), len(found)) for b in EIGHT}
    return float(right.mean()), {
        "radii": listed(found),
        "accuracy": {b: 100 * share.value for b, share in accuracy.items()},
    }


def listed(radius: Tensor) -> list[float | None]:
    """Radii as JSON takes them: None where an image never broke."""
    return [round(r, 2) if r < float("inf") else None for r in radius.tolist()]
