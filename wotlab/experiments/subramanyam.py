"""Subramanyam (2021), table I: the unbalanced attack at its printed parameters."""

import torch
from torch import Tensor, nn

from wotlab import attacks, certify, evaluate
from wotlab.balls import WassersteinBall
from wotlab.experiments.frame import Run
from wotlab.projections import unbalanced_sinkhorn

EPS, STEP, STEPS = 0.2, 0.02, 10
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
                note="Accuracy on the attack's own images, whether or not they keep any budget.",
            )  # fmt: skip


def attacked(model: nn.Module, x: Tensor, y: Tensor, variant: str) -> tuple[evaluate.Share, dict]:
    def project(x, w, eps, cost, warm=None):
        return unbalanced_sinkhorn(x, w, cost, variant=variant, iterations=10)

    ball = WassersteinBall(EPS)
    done = attacks.pgd(
        model, x, y, ball, steps=STEPS, step_size=STEP, projection=project, repaired=False,
        batch_size=100,
    )  # fmt: skip
    z = done.x_adv.clamp(0, 1)
    with torch.no_grad():
        right = model(z).argmax(1) == y
    seen = certify(x, z, ball)
    kept = int((right | ~seen.inside).sum())
    return evaluate.share(int(right.sum()), len(x)), {
        "accuracy_by_images_inside_the_ball": 100 * kept / len(x),
        "w_mean": float(seen.cost.mean()),
        "mass_change_mean": float((z.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).mean()),
        "largest_change_of_a_pixel": float((z - x).abs().max()),
        "attack_seconds": done.seconds,
    }
