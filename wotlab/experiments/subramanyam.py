"""Subramanyam (2021), table I: the unbalanced attack at its printed parameters.

Each step is one of FGSM, 0.02 along the gradient's sign, and then ten iterations of his projection.
His plan has the full cost matrix. At his weights it moves no mass, so that a plan which only joins
each pixel to itself gives the same image to 1e-6 (a test compares them), in a thousandth of the
time.
"""

from functools import partial

import torch
from torch import Tensor, nn

from wotlab import GroundCost, attacks, certify, evaluate
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import Run
from wotlab.projections import Projection, unbalanced_sinkhorn

EPS, RULE, STEP, STEPS = 0.2, "sign", 0.02, 10
ITERATIONS, WINDOW = 10, 1
BALL = WassersteinBall(EPS, GroundCost(WINDOW))
PRINTED = {"wong2019": 0.0, "hu2020": 4.66, "standard": 1.7}  # accuracy in %
VARIANTS = ("printed", "corrected", "l2")


def table_1(run: Run) -> None:
    """Accuracy under ten steps of it, as published and by what is inside the ball of eps 0.2."""
    x, y = run.test_images()
    for name in run.networks():
        for variant in VARIANTS:
            given = PRINTED.get(name) if variant == "printed" else None
            run.number(
                "subramanyam-table-1", f"{name}-{variant}", "%",
                lambda: attacked(run.network(name), x, y, variant),  # noqa: B023
                printed=given,
                source="Subramanyam (2021), table I" if given is not None else None,
                details={"rule": RULE, "step": STEP, "steps": STEPS, "window": WINDOW},
                note="Accuracy on the attack's own images, whether or not they keep any budget. "
                     "At the paper's weights no mass moves: its full cost matrix gives the same "
                     "images as this window of one pixel.",
            )  # fmt: skip


def project(variant: str, x: Tensor, w: Tensor, ground_cost: GroundCost) -> Projection:
    """His projection with the full cost matrix, by a plan with the window of `ground_cost`."""
    return unbalanced_sinkhorn(x, w, ground_cost, variant=variant, max_iter=ITERATIONS)


def attacked(model: nn.Module, x: Tensor, y: Tensor, variant: str) -> tuple[evaluate.Share, dict]:
    done = attacks.pgd(
        model, x, y, BALL, steps=STEPS, step_size=STEP, rule=RULE,
        projection=partial(project, variant), repaired=False, batch_size=100,
    )  # fmt: skip
    z = done.x_adv.clamp(0, 1)
    with torch.no_grad():
        right = model(z).argmax(1) == y
    seen = certify(x, z, BALL)
    kept = int((right | ~seen.inside).sum())
    return evaluate.share(int(right.sum()), len(x)), {
        "accuracy_by_images_inside_the_ball": 100 * kept / len(x),
        "w_mean": float(seen.cost.mean()),
        "mass_change_mean": float((z.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).mean()),
        "largest_change_of_a_pixel": float((z - x).abs().max()),
        "attack_seconds": done.seconds,
    }
