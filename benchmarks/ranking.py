"""Which attack comes nearest to the best that is known? Ranked as AttackBench ranks those for l_p.

Cina et al. (AAAI 2025): an attack gives for each image i the distance d_i of the nearest breaking
image that it finds within so many propagations (0 where the clean image is wrong, infinite where
it finds none). Its robust accuracy at eps is the share of images with d_i > eps. The envelope has
the least distance d*_i over all attacks, and ends at eps_0, the largest d*_i (here at most the
largest budget). With A(d) = mean_i min(d_i, eps_0), the area below the curve up to eps_0,

    local optimality = 1 - (A(d) - A(d*)) / (eps_0 * clean accuracy - A(d*)):

100 % for the envelope, 0 % for an attack that finds nothing. Global optimality is the mean of the
local ones over the networks.

Here curves are read at ten budgets, evenly spaced up to one that leaves next to nothing of the
network: d_i is the least budget that holds a breaking image, by its exact distance on the whole
grid, mass and range to 1e-4 (`wotlab.certify`). All attacks get --passes propagations an image,
forward and backward ones added. Those at a fixed eps get as many again at each budget, the
smallest first, on the images that they have not broken yet. Those that find their own eps get them
once for all budgets: `radius`, the growing attacks of Hu and of ART, and Subramanyam's, whose
projection knows no eps and which stops at the first image that breaks.

Rivals run with the repair that keeps their images in the ball: without it next to none of them
would count. The published Frank-Wolfe has its own, one projection at the end. ART's attack (where
adversarial-robustness-toolbox 1.20 is installed; it takes half of the time) has Wong's step and
regularisation, since its own overflow, and its images are projected and repaired afterwards.

    python benchmarks/ranking.py [--images 100] [--passes 400] [--networks NAME ...]
    python benchmarks/ranking.py --figure FILE    # draws the records of --out
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from attacks import (
    BATCH,
    HU,
    SUBRAMANYAM,
    left,
    networks,
    options_of_images,
    toolbox,
    wrong,
)
from common import parse, save, timed
from torch import Tensor, nn

from wotlab import WassersteinBall, attacks, certify, plots, results
from wotlab._base.modes import eval_mode
from wotlab.balls import TOLERANCE
from wotlab.experiments import hu
from wotlab.experiments.runner import NETWORKS
from wotlab.plans import Moves, repair
from wotlab.projections import constrained_sinkhorn, projected_sinkhorn

WHAT, PIXELS, COUNT = "attack-ranking", 784, 10
NAMES = tuple(NETWORKS["mnist"])
LARGEST = {"standard": 200, "wong2019": 40, "hu2020": 1000, "ours": 500, "pgd-at": 200}  # x 784
RUNS = 2  # of `transport` and `radius`: with more each would be too short at 400 propagations

OURS = ("transport", "radius", "mirror-ascent", "frank-wolfe")

# an attack: model, images, labels, ball and propagations an image to attacked images
Attack = Callable[[nn.Module, Tensor, Tensor, WassersteinBall, int], Tensor]


def of_steps(attack: Callable, *, runs: int = 1, **settings) -> Attack:
    """One of ours: a step goes there and back, a run looks at its end, further ones at classes."""

    def run(model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, passes: int) -> Tensor:
        steps = (passes - runs - (runs > 1)) // (2 * runs)
        return attack(model, x, y, ball, steps=steps, batch_size=BATCH, **settings).x_adv

    return run


def growing(model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, passes: int) -> Tensor:
    """Hu's attack: eps grows from step to step, up to the ball's with the last one."""
    steps = (passes - 1) // 2
    return attacks.pgd(
        model, x, y, ball, steps=steps, schedule=lambda t: ball.eps * (t + 1) / steps,
        batch_size=BATCH,
    ).x_adv  # fmt: skip


def of_art(model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, passes: int) -> Tensor:
    """ART's attack, its images projected and repaired afterwards."""
    w = toolbox(model, x, y, ball, (passes - 1) // 3).x_adv
    plan = constrained_sinkhorn(x, w, ball.eps, ball.ground_cost).plan
    moves = Moves(x, ball.ground_cost)
    return repair(moves, moves.shares(plan), ball.eps)[1]


AT_EACH: dict[str, Attack] = {
    "transport": of_steps(attacks.transport, runs=RUNS, restarts=RUNS - 1),
    "mirror-ascent": of_steps(attacks.mirror_ascent),
    "frank-wolfe": of_steps(attacks.frank_wolfe),
    "frank-wolfe-wu": of_steps(attacks.frank_wolfe, published=True),
    "pgd-wong": of_steps(
        attacks.pgd, **hu.WONG, projection=partial(projected_sinkhorn, clamp=True)
    ),
    "pgd-hu": of_steps(attacks.pgd, **HU["repaired"]),
}  # fmt: skip
AT_ONCE: dict[str, Attack] = {
    "radius": of_steps(attacks.radius, runs=RUNS, restarts=RUNS - 1),
    "pgd-hu-growing": growing,
    "pgd-subramanyam": of_steps(
        attacks.pgd, rule="sign", step_size=0.02, projection=SUBRAMANYAM["corrected"]
    ),
} | ({"art": of_art} if find_spec("art") else {})


def distances(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, budgets: list[float],
    passes: int, *, once: bool = False,
) -> tuple[Tensor, dict[str, int]]:  # fmt: skip
    """The least budget (eps * 784) that holds a breaking image of each; called once, or at each.

    Also the propagations that it took, and how many images it got, each call counted.
    """
    found = torch.where(wrong(model, x, y), 0.0, torch.inf).double()
    spent = {"forward": 0, "backward": 0, "attacked": 0}
    scale = torch.tensor(budgets).double()
    for budget in budgets[-1:] if once else budgets:
        rows = found.isinf().nonzero()[:, 0]
        if not len(rows):
            break
        a, b, ball = x[rows], y[rows], WassersteinBall(budget / PIXELS)
        with eval_mode(model) as seen:
            z = attack(model, a, b, ball, passes)
        more = (seen.forward, seen.backward, len(rows))
        spent = {key: spent[key] + n for key, n in zip(spent, more, strict=True)}
        judged = certify(a, z, ball)
        broken = wrong(model, z, b) & judged.inside
        least = torch.searchsorted(scale * (1 + TOLERANCE), PIXELS * judged.cost.double())
        found[rows[broken]] = scale[least[broken]] if once else budget
    return found, spent


def area(found: Tensor, end: float) -> float:
    """Below the curve of robust accuracy, up to `end`."""
    return float(found.clamp(max=end).mean())


def optimality(found: Tensor, best: Tensor, end: float) -> float:
    """Local optimality, as a share; `end` is eps_0. 1 where nobody finds anything."""
    least, nothing = area(best, end), area(torch.where(best > 0, torch.inf, 0.0), end)
    return 1 - (area(found, end) - least) / (nothing - least) if least < nothing else 1.0


def local(given, name: str, model: nn.Module, x: Tensor, y: Tensor, samples: str) -> None:
    """Every attack on one network, beside the envelope of all of them."""
    largest = LARGEST.get(name, 200)
    budgets = [largest * (k + 1) / COUNT for k in range(COUNT)]
    taken = {}
    for case, attack in (AT_EACH | AT_ONCE).items():
        run = partial(distances, attack, model, x, y, budgets, given.passes, once=case in AT_ONCE)
        taken[case] = timed(run)
        print(f"{name}, {case}: {taken[case][0]:.0f} s", flush=True)
    best = torch.stack([found for _, (found, _) in taken.values()]).amin(0)
    end = min(float(best.max()), largest)
    taken["envelope"] = sum(seconds for seconds, _ in taken.values()), (best, {})
    for case, (seconds, (found, spent)) in taken.items():
        save(
            given.out, WHAT, {"attack": case, "network": name, "passes": given.passes},
            100 * optimality(found, best, end), "%", samples, seconds, eps_0=end, **spent,
            curve=[[budget, left(found <= budget)] for budget in (0, *budgets)],
        )  # fmt: skip


def recorded(given) -> dict[str, dict[str, results.Record]]:
    """The records of so many propagations, by attack and network."""
    found, by = defaultdict(dict), ("attack", "network")
    for key, record in results.table(WHAT, *by, folder=given.out, passes=given.passes).items():
        found[key[0]][key[1]] = record
    return found


def overall(given) -> None:
    """Global optimality, of all networks that are recorded; the ranking, as a table."""
    found = recorded(given)
    best = found.pop("envelope")
    names = [name for name in (*NAMES, "trained") if name in best]
    for attack, row in found.items():
        some = [row[name] for name in names if name in row]
        if len(some) == len(names) and len({record.samples for record in some}) == 1:
            save(
                given.out, WHAT, {"attack": attack, "network": "all", "passes": given.passes},
                sum(record.value for record in some) / len(names), "%", some[0].samples,
                sum(record.seconds for record in some), networks=names,
            )  # fmt: skip
    found = {attack: row for attack, row in recorded(given).items() if "all" in row}
    print(f"| attack | {' | '.join(names)} | all |\n{'|---' * (len(names) + 2)}|")
    for attack in sorted(found, key=lambda each: -found[each]["all"].value):
        cells = [f"{found[attack][name].value:.1f}" for name in (*names, "all")]
        print(f"| {attack} | {' | '.join(cells)} |")


def draw(given) -> None:
    """The curves, a panel a network, from the records; ours are solid, rivals dotted."""
    import matplotlib.pyplot as plt

    plots.use_style()
    found = recorded(given)
    names = [name for name in (*NAMES, "trained") if name in found["envelope"]]
    shown = [*OURS, *sorted(found.keys() - {*OURS, "envelope"}), "envelope"]
    figure, axes = plt.subplots(2, len(names) // 2 + 1, figsize=(9, 5.5), sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        for k, attack in enumerate(shown):
            if name not in found[attack]:
                continue
            look = {"color": f"C{k % 5}", "linestyle": "-" if attack in OURS else ":", "lw": 1.2}
            if attack == "envelope":
                look = {"color": "black", "linestyle": "-", "lw": 2}
            ax.plot(*zip(*found[attack][name].details["curve"], strict=True), label=attack, **look)
        ax.set(title=name, xlim=(0, LARGEST.get(name, 200)), ylim=(0, 100), xlabel="eps * 784")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.supylabel("robust accuracy, %")
    figure.savefig(given.figure, metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = options_of_images(__doc__)
    parser.add_argument("--passes", type=int, default=400, help="propagations an image")
    parser.add_argument("--networks", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--figure", help="draw the records there, and measure nothing")
    given = parse(parser)
    if given.figure:
        return draw(given)
    models, x, y, samples = networks(given, given.networks)
    for name, model in models.items():
        local(given, name, model, x, y, samples)
    overall(given)


if __name__ == "__main__":
    main()
