"""How fast is `wotlab.ot.sinkhorn`? Ratios to other solvers, measured in one run.

100 pairs of 28x28 digits, l1 ground cost, marginal error 1e-6, float64. MNIST where WOTLAB_DATA
has it, else scikit-learn's digits enlarged. Solvers that take one pair at a time are timed on
`--pairs` of the pairs, evenly spread, and the median is counted 100 times.

    python benchmarks/sinkhorn.py [--pairs 10] [--reg 0.5 0.1]
"""

import argparse
import subprocess
import sys
import time
import warnings
from statistics import median

import numpy as np
import ot as pot
import torch
from geomloss import SamplesLoss

import wotlab
from wotlab import GroundCost, ot, results

PAIRS, TOL = 100, 1e-6
L1 = GroundCost(window=None, p=1, norm=1)
MEMORY = """
import torch, wotlab
x = torch.rand(100, 1, 64, 64, generator=torch.Generator().manual_seed(0))
done = wotlab.ot.sinkhorn(x, x.flip(0), wotlab.GroundCost(None, norm=1), reg=0.5)
assert done.converged.all()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def pairs() -> tuple[torch.Tensor, torch.Tensor, str]:
    try:
        x, _ = wotlab.data.load("mnist", "test", download=False).tensors(slice(0, 2 * PAIRS))
        name = "MNIST test images 0 to 199"
    except (OSError, ValueError):
        x, _ = wotlab.data.load("digits", "test").tensors(slice(0, 2 * PAIRS))
        x = torch.nn.functional.interpolate(x, size=28, mode="bilinear")
        name = "scikit-learn digits 0 to 199 of the test split, enlarged to 28x28"
    x = x.double()
    return x[:PAIRS], x[PAIRS:], name


def timed(run, repeats: int) -> tuple[float, object]:
    """Median seconds of `repeats` runs, and what the last one gave."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - start)
    return median(seconds), out


def marginal_error(plan: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum())


def pot_loop(a, b, cost, reg, sample) -> tuple[float, float]:
    """POT's log-domain Sinkhorn, one pair after the other: seconds for 100 pairs, largest error."""
    seconds, errors = [], []
    for k in sample:
        run = lambda k=k: pot.sinkhorn(  # noqa: E731
            a[k], b[k], cost, reg, method="sinkhorn_log", stopThr=TOL, numItermax=100_000
        )
        spent, plan = timed(run, 1)
        seconds.append(spent)
        errors.append(marginal_error(plan, a[k], b[k]))
    return median(seconds) * PAIRS, max(errors)


def pot_batch(a, b, cost, reg, sample) -> tuple[float, float]:
    """POT's batch solver in the log domain on the sampled pairs at once."""
    a, b = (torch.from_numpy(v[sample]) for v in (a, b))
    costs = torch.from_numpy(cost).expand(len(a), -1, -1)
    run = lambda: pot.solve_batch(  # noqa: E731
        costs, reg, a.clamp_min(1e-300), b.clamp_min(1e-300), 100_000, TOL, "log_sinkhorn"
    )
    spent, out = timed(run, 1)
    errors = [
        marginal_error(p.numpy(), u.numpy(), v.numpy())
        for p, u, v in zip(out.plan, a, b, strict=True)
    ]
    return spent / len(a) * PAIRS, max(errors)


def geomloss_batch(a, b, cost, reg, sample) -> tuple[float, float]:
    """geomloss (annealed, a fixed number of steps: its error is not set, only measured)."""
    a, b = (torch.from_numpy(v[sample]) for v in (a, b))
    grid = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double()
    grid = grid.repeat(len(a), 1, 1)
    loss = SamplesLoss(
        "sinkhorn", p=1, blur=reg, scaling=0.9, debias=False, potentials=True,
        cost=lambda x, y: (x[:, :, None] - y[:, None, :]).abs().sum(-1), backend="tensorized",
    )  # fmt: skip
    spent, (f, g) = timed(lambda: loss(a, grid, b, grid), 1)
    scaled = (f[:, :, None] + g[:, None, :] - torch.from_numpy(cost)) / reg
    plans = a[:, :, None] * b[:, None, :] * scaled.exp()
    errors = [
        marginal_error(p.numpy(), u.numpy(), v.numpy()) for p, u, v in zip(plans, a, b, strict=True)
    ]
    return spent / len(a) * PAIRS, max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10, help="pairs that slow solvers get")
    parser.add_argument("--reg", type=float, nargs="+", default=[0.5, 0.1], help="in pixels")
    parser.add_argument("--rivals", nargs="+", default=["pot-loop", "pot-batch", "geomloss"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="results", help="folder of the records")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # POT warns of log(0) at empty pixels
    x, y, data = pairs()
    a, b = ((v / v.sum((1, 2, 3), keepdim=True)).flatten(1).numpy() for v in (x, y))
    cost = L1.dense(28, 28).numpy()
    sample = np.linspace(0, PAIRS - 1, given.pairs).astype(int)
    few = sample[:: max(1, given.pairs // 2)]  # for the solvers that hold n x n numbers a pair

    def save(what: str, case: str, value: float, unit: str, seconds: float, **details) -> None:
        record = results.Record(
            what=what, case=case, value=value, unit=unit, samples=data, seed=None,
            command=" ".join(["python benchmarks/sinkhorn.py", *sys.argv[1:]]),
            seconds=seconds,
            details=details,
        )  # fmt: skip
        results.write(record, given.out)
        print(f"{what} {case}: {value:.3g} {unit} {details}", flush=True)

    ot.sinkhorn(x, y, L1, 1.0)  # warm up
    for reg in given.reg:
        ours, done = timed(lambda reg=reg: ot.sinkhorn(x, y, L1, reg, tol=TOL), given.repeats)
        plans = done.plan[sample, 0].numpy()
        error = max(marginal_error(p, a[k], b[k]) for p, k in zip(plans, sample, strict=True))
        rivals = {
            "pot-loop": lambda reg=reg: pot_loop(a, b, cost, reg, sample),
            "pot-batch": lambda reg=reg: pot_batch(a, b, cost, reg, few),
            "geomloss": lambda reg=reg: geomloss_batch(a, b, cost, reg, few),
        }
        for rival in given.rivals:
            spent, (theirs, their_error) = timed(rivals[rival], 1)
            save(
                "sinkhorn-speed", f"reg-{reg}-{rival}", theirs / ours, "times as fast", spent,
                reg=reg, ours_seconds=ours, ours_error=error,
                theirs_seconds=theirs, theirs_error=their_error,
            )  # fmt: skip

    ours, done = timed(lambda: ot.exact(x, y, L1), given.repeats)
    theirs, values = timed(
        lambda: [pot.emd2(a[k], b[k], cost) for k in range(PAIRS)], given.repeats
    )
    gap = float(np.abs(np.array(values) - done.primal.numpy()).max())
    save(
        "exact-speed", "pot-emd2", theirs / ours, "times as fast", ours + theirs,
        ours_seconds=ours, theirs_seconds=theirs, largest_difference=gap,
    )  # fmt: skip
    spent, memory = timed(
        lambda: subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True), 1
    )
    save("sinkhorn-memory", "64x64-100-pairs", int(memory.stdout) / 1024, "MiB", spent, reg=0.5)


if __name__ == "__main__":
    main()
