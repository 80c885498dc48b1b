"""How fast is `wotlab.ot.sinkhorn`? Ratios to other solvers, measured in one run.

100 pairs of 28x28 MNIST digits, l1 ground cost, float64. Everybody's marginals are right to 1e-6
in l1: POT stops by the l2 error of one marginal, so it is told 1e-6 / sqrt(lit pixels), which
bounds the l1 error. The rivals get the pixels that hold mass alone, cut out beforehand, as their
users call them; "all-pixels" is the whole grid. POT's two fastest are timed on all pairs, the rest
in each round on other pairs, evenly spread, and the median of a pair is counted 100 times.

    python benchmarks/sinkhorn.py [--reg 0.5 0.1] [--rivals pot geomloss]
"""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import ot as pot
import torch
from common import in_turns, mnist, options, parse, save, timed
from geomloss import SamplesLoss
from geomloss import ot as geomloss_ot

from wotlab import GroundCost, ot

PAIRS, TOL, MOST = 100, 1e-6, 100_000
BATCH = 4  # pairs that batch solvers get at once: more are padded to more, and slower a pair
TINY = 1e-20  # mass that POT's plain solver wants on empty pixels, where it gets them
NARROW = 1e-6  # of geomloss's annealing: its regularisation falls by this in all
SOLVE_STEPS = 1000  # of geomloss's new solver, whose error falls as 1 / steps
L1 = GroundCost(window=None, p=1, norm=1)
MEMORY = """
import torch, wotlab
x = torch.rand(100, 1, 64, 64, generator=torch.Generator().manual_seed(0))
done = wotlab.ot.sinkhorn(x, x.flip(0), wotlab.GroundCost(None, norm=1), reg=0.5)
assert done.converged.all()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@dataclass(frozen=True)
class Pair:
    """Two histograms of mass 1, where their mass lies, and what moving it costs."""

    a: np.ndarray
    b: np.ndarray
    i: np.ndarray
    j: np.ndarray
    cost: np.ndarray

    @property
    def stop(self) -> float:
        """An l2 error of one marginal that keeps its l1 error below TOL."""
        return TOL / max((self.a > TINY).sum(), (self.b > TINY).sum()) ** 0.5

    def error(self, plan: np.ndarray) -> float:
        """l1 error of the marginals."""
        return float(np.abs(plan.sum(1) - self.a).sum() + np.abs(plan.sum(0) - self.b).sum())


def pair(a: np.ndarray, b: np.ndarray, cost: np.ndarray, lit: bool) -> Pair:
    """The pair on the pixels that hold mass, or on all."""
    if not lit:
        return Pair(a, b, np.arange(len(a)), np.arange(len(b)), cost)
    i, j = a.nonzero()[0], b.nonzero()[0]
    return Pair(a[i], b[j], i, j, np.ascontiguousarray(cost[np.ix_(i, j)]))


Timed = list[tuple[float, np.ndarray]]  # seconds and plan of each pair


def pot_loop(method: str, pairs: list[Pair], reg: float) -> Timed:
    """POT's `sinkhorn`, one pair after the other."""

    def solve(p: Pair) -> np.ndarray:
        a, b = (p.a, p.b) if method == "sinkhorn_log" else (p.a.clip(TINY), p.b.clip(TINY))
        return pot.sinkhorn(a, b, p.cost, reg, method=method, stopThr=p.stop, numItermax=MOST)

    return [timed(partial(solve, p)) for p in pairs]


def pot_batch(method: str, pairs: list[Pair], reg: float, device: str = "cpu") -> Timed:
    """POT's batch solver on pairs that are padded to one size with pixels of mass 0."""
    a, b, cost = (part.to(device) for part in padded(pairs))
    seconds, done = timed(
        lambda: pot.solve_batch(
            cost, reg, a, b, MOST, min(p.stop for p in pairs), method, grad="detach"
        )
    )
    return shared(seconds, done.plan, pairs)


def geomloss_loss(pairs: list[Pair], reg: float, device: str = "cpu") -> Timed:
    """geomloss's `SamplesLoss`, with nearly constant regularisation, one pair after the other.

    It takes a fixed number of steps. Each pair gets what it needs: 250, doubled (without being
    timed) until its error is at most TOL. Annealed from the diameter, as it is by default, its
    error falls only as 1 / steps.
    """
    grid = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double().to(device)
    found = []
    for p in pairs:
        given = [torch.from_numpy(v)[None].to(device) for v in (p.a, p.b)]
        given = [given[0], grid[p.i][None], given[1], grid[p.j][None]]
        steps, error = 125, np.inf
        while error > TOL and steps < MOST:
            steps *= 2
            loss = SamplesLoss(
                "sinkhorn", p=1, blur=reg, diameter=reg * (1 + NARROW), debias=False,
                scaling=(1 + NARROW) ** (-1 / steps), potentials=True, backend="tensorized",
                cost=lambda x, y: (x[:, :, None] - y[:, None, :]).abs().sum(-1),
            )  # fmt: skip
            seconds, (f, g) = timed(lambda: loss(*given))  # noqa: B023
            f, g = f[0].cpu().numpy(), g[0].cpu().numpy()
            plan = p.a[:, None] * p.b * np.exp((f[:, None] + g - p.cost) / reg)
            error = p.error(plan)
        found.append((seconds, plan))
    return found


def flash(pairs: list[Pair], reg: float, device: str) -> Timed:
    """flash-sinkhorn, for squared Euclidean costs in float32, one pair after the other.

    Its steps are doubled, without being timed, until its error is at most TOL or falls no more.
    """
    from flash_sinkhorn import SamplesLoss as Flash

    grid = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).to(device)
    found = []
    for p in pairs:
        a, b = (torch.from_numpy(v).float().to(device) for v in (p.a, p.b))
        given, best, steps = (a, grid[p.i], b, grid[p.j]), np.inf, 125
        while steps < MOST:
            steps *= 2
            loss = Flash(
                "sinkhorn", blur=reg**0.5, potentials=True, backend="alternating", eps=reg,
                use_epsilon_scaling=False, n_iters=steps, allow_tf32=False,
            )  # fmt: skip
            seconds, potentials = timed(lambda: loss(*given))  # noqa: B023
            f, g = (v.double().cpu().numpy() for v in potentials)
            plan = p.a[:, None] * p.b * np.exp((f[:, None] + g - p.cost) / reg)
            before, error = best, p.error(plan)
            if error < best:
                best, kept = error, (seconds, plan)
            if best <= TOL or not error < before / 2:
                break
        found.append(kept)
    return found


def geomloss_solve(pairs: list[Pair], reg: float) -> Timed:
    """geomloss's new `ot.solve`, annealed from the largest cost, one pair after the other."""

    def solve(p: Pair) -> np.ndarray:
        return geomloss_ot.solve(p.cost, reg=reg, a=p.a, b=p.b, max_iter=SOLVE_STEPS).plan

    return [timed(partial(solve, p)) for p in pairs]


def padded(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pairs in three tensors, with empty pixels at cost 0 where they are too small."""
    n, m = max(len(p.a) for p in pairs), max(len(p.b) for p in pairs)
    a, b, cost = (np.zeros((len(pairs), *shape)) for shape in ((n,), (m,), (n, m)))
    for k, p in enumerate(pairs):
        a[k, : len(p.a)], b[k, : len(p.b)] = p.a, p.b
        cost[k, : len(p.a), : len(p.b)] = p.cost
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(cost)


def shared(seconds: float, plans: torch.Tensor, pairs: list[Pair]) -> Timed:
    """A batch's seconds, the same for each of its pairs, and their plans without the padding."""
    plans = plans.cpu().numpy()
    cut = (plan[: len(p.a), : len(p.b)] for plan, p in zip(plans, pairs, strict=True))
    return [(seconds / len(pairs), plan) for plan in cut]


@dataclass(frozen=True)
class Rival:
    solve: Callable[[list[Pair], float], Timed]
    pairs: int = BATCH  # that it gets in a round
    lit: bool = True  # only pixels that hold mass


RIVALS = {
    "pot-plain": Rival(partial(pot_loop, "sinkhorn"), PAIRS),
    "pot-stabilized": Rival(partial(pot_loop, "sinkhorn_stabilized"), PAIRS),
    "pot-log": Rival(partial(pot_loop, "sinkhorn_log")),
    "pot-batch-plain": Rival(partial(pot_batch, "sinkhorn")),
    "pot-batch-log": Rival(partial(pot_batch, "log_sinkhorn")),
    "geomloss": Rival(geomloss_loss),
    "geomloss-solve": Rival(geomloss_solve),
    "pot-plain-all-pixels": Rival(partial(pot_loop, "sinkhorn"), 1, lit=False),
    "pot-log-all-pixels": Rival(partial(pot_loop, "sinkhorn_log"), 1, lit=False),
    "pot-batch-log-all-pixels": Rival(partial(pot_batch, "log_sinkhorn"), 1, lit=False),
}


# Who runs on a GPU: the cost that it knows, reg, how it solves, and pairs that it gets
ON_A_GPU = {
    "pot-batch-log": (L1, 0.1, partial(pot_batch, "log_sinkhorn"), PAIRS),
    "geomloss": (L1, 0.1, geomloss_loss, BATCH),
    "flash-sinkhorn": (GroundCost(None, p=2, norm=2), 1.0, flash, BATCH),
}


def on_a_gpu(rival, x: torch.Tensor, y: torch.Tensor, device, blur: float = 1.0) -> dict:
    """Seconds of all pairs, theirs and ours at their error, with `blur` times the usual reg."""
    cost, reg, solve, most = rival
    reg *= blur
    a, b = ((v / v.sum((1, 2, 3), keepdim=True)).flatten(1).numpy() for v in (x, y))
    dense = cost.dense(28, 28).numpy()
    some = [pair(*each, dense, lit=True) for each in zip(a[:most], b[:most], strict=True)]
    solve(some[:1], reg, device)  # warm up
    found = solve(some, reg, device)
    error = max(p.error(plan) for p, (_, plan) in zip(some, found, strict=True))
    x, y = x.to(device), y.to(device)
    ot.sinkhorn(x, y, cost, reg)  # warm up
    seconds, done = timed(lambda: ot.sinkhorn(x, y, cost, reg, tol=max(TOL, error)))
    return {
        "reg": reg, "p": cost.p, "ours_seconds": seconds, "theirs_error": error,
        "theirs_seconds": sum(s for s, _ in found) / len(some) * len(x),
        "ours_error": float(done.marginal_error.max()), "theirs_pairs": len(some),
    }  # fmt: skip


def sinkhorn(given, x, y, a, b, cost, samples: str) -> None:
    """Every rival beside wotlab, a turn each a round."""
    grids = {lit: [pair(a[k], b[k], cost, lit) for k in range(PAIRS)] for lit in (True, False)}
    chosen = {k: r for k, r in RIVALS.items() if any(k.startswith(n) for n in given.rivals)}
    spread = np.linspace(0, PAIRS - 1, BATCH * given.rounds).astype(int)
    for reg in given.reg:
        ours = {name: [] for name in chosen}
        theirs = {name: [] for name in chosen}
        worst, ours_worst = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, 0.0)
        for turn in range(given.rounds):
            for name, rival in chosen.items():
                some = range(PAIRS) if rival.pairs == PAIRS else spread[turn :: given.rounds]
                some = [grids[rival.lit][k] for k in some[: rival.pairs]]
                found = rival.solve(some, reg)
                seconds = [s for s, _ in found]
                theirs[name] += [sum(seconds) / PAIRS] if rival.pairs == PAIRS else seconds
                errors = [p.error(plan) for p, (_, plan) in zip(some, found, strict=True)]
                worst[name] = max(worst[name], *errors)
                tol = TOL if worst[name] <= TOL else worst[name]  # the same error for both
                spent, done = timed(lambda: ot.sinkhorn(x, y, L1, reg, tol=tol))  # noqa: B023
                ours[name].append(spent)
                ours_worst[name] = float(done.marginal_error.max())
        for name, rival in chosen.items():
            we, they = median(ours[name]), PAIRS * median(theirs[name])
            save(
                given.out, "sinkhorn-speed", {"reg": reg, "rival": name}, they / we,
                "times as fast", samples, sum(ours[name]) + sum(theirs[name]), reg=reg,
                ours_seconds=we, ours_error=ours_worst[name], theirs_seconds=they,
                theirs_error=worst[name], rounds=given.rounds, pairs_in_a_round=rival.pairs,
            )  # fmt: skip


def exact(given, x, y, a, b, cost, samples: str) -> None:
    """The exact distances beside POT's simplex on the same pixels, which they call."""
    lit = [pair(a[k], b[k], cost, lit=True) for k in range(PAIRS)]
    taken = in_turns(
        given.rounds,
        {
            "ours": lambda: ot.exact(x, y, L1).primal.numpy(),
            "theirs": lambda: np.array([pot.emd2(p.a, p.b, p.cost) for p in lit]),
        },
    )
    (ours, values), (theirs, others) = taken["ours"], taken["theirs"]
    save(
        given.out, "exact-speed", {"rival": "pot-emd2"}, theirs / ours, "times as fast", samples,
        ours + theirs, ours_seconds=ours, theirs_seconds=theirs,
        largest_difference=float(np.abs(values - others).max()),
    )  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--reg", type=float, nargs="+", default=[0.5, 0.1], help="in pixels")
    parser.add_argument("--rivals", nargs="+", default=["pot", "geomloss"], help="beginnings")
    given = parse(parser)
    warnings.simplefilter("ignore")  # POT warns of log(0) at empty pixels
    x, _, samples = mnist("test", slice(0, 2 * PAIRS), given.data)
    x, y = x.double()[:PAIRS], x.double()[PAIRS:]
    a, b = ((v / v.sum((1, 2, 3), keepdim=True)).flatten(1).numpy() for v in (x, y))
    both = given, x, y, a, b, L1.dense(28, 28).numpy(), samples
    ot.sinkhorn(x, y, L1, 1.0)  # warm up
    exact(*both)
    sinkhorn(*both)
    memory = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True)
    peak = int(memory.stdout) / 1024
    save(given.out, "sinkhorn-memory", {"size": 64, "pairs": 100}, peak, "MiB",
         "100 images of noise, 64x64", 0.0, seed=0, reg=0.5)  # fmt: skip


if __name__ == "__main__":
    main()
