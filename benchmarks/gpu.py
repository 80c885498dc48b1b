"""How fast is it all on a GPU? Seconds on one card, the most valuable numbers first.

Each row is measured once and written down at once, with the card's name. A row begins only if what
it may take still fits into --seconds; what is missing (data, a network, a library) is said in a
line, and the next row goes on. --dry runs everything on the CPU, on a few images and an untrained
network, so that the script can be tried anywhere; what it records then says nothing of speed.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 480] [--rows transport radius] [--dry]
"""

import os
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from common import in_turns, mnist, options_of_networks, parse, released, save, timed
from torch import Tensor, nn
from training import ALL, epoch

import wotlab
from wotlab import GroundCost, WassersteinBall, attacks, data, models, ot
from wotlab.attacks import _loop
from wotlab.experiments import strength
from wotlab.ot import _entropic
from wotlab.plans import PotentialPlans

BALL = WassersteinBall(100 / 784)
REG, TOL = 0.1, 1e-6  # of Sinkhorn
WHOLE = 60_000  # MNIST's training images: seconds of an epoch are scaled to them
STEPS = 20  # of plans, where the kernel is compared
L1 = GroundCost(None, norm=1)


@dataclass
class Bench:
    """What a row is given."""

    given: Namespace
    device: torch.device
    begin: float  # of the row

    def few(self, whole, small):
        """A number of the row, and what it is where the script is only tried."""
        return small if self.given.dry else whole

    def images(self, split: str, whole: int, small: int) -> tuple[Tensor, Tensor, str]:
        """The first so many, on the CPU, and their name."""
        x, y, samples = mnist(split, slice(0, self.few(whole, small)), self.given.data)
        if not (self.given.dry or samples.startswith("MNIST")):
            raise FileNotFoundError("MNIST is not in --data")
        return x, y, samples

    def attacked(self, whole: int, small: int) -> tuple[nn.Module, Tensor, Tensor, str]:
        """Hu's network and test images on the GPU; a random network reads all of them rightly."""
        x, y, samples = self.images("test", whole, small)
        if self.given.dry:
            model = models.build("wong-mnist", seed=0).eval()
            return model, x, model(x).argmax(1), samples
        model = released("hu2020", self.given.checkpoints)
        return model.to(self.device), x.to(self.device), y.to(self.device), samples

    def save(self, keys: dict, samples: str, value: float, unit: str = "s", **details) -> None:
        details |= {"seed": 0, "note": "tried on a CPU, small" if self.given.dry else ""}
        seconds = time.monotonic() - self.begin
        save(self.given.out, "gpu-speed", keys, value, unit, samples, seconds, **details)


def share(some: Tensor) -> float:
    """In %."""
    return 100 * float(some.double().mean())


def both(run: Callable[[], Any]) -> tuple[float, Any, dict]:
    """Seconds, result and MiB of an attack; its seconds when no step is recorded for the GPU."""
    with patch.object(_loop, "recorded", lambda work, at: (at, work)):
        plain, _ = timed(run)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = torch.cuda.memory_allocated()
    seconds, done = timed(run)
    mib = (torch.cuda.max_memory_allocated() - begin) / 2**20
    return seconds, done, {"host_seconds": plain, "mib": mib}


def transport(bench: Bench) -> None:
    model, x, y, samples = bench.attacked(10_000, 8)
    run = partial(attacks.transport, batch_size=len(x), **bench.few({}, {"steps": 10}))
    attacks.transport(model, x[:100], y[:100], BALL, steps=2)  # warm up, compile the kernel
    seconds, done, host = both(lambda: run(model, x, y, BALL))
    left, each = 100 - share(done.success), done.backward / len(x)
    bench.save({"task": "transport"}, samples, seconds, accuracy=left, gradients=each, **host)


def radius(bench: Bench) -> None:
    model, x, y, samples = bench.attacked(10_000, 8)
    run = partial(attacks.radius, batch_size=len(x), **bench.few({}, {"steps": 30}))
    attacks.radius(model, x[:100], y[:100], steps=2)  # warm up
    seconds, done, host = both(lambda: run(model, x, y))
    found, left = share(done.eps.isfinite()), share(done.eps > BALL.eps)
    bench.save({"task": "radius"}, samples, seconds, found=found, accuracy=left, **host)


def wasserstein_at(bench: Bench) -> None:
    """All epochs of our network's training, from a tenth of the images."""
    x, y, samples = bench.images("train", WHOLE // 10, 64)
    images = data.Images("mnist", x, y, list("0123456789"))
    with tempfile.TemporaryDirectory() as folder:
        run = SimpleNamespace(device=bench.device, load=lambda split: images)
        run.checkpoints = Path(folder)
        seconds, (_, took) = timed(lambda: strength.train(run))
    whole, epochs = seconds * WHOLE / len(x), took["epochs"]
    bench.save({"task": "wasserstein-at"}, samples, whole, measured_seconds=seconds, epochs=epochs)


def sinkhorn(bench: Bench) -> None:
    """10,000 pairs of digits, in one kernel where it runs, and then PyTorch beside it."""
    x, _, samples = bench.images("test", 10_000, 8)
    x = x.double().to(bench.device)
    solve = partial(ot.sinkhorn, cost=L1, reg=REG, tol=TOL)
    solve(x, x.flip(0), tol=2.0)  # warm up, compile the kernel for the box that holds mass
    seconds, done = timed(lambda: solve(x, x.flip(0)))
    details = {"kernel": x.is_cuda and _entropic.fuses(x.device)}
    if details["kernel"]:
        with patch.object(_entropic, "_fits", lambda at, marginal: False):
            parts = zip(x.split(2500), x.flip(0).split(2500), strict=True)
            details["torch_seconds"], plain = timed(lambda: [solve(a, b) for a, b in parts])
        other = torch.cat([part.value for part in plain])
        details["largest_difference"] = float((done.value - other).abs().max())
    bench.save(
        {"task": "sinkhorn"}, f"{samples}, each with the one as far from the end", seconds,
        reg=REG, error=float(done.marginal_error.max()), goal_seconds=1.0,
        iterations=int(done.iterations.max()), **details,
    )  # fmt: skip


def kernel(bench: Bench) -> None:
    """A step on plans in one kernel beside PyTorch's own."""
    x, _, samples = bench.images("test", 1000, 8)
    plans = PotentialPlans(x.to(bench.device), GroundCost(9))  # the window of `transport`
    if not plans.fused:
        raise ImportError("no kernel, which needs a GPU and Triton")
    plain = copy(plans)  # in double precision
    plain.fused = False
    G = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(plans.x)
    one = torch.ones_like(plans.total)

    def climb(plans: PotentialPlans) -> Tensor:
        phi, psi = torch.zeros_like(G), one
        for k in range(STEPS):
            phi, psi, image, _ = plans.step(k * G, phi, psi, BALL.eps * one)
        return image

    climb(plans), climb(plain)  # warm up
    taken = in_turns(bench.given.rounds, {k: partial(climb, k) for k in (plans, plain)})
    (ours, image), (theirs, other) = taken.values()
    bench.save(
        {"task": "kernel"}, samples, theirs / ours, "times as fast as PyTorch", window=9,
        kernel_step_seconds=ours / STEPS, torch_step_seconds=theirs / STEPS,
        largest_difference=float((image - other).abs().max()),
    )  # fmt: skip


def defenses(bench: Bench) -> None:
    """Seconds of an epoch, from a tenth of one."""
    x, y, samples = bench.images("train", WHOLE // 10, 50)
    epoch(x, y, ALL["standard"], bench.device)  # warm up
    for name, make in ALL.items():
        seconds, gradients = timed(partial(epoch, x, y, make, bench.device))
        bench.save(
            {"task": "training", "defense": name}, samples, seconds * WHOLE / len(x), "s an epoch",
            measured_seconds=seconds, back_propagations=gradients / len(x),
        )  # fmt: skip


def certificates(bench: Bench) -> None:
    """Exact distances in a pool of processes: the part that no GPU does."""
    model, x, y, samples = bench.attacked(10_000, 8)
    z = attacks.mirror_ascent(model, x, y, BALL, steps=bench.few(20, 2)).x_adv
    pool = bench.few(os.cpu_count(), 1)
    seconds, seen = timed(lambda: wotlab.certify(x, z, BALL, processes=pool))
    inside = share(seen.inside)
    bench.save({"task": "certificates"}, samples, seconds, processes=pool, inside=inside)


def iwda(bench: Bench) -> None:
    """The attack by a generator and a critic an image."""
    model, x, y, samples = bench.attacked(100, 1)
    ball = wotlab.InternalWassersteinBall(9.0, tile=4)
    steps, draw = bench.few(100, 2), torch.Generator().manual_seed(0)
    run = partial(attacks.iwda, early_stop=False, generator=draw)
    run(model, x[:1], y[:1], ball, steps=1)  # warm up
    seconds, done = timed(lambda: run(model, x, y, ball, steps=steps))
    bench.save({"task": "iwda"}, samples, seconds, steps=steps, broken=share(done.success))


def rivals(bench: Bench) -> None:
    """Sinkhorn beside other solvers, each at its error and with the cost that it knows."""
    import sinkhorn as others  # which needs geomloss

    x, _, samples = bench.images("test", 200, 8)
    for name, rival in others.ON_A_GPU.items():
        try:
            found = others.on_a_gpu(rival, *x.double().chunk(2), bench.device, bench.few(1, 20))
        except ImportError as reason:
            print(f"{name}: left out, {reason}", flush=True)
            continue
        value = found["theirs_seconds"] / found["ours_seconds"]
        bench.save({"task": "sinkhorn", "rival": name}, samples, value, "times as fast", **found)


ROWS: dict[str, tuple[float, Callable[[Bench], None]]] = {  # seconds that it may take
    "transport": (25, transport),
    "radius": (35, radius),
    "wasserstein-at": (40, wasserstein_at),
    "sinkhorn": (30, sinkhorn),
    "kernel": (10, kernel),
    "certificates": (40, certificates),
    "iwda": (40, iwda),
    "rivals": (80, rivals),
    "defenses": (90, defenses),
}


def main() -> None:
    parser = options_of_networks(__doc__)
    parser.add_argument("--seconds", type=float, default=480, help="no row may end later")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="these alone")
    parser.add_argument("--dry", action="store_true", help="on the CPU, a few images, a few steps")
    given = parse(parser)
    if not (given.dry or torch.cuda.is_available()):
        print("no GPU: nothing is measured; --dry tries all of it on the CPU")
        return
    device = torch.device("cpu" if given.dry else "cuda")
    start, failed = time.monotonic(), []
    for name in given.rows:
        most, row = ROWS[name]
        if time.monotonic() - start + most > given.seconds:
            print(f"{name}: left out, it may take {most:.0f} s", flush=True)
            continue
        try:
            row(Bench(given, device, time.monotonic()))
        except (FileNotFoundError, ImportError) as reason:  # what is missing
            print(f"{name}: left out, {reason}", flush=True)
        except Exception:  # the others have their numbers all the same
            traceback.print_exc()
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
