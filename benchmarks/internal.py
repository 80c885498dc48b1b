"""How long do the internal distance and its attack take? Seconds, and exact matching beside others.

A batch of 32 pieces of 32x32 of scikit-learn's photographs, 3x3 sliding patches, against the same
with noise and against other pieces: beside POT's network simplex on the same assignment problems,
and beside SciPy's `linear_sum_assignment`, which `iwd.exact` itself calls, after it has taken
potentials off the costs. The rivals get the costs that wotlab computes, and are timed with them.
Then IWDA with its defaults, without early stop, on one piece of 64x64, on a GPU also on 16 at once.

    python benchmarks/internal.py [--device cuda]
"""

import ot as pot
import torch
from common import in_turns, options, parse, save
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wotlab import InternalWassersteinBall, PatchCost, attacks, data, iwd, models

SAMPLES = "pieces of scikit-learn's photographs"


def pieces(count: int, size: int) -> Tensor:
    """Squares cut from the photographs at random places."""
    photographs, _ = data.load("photographs").tensors()
    draw = torch.Generator().manual_seed(0)
    room = torch.tensor(photographs.shape[-2:]) - size
    corners = (torch.rand(count, 2, generator=draw) * room).long().tolist()
    return torch.stack(
        [photographs[k % 2, :, a : a + size, b : b + size] for k, (a, b) in enumerate(corners)]
    )


def one_by_one(solve, x: Tensor, z: Tensor) -> Tensor:
    """The distances by a solver that takes one matrix of costs at a time."""
    cost = PatchCost()
    pairs = zip(x.double().split(1), z.double().split(1), strict=True)
    return torch.tensor(
        [solve(cost.between(cost.cut(a), cost.cut(b))[0].numpy()) for a, b in pairs]
    )


def by_pot(costs) -> float:
    """The mean over patches, by the network simplex on uniform weights."""
    return float(pot.emd2([], [], costs, numItermax=10_000_000))


def by_scipy(costs) -> float:
    return float(costs[linear_sum_assignment(costs)].mean())


def distances(given) -> None:
    """Exact distances of a batch, and the rivals'."""
    x = pieces(32, 32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for case, z in {"noise": (x + 0.03 * noise).clamp(0, 1), "other-pieces": x.roll(1, 0)}.items():
        works = {
            "ours": lambda z=z: iwd.exact(x, z),
            "pot": lambda z=z: one_by_one(by_pot, x, z),
            "scipy": lambda z=z: one_by_one(by_scipy, x, z),
        }
        taken = in_turns(given.rounds, works)
        seconds = {f"{who}_seconds": s for who, (s, _) in taken.items()}
        found = {who: values for who, (_, values) in taken.items()}
        apart = max(float((found["ours"] - found[who]).abs().max()) for who in ("pot", "scipy"))
        save(
            given.out, "internal-speed", {"task": "exact", "against": case},
            taken["pot"][0] / taken["ours"][0], "x POT", SAMPLES,
            sum(seconds.values()), seed=0, **seconds,
            times_scipy=taken["scipy"][0] / taken["ours"][0], largest_difference=apart,
            rounds=given.rounds,
        )  # fmt: skip


def attack(given, count: int) -> None:
    """IWDA on some pieces at once."""
    keys = {"task": "iwda", "size": 64}
    if given.device != "cpu":
        keys |= {"device": given.device, "images": count}
    x = pieces(count, 64).to(given.device)
    eye = models.build("cifar-small", seed=0).eval().to(given.device)
    y = eye(x).argmax(1)

    def work() -> Tensor:
        draw = torch.Generator().manual_seed(0)
        ball = InternalWassersteinBall(27.0)
        return attacks.iwda(eye, x, y, ball, early_stop=False, generator=draw).cost.cpu()

    seconds, _ = in_turns(given.rounds, {"iwda": work})["iwda"]
    save(
        given.out, "internal-speed", keys, seconds, "s", SAMPLES, seconds, seed=0,
        rounds=given.rounds,
    )  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu", help='"cuda": the attack alone, there')
    given = parse(parser)
    if given.device == "cpu":
        distances(given)
        attack(given, 1)
    else:
        attack(given, 1)
        attack(given, 16)


if __name__ == "__main__":
    main()
