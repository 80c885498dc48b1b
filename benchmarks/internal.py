"""How long do the internal distance and its attack take? Seconds, and exact matching against POT.

A batch of 32 pieces of 32x32 of scikit-learn's photographs, 3x3 sliding patches, against the same
with noise and against other pieces; IWDA with its defaults, without early stop, on one piece of
64x64, on a GPU also on 16 at once. Medians of `--rounds` rounds, of the attack of at most 3; POT,
which solves one pair at a time on one core, runs once.

    python benchmarks/internal.py [--rounds 5] [--device cuda]
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import ot as pot
import torch
from torch import Tensor

from wotlab import InternalWassersteinBall, PatchCost, attacks, data, internal, models, results

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


def by_pot(x: Tensor, z: Tensor) -> None:
    """The same distances by POT's network simplex, an image after the other."""
    cost, none = PatchCost(), torch.tensor([]).numpy()
    for a, b in zip(x.split(1), z.split(1), strict=True):
        pot.emd2(none, none, cost.between(cost.cut(a.double()), cost.cut(b.double()))[0].numpy())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def record(case: str, value: float, unit: str, details: dict) -> None:
    made = results.Record(
        what="internal-speed", case=case, value=value, unit=unit, samples=SAMPLES, seed=0,
        seconds=details["seconds"],
        command=f"python benchmarks/internal.py {' '.join(sys.argv[1:])}".strip(),
        details=details | {"threads": torch.get_num_threads()},
    )  # fmt: skip
    results.write(made)
    print(f"{case}: {value:.2f} {unit} {details}", flush=True)


def distances(rounds: range) -> None:
    """Exact distances of a batch, and POT's."""
    x = pieces(32, 32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for case, z in {"noise": (x + 0.03 * noise).clamp(0, 1), "other pieces": x.roll(1, 0)}.items():
        ours = [seconds(lambda z=z: internal.exact(x, z)) for _ in rounds]
        theirs = [seconds(lambda z=z: by_pot(x, z)) for _ in rounds[:1]]
        details = {
            "seconds": median(ours),
            "pot_seconds": median(theirs),
            "rounds": len(rounds),
            "pot_rounds": len(theirs),
        }
        record(f"exact-{case.replace(' ', '-')}", median(theirs) / median(ours), "x POT", details)


def attack(case: str, count: int, rounds: range, device: str) -> None:
    """IWDA on some pieces at once."""
    x, eye = pieces(count, 64).to(device), models.build("cifar-small", seed=0).eval().to(device)
    y = eye(x).argmax(1)
    taken = [
        seconds(lambda: attacks.iwda(
            eye, x, y, InternalWassersteinBall(27.0), early_stop=False,
            generator=torch.Generator().manual_seed(0),
        ).cost.cpu())
        for _ in rounds[:3]
    ]  # fmt: skip
    record(case, median(taken), "s", {"seconds": median(taken), "rounds": len(taken)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help='"cuda": the attack alone, there')
    given = parser.parse_args()
    rounds = range(given.rounds)
    if given.device == "cpu":
        distances(rounds)
        attack("iwda-64", 1, rounds, given.device)
    else:
        attack(f"iwda-64-{given.device}", 1, rounds, given.device)
        attack(f"iwda-64-{given.device}-16-at-once", 16, rounds, given.device)


if __name__ == "__main__":
    main()
