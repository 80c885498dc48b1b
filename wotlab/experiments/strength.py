"""How many images survive each attack on the plan, as the budget grows: the book's headline."""

import torch

from wotlab import GroundCost, attacks, certify, evaluate
from wotlab.balls import WassersteinBall
from wotlab.experiments.frame import Run

PIXELS = 784
BUDGETS = (5, 10, 20, 50, 100, 200, 400, 800, 1600)  # eps * 784, as the papers print it
ATTACKS = {
    "transport": lambda *given: attacks.transport(*given, steps=50, restarts=3),
    "mirror": lambda *given: attacks.mirror_ascent(*given, steps=150),
    "frank-wolfe": lambda *given: attacks.frank_wolfe(*given, steps=300),
}
FAR = 200  # from this budget on, moves of up to four pixels make `transport` stronger
WHAT = "mnist-robust-accuracy"
PRINTED = {  # Hu et al. (2020): their attack on Wong's network (table 1), on their own (table 5)
    "wong2019": {5: 100, 10: 90, 20: 85, 50: 68, 100: 39, 200: 8},
    "hu2020": {100: 81, 200: 67, 400: 41, 800: 14, 1600: 1},
}
SOURCE = {"wong2019": "Hu et al. (2020), table 1", "hu2020": "Hu et al. (2020), table 5, step 0.06"}


def strength(run: Run) -> None:
    """Robust accuracy of every network under every attack.

    `transport` may move mass by up to two pixels, from the budget `FAR` on by up to four; the
    other two by two, as published. Balls are nested: an image that breaks at one eps is broken at
    every larger one, so each budget is tried on what the last one left. Every success is
    certified by the exact distance.
    """
    x, y = run.test_images()
    for attack in ATTACKS:
        for name in run.networks():
            model, left = run.network(name), torch.arange(len(x), device=x.device)
            for budget in BUDGETS:
                case = f"{name}-{attack}-eps-{budget}"
                window = 9 if attack == "transport" and budget >= FAR else 5
                ball = WassersteinBall(budget / PIXELS, GroundCost(window))
                printed = PRINTED.get(name, {}).get(budget) if attack == "transport" else None
                run.number(
                    WHAT, case, "%",
                    lambda: measure(model, x, y, left, ball, ATTACKS[attack]),  # noqa: B023
                    printed=printed,
                    source=None if printed is None else SOURCE[name],
                    details={
                        "eps": ball.eps, "network": name, "attack": attack, "window": window,
                    },
                )  # fmt: skip
                left = x.new_tensor(run.recorded(WHAT, case).details["left"]).long()


def measure(model, x, y, left, ball: WassersteinBall, attack) -> tuple[evaluate.Share, dict]:
    """Attack what is `left`; the share of all images that still stand, with its evidence."""
    if not len(left):
        return evaluate.share(0, len(x)), {"left": [], "broken": 0, "attack_seconds": 0.0}
    done = attack(model, x[left], y[left], ball)
    won = done.success.nonzero()[:, 0]
    evidence = {"left": left.tolist(), "broken": 0, "attack_seconds": done.seconds}
    if len(won):
        seen = certify(x[left[won]], done.x_adv[won], ball)
        won = won[seen.inside]
        keep = torch.ones(len(left), dtype=torch.bool, device=x.device)
        keep[won] = False
        evidence |= {
            "left": left[keep].tolist(),
            "broken": len(won),
            "refused_by_exact_lp": int((~seen.inside).sum()),
            "largest_exact_w_over_eps": float(seen.cost.max()) / ball.eps,
            "largest_mass_error": float(seen.mass_error.max()),
            "largest_box_error": float(seen.box_error.max()),
        }
    return evaluate.share(len(evidence["left"]), len(x)), evidence
