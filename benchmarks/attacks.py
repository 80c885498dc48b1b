"""How fast are the attacks on the plan? Ratios to the published ones, measured in one run.

MNIST test images and the networks that Wong et al. and Hu et al. released, where WOTLAB_DATA and
WOTLAB_CHECKPOINTS say where they lie; else scikit-learn's digits, enlarged, and Wong's network
trained on them. All in float32, 100 images at a time.

1. `radius` against Hu's attack: `pgd` with `constrained_sinkhorn`, eps growing by 0.01 a step up
   to 2. In our version of it images that break leave the batch, as in `radius`. Once as it is by
   default, once quick: an image leaves as soon as one step has not made its budget smaller.
2. `transport` at one eps against 100 steps of Frank-Wolfe as published, bisection included.
3. Memory of `transport` on 10,000 images.
4. Every attack on one network at one eps: what it claims, what of it an exact certificate
   confirms, and its time.

    python benchmarks/attacks.py [--images 100]
"""

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

import wotlab
from wotlab import WassersteinBall, attacks, certify, models, projections, results
from wotlab.experiments import hu
from wotlab.experiments.frame import NETWORKS

EPS = 100 / 784
QUICK, THOROUGH = {"steps": 20, "restarts": 0}, {"steps": 50, "restarts": 3}


def wu(x, w, eps, cost, warm=None):
    return projections.dual_projection(x, w, eps, cost, max_iter=100)


def unbalanced(variant, x, w, eps, cost, warm=None):
    return projections.unbalanced_sinkhorn(x, w, cost, variant=variant, iterations=10)


PUBLISHED = {"repaired": False, "steps": 40}
TABLE = {
    "fgsm": attacks.fgsm,
    "pgd-wong-published": partial(attacks.pgd, **hu.ATTACKS["wong"], **PUBLISHED),
    "pgd-hu-published": partial(attacks.pgd, **PUBLISHED),
    "pgd-hu": attacks.pgd,
    "pgd-unbalanced-printed": partial(
        attacks.pgd, projection=partial(unbalanced, "printed"), step_size=0.02,
        repaired=False, steps=10,
    ),
    "pgd-unbalanced-corrected": partial(
        attacks.pgd, projection=partial(unbalanced, "corrected"), step_size=0.02, steps=10
    ),
    "pgd-wu": partial(attacks.pgd, projection=wu, steps=10),
    "frank-wolfe-published": partial(attacks.frank_wolfe, repaired=False, steps=100),
    "frank-wolfe": attacks.frank_wolfe,
    "mirror-ascent": attacks.mirror_ascent,
    "transport": partial(attacks.transport, steps=50),
}  # fmt: skip
MEMORY = """
import torch, wotlab
x, y = wotlab.data.load("digits", "test").tensors(slice(0, 250))
x = torch.nn.functional.interpolate(x, size=28).repeat(40, 1, 1, 1)
model = wotlab.models.build("wong-mnist", seed=0)
y = torch.cat([model(part).argmax(1) for part in x.split(1000)])
wotlab.attacks.transport(model, x, y, wotlab.WassersteinBall(1e-6), steps=3, restarts=1)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def released() -> tuple[dict, torch.Tensor, torch.Tensor, str] | None:
    """Networks by name, test images, and how to call them; None where they are not at hand."""
    folder = Path(os.environ.get("WOTLAB_CHECKPOINTS", "checkpoints"))
    names = [n for n in ("standard", "wong2019", "hu2020") if (folder / NETWORKS[n]).exists()]
    try:
        x, y = wotlab.data.load("mnist", "test", download=False).tensors(slice(0, 10_000))
    except (OSError, ValueError):
        return None
    found = {}
    for name in names:
        found[name] = models.build("wong-mnist")
        models.load_weights(found[name], folder / NETWORKS[name])
    return (found, x, y, "MNIST test images 0 to {}") if found else None


def enlarged() -> tuple[dict, torch.Tensor, torch.Tensor, str]:
    def load(split):
        x, y = wotlab.data.load("digits", split).tensors()
        return torch.nn.functional.interpolate(x, size=28, mode="bilinear"), y

    model = models.build("wong-mnist", seed=0)
    wotlab.training.fit(model, load("train"), epochs=5, lr=0.05, progress=False)
    name = "scikit-learn digits 0 to {} of the test split, enlarged to 28x28"
    return {"digits": model}, *load("test"), name


def timed(attack, repeats: int = 1) -> tuple[float, object]:
    """Median seconds of `repeats` runs, and what the last one gave."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = attack()
        seconds.append(time.perf_counter() - start)
    return median(seconds), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100, help="the first so many test images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="results", help="folder of the records")
    given = parser.parse_args()
    networks, x, y, name = released() or enlarged()
    x, y, data = x[: given.images], y[: given.images], name.format(given.images - 1)
    still = lambda broken: 100 - 100 * float(broken.double().mean())  # noqa: E731

    def save(what: str, case: str, value: float, unit: str, seconds: float, **details) -> None:
        record = results.Record(
            what=what, case=case, value=value, unit=unit, samples=data, seed=None,
            command=f"python benchmarks/attacks.py --images {given.images}",
            seconds=seconds, details=details,
        )  # fmt: skip
        results.write(record, given.out)
        print(f"{what} {case}: {value:.3g} {unit} {details}", flush=True)

    for network, model in networks.items():
        model.eval()
        attacks.transport(model, x[:10], y[:10], WassersteinBall(EPS), steps=2)  # warm up
        theirs, (mean, _) = timed(lambda: hu.radii(model, x, y, {}))  # noqa: B023
        for case, options in (("quick", {"patience": 1}), ("thorough", {})):
            ours, found = timed(
                lambda: attacks.radius(model, x, y, batch_size=100, **options),  # noqa: B023
                given.repeats,
            )
            save(
                "radius-speed", f"{network}-{case}", theirs / ours, "times as fast", ours + theirs,
                **options, ours_seconds=ours, theirs_seconds=theirs, theirs_mean=mean,
                ours_mean=float(found.eps[found.eps > 0].clamp(max=2).mean()),
            )  # fmt: skip
        given_ball = (model, x, y, WassersteinBall(EPS))
        published = partial(attacks.frank_wolfe, steps=100, repaired=False, batch_size=100)
        theirs, fw = timed(lambda: published(*given_ball), given.repeats)  # noqa: B023
        with torch.no_grad():
            ignoring = model(fw.x_adv).argmax(1) != y
        for case, options in (("quick", QUICK), ("thorough", THOROUGH)):
            attack = partial(attacks.transport, batch_size=100, **options)
            ours, done = timed(lambda: attack(*given_ball), given.repeats)  # noqa: B023
            save(
                "attack-speed", f"{network}-{case}", theirs / ours, "times as fast", ours + theirs,
                eps=EPS, ours_seconds=ours, theirs_seconds=theirs, **options,
                ours_accuracy=still(done.success), theirs_accuracy=still(fw.success),
                theirs_accuracy_without_the_pixel_bound=still(ignoring),
            )  # fmt: skip

    network = "hu2020" if "hu2020" in networks else "digits"
    model, ball = networks[network], WassersteinBall(EPS)
    for case, attack in TABLE.items():
        spent, done = timed(lambda: attack(model, x, y, ball))  # noqa: B023
        with torch.no_grad():
            wrong = model(done.x_adv).argmax(1) != y
        seen = certify(x, done.x_adv, ball)
        save(
            "attack-table", case, still(wrong & seen.inside), "%", spent, eps=EPS,
            network=network, claimed=still(wrong), inside=100 * float(seen.inside.double().mean()),
            largest_exact_w_over_eps=float((seen.cost / EPS).max()), attack_seconds=spent,
        )  # fmt: skip
    spent, memory = timed(
        lambda: subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True)
    )
    save("attack-memory", "10000-images", int(memory.stdout) / 1024, "MiB", spent)


if __name__ == "__main__":
    main()
