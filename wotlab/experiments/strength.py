"""How many images survive each attack on the plan, as the budget grows: the book's headline."""

import torch

from wotlab import GroundCost, attacks, certify, evaluate
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import Run

PIXELS = 784
BUDGETS = (5, 10, 20, 50, 100, 200, 400, 800, 1600)  # eps * 784, as the papers print it
ATTACKS = {
    "transport": lambda *given: attacks.transport(*given, steps=50, restarts=3),
    "mirror": lambda *given: attacks.mirror_ascent(*given, steps=150),
    "frank-wolfe": lambda *given: attacks.frank_wolfe(*given, steps=300),
    "frank-wolfe-published": lambda *given: attacks.frank_wolfe(*given, steps=300, published=True),
}
FAR = 200  # from this budget on, moves of up to four pixels make `transport` stronger
NEAR, WIDE = 5, 9  # windows, in pixels
WHAT = "mnist-robust-accuracy"
PRINTED = {  # Hu et al. (2020): their attack on Wong's network (table 1), on their own (table 5)
    "wong2019": {5: 100, 10: 90, 20: 85, 50: 68, 100: 39, 200: 8},
    "hu2020": {100: 81, 200: 67, 400: 41, 800: 14, 1600: 1},
}
SOURCE = {"wong2019": "Hu et al. (2020), table 1", "hu2020": "Hu et al. (2020), table 5, step 0.06"}


def strength(run: Run) -> None:
    """Robust accuracy of every network under every attack.

    Moves go up to two pixels, as published. `transport` may move mass by up to four from the budget
    `FAR` on; there it is measured with two as well ("-window-5"), so that what the window adds can
    be told from what the attack adds. Balls are nested: an image that breaks at one eps is broken
    at every larger one, so each budget is tried on what the last one left. Every success is
    certified by the exact distance.
    """
    near = [budget for budget in BUDGETS if budget < FAR]
    far = [budget for budget in BUDGETS if budget >= FAR]
    for attack in ATTACKS:
        for name in run.networks():
            left = fall(run, name, attack, near, NEAR, None)
            if attack == "transport":
                fall(run, name, attack, far, WIDE, left)
                fall(run, name, attack, far, NEAR, left, f"-window-{NEAR}")
            else:
                fall(run, name, attack, far, NEAR, left)


def fall(
    run: Run, name: str, attack: str, budgets: list[int], window: int,
    left: list[int] | None, suffix: str = "",
) -> list[int] | None:  # fmt: skip
    """One attack on one network as the budget grows, from the images `left`, by their places.

    None: all of them. Returns the places of those that the last budget left.
    """
    x, y = run.test_images()
    model = run.network(name)
    for budget in budgets:
        case = f"{name}-{attack}-eps-{budget}{suffix}"
        ball = WassersteinBall(budget / PIXELS, GroundCost(window))
        theirs = PRINTED.get(name, {}) if attack == "transport" and not suffix else {}
        places = torch.arange(len(x)) if left is None else torch.tensor(left).long()
        run.number(
            WHAT, case, "%",
            lambda: measure(model, x, y, places.to(x.device), ball, ATTACKS[attack]),  # noqa: B023
            printed=theirs.get(budget),
            source=SOURCE[name] if budget in theirs else None,
            details={"eps": ball.eps, "network": name, "attack": attack, "window": window},
        )  # fmt: skip
        found = run.recorded(WHAT, case)
        if found is not None:  # else it is not asked for: then the next budget has more to break
            left = found.details["left"]
    return left


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
