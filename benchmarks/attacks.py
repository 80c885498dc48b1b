"""How fast are the attacks on the plan? Ratios to the published ones, measured in one run.

MNIST test images and the networks that Wong et al. and Hu et al. released, where --data (or
WOTLAB_DATA) and --checkpoints say where they lie; else scikit-learn's digits, enlarged, and Wong's
network trained on them. Everybody gets the same images, 100 at a time, in float32, and the same
tolerance of 1e-4 on budget, mass and range. Mass moves in a window of 5x5 pixels, as published;
`radius` and `transport` have their own, 9x9, and a quick `transport` 5x5, too.

1. `radius` against Hu's attack: `pgd` with `constrained_sinkhorn`, eps growing by 0.01 a step up
   to 2, in our own fast version: images that break leave the batch, as in `radius`. Once as
   published, once repaired at each step, so that its radii hold. `radius` as it is by default, and
   quick: one run, which an image leaves once five steps have not made its budget smaller. All
   times hold one exact certificate an image. Mean radii as Hu et al. count them, and with an image
   outside its ball as unbroken.
2. `transport`, by default and quick, at one eps against Frank-Wolfe as published, its final
   projection included; also what its images before that projection leave, which do not count.
3. What `transport` costs in all, in gradients of the network.
4. Every attack on one network at one eps: what it claims, what of it an exact certificate
   confirms, its gradients and its time. ART's too, where adversarial-robustness-toolbox is
   installed (1.20), with Wong's step and regularisation, since its own overflow.

    python benchmarks/attacks.py [--images 100]
"""

import argparse
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from common import in_turns, mnist, options_of_networks, parse, released, save, timed
from torch import Tensor, nn

import wotlab
from wotlab import WassersteinBall, attacks, certify, models, projections
from wotlab.attacks._frank_wolfe import Published
from wotlab.attacks._loop import attack, climbing
from wotlab.attacks._objective import objective_of
from wotlab.attacks._result import Last
from wotlab.balls import TOLERANCE
from wotlab.experiments import hu
from wotlab.plans import TransportPlan

RELEASED = ("standard", "wong2019", "hu2020")
EPS, LARGEST, BATCH = 100 / 784, 2.0, 100
RADIUS = {"quick": {"patience": 5, "restarts": 0}, "default": {}}
TRANSPORT = {"quick": {"steps": 20, "restarts": 0, "window": 5}, "default": {}}
FRANK_WOLFE = (100, 300)  # steps; the paper takes 300
HU = {
    "published": {
        "projection": partial(projections.constrained_sinkhorn, rule="published"),
        "repaired": False,
    },
    "repaired": {},
}
SUBRAMANYAM = {
    variant: partial(projections.unbalanced_sinkhorn, variant=variant, max_iter=10)
    for variant in ("printed", "corrected")
}
GROWTHS = 10  # of eps in ART's attack
STEP = {"rule": "sign", "step_size": 0.02, "steps": 10}  # Subramanyam's


def projected_plans(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, steps: int = 100,
    step_size: float = 0.1, batch_size: int = BATCH,
) -> SimpleNamespace:  # fmt: skip
    """The other attack of Wu et al.: gradient steps on the plan, each projected back by their dual.

    Without the pixel bound on the way, where the network sees the image cut off at 1, and with it
    at the end, as chapter 4 shows.
    """
    cost, made = ball.ground_cost, []
    project = partial(projections.dual_projection, eps=ball.eps, ground_cost=cost)
    for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True):
        objective, plan = objective_of(model, a, b, False, "ce"), project(a, a).plan
        for _ in range(steps):
            z = plan.image()
            g = objective.gradient(z.clamp(0, 1))[0] * (z <= 1)
            g = g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
            stepped = TransportPlan(plan.mass + step_size * cost.gather(g), cost)
            plan = project(a, stepped, bound=False).plan
        made.append(project(a, plan, max_iter=5000).image)
    return SimpleNamespace(x_adv=torch.cat(made), steps=torch.full((len(x),), steps))


def toolbox(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, steps: int = 100,
    batch_size: int = BATCH,
) -> SimpleNamespace:  # fmt: skip
    """ART's attack: eps grows after every ten steps, up to the ball's; two passes there and one
    back a step. Images are as it leaves them, but for the range.
    """
    from art.attacks.evasion import Wasserstein
    from art.estimators.classification import PyTorchClassifier

    first = ball.eps / GROWTHS
    with torch.enable_grad():
        classifier = PyTorchClassifier(
            nn.Sequential(model),  # it calls the parts one by one, and the passes would not count
            nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type="cpu",
        )  # fmt: skip
        made = Wasserstein(
            classifier, regularization=1000.0, norm="inf", eps_step=first,
            eps=first, eps_factor=GROWTHS ** (1 / max(1, (steps - 1) // 10)), eps_iter=10,
            max_iter=steps, batch_size=batch_size, verbose=False,
        )  # fmt: skip
        made.eps_step = hu.WONG["step_size"]  # refused where it is above eps, another unit
        w = torch.from_numpy(made.generate(x.numpy(), y.numpy())).clamp(0, 1)
    w = torch.where(w.isfinite().flatten(1).all(1)[:, None, None, None], w, x)
    return SimpleNamespace(x_adv=w, steps=torch.full((len(x),), steps))


TABLE = {
    "fgsm": attacks.fgsm,
    "pgd-wong-published": partial(attacks.pgd, **hu.ATTACKS["wong"], repaired=False),
    "pgd-hu-published": partial(attacks.pgd, **HU["published"]),
    "pgd-hu": attacks.pgd,
    "pgd-unbalanced-printed": partial(
        attacks.pgd, projection=SUBRAMANYAM["printed"], repaired=False, **STEP
    ),
    "pgd-unbalanced-corrected": partial(
        attacks.pgd, projection=SUBRAMANYAM["corrected"], **STEP
    ),
    "projected-plans": projected_plans,
    "frank-wolfe-published": partial(attacks.frank_wolfe, published=True),
    "frank-wolfe": attacks.frank_wolfe,
    "mirror-ascent": attacks.mirror_ascent,
    "transport": attacks.transport,
} | ({"art": toolbox} if find_spec("art") else {})  # fmt: skip


def options_of_images(text: str) -> argparse.ArgumentParser:
    """Of scripts that attack the first so many images."""
    parser = options_of_networks(text)
    parser.add_argument("--images", type=int, default=100, help="the first so many test images")
    return parser


def networks(
    given, names: Iterable[str] = RELEASED
) -> tuple[dict[str, nn.Module], Tensor, Tensor, str]:
    """Those of the networks that are at hand, else one trained here; and the first images."""
    x, y, samples = mnist("test", slice(0, given.images), given.data)
    found = {}
    for name in names if samples.startswith("MNIST") else ():
        with suppress(FileNotFoundError):
            found[name] = released(name, given.checkpoints)
    if not found:
        found["trained"] = models.build("wong-mnist", seed=0)
        a, b, _ = mnist("train", slice(0, 5000), given.data)
        wotlab.training.fit(found["trained"], (a, b), epochs=5, lr=0.05, progress=False)
    return found, x, y, samples


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def left(broken: Tensor) -> float:
    """Accuracy in %."""
    return 100 - 100 * float(broken.double().mean())


def mean(eps: Tensor, right: Tensor) -> float:
    """Mean radius of the images that are right from the start; the largest where none is known."""
    return float(eps.clamp(max=LARGEST)[right].mean())


def radii(given, name: str, model: nn.Module, x: Tensor, y: Tensor, samples: str) -> None:
    """`radius` beside Hu's attack."""
    right = ~wrong(model, x, y)
    ball = WassersteinBall(LARGEST)

    def ours(settings: dict):
        found = attacks.radius(model, x, y, ball, batch_size=BATCH, **settings)
        return found, certify(x, found.x_adv, ball)

    def theirs(settings: dict):
        done = attacks.pgd(
            model, x, y, ball, steps=hu.STEPS, schedule=hu.grow, batch_size=BATCH, **settings
        )
        if "repaired" in settings:  # without repair `pgd` asks for the exact distances itself
            return done, done
        return done, certify(x, done.x_adv, ball)

    taken = in_turns(
        given.rounds,
        {case: partial(ours, settings) for case, settings in RADIUS.items()}
        | {kind: partial(theirs, settings) for kind, settings in HU.items()},
    )

    def certified(eps: Tensor, seen) -> Tensor:
        """The radii of images that lie in their ball; infinite where they do not."""
        inside = (seen.cost <= eps * (1 + TOLERANCE) + torch.finfo(x.dtype).eps) & (
            torch.maximum(seen.mass_error, seen.box_error) <= TOLERANCE
        )
        return torch.where(inside, eps, torch.inf)

    for kind in HU:
        them, (done, distance) = taken[kind]
        eps = torch.where(wrong(model, done.x_adv, y), hu.grow(0) * done.steps, torch.inf)
        for case, settings in RADIUS.items():
            us, (found, seen) = taken[case]
            keys = {"network": name, "rival": kind, "settings": case}
            save(
                given.out, "radius-speed", keys, them / us, "times as fast",
                samples, us + them, **settings, ours_seconds=us, theirs_seconds=them,
                ours_mean=mean(found.eps, right), theirs_mean=mean(eps, right),
                ours_mean_certified=mean(certified(found.eps, seen), right),
                theirs_mean_certified=mean(certified(eps, distance), right), rounds=given.rounds,
            )  # fmt: skip


def before_projection(model: nn.Module, x: Tensor, y: Tensor, ball, steps: int) -> Tensor:
    """The last images of the published Frank-Wolfe, as the network sees them on the way."""
    stepper = Published(ball, 1e-3, steps + 1)  # it projects in a step that is not taken
    stage = climbing(stepper, steps, kind=Last)
    return attack(
        [stage], model, x, y, ball, targeted=False, loss="ce", batch_size=BATCH, early_stop=False
    ).x_adv


def at_one_eps(given, name: str, model: nn.Module, x: Tensor, y: Tensor, samples: str) -> None:
    """`transport` beside the published Frank-Wolfe."""
    ball = WassersteinBall(EPS)
    works = {
        case: partial(attacks.transport, model, x, y, ball, batch_size=BATCH, **settings)
        for case, settings in TRANSPORT.items()
    } | {
        steps: partial(
            attacks.frank_wolfe, model, x, y, ball, published=True, steps=steps, batch_size=BATCH
        )
        for steps in FRANK_WOLFE
    }
    taken = in_turns(given.rounds, works)
    for steps in FRANK_WOLFE:
        them, theirs = taken[steps]
        before = before_projection(model, x, y, ball, steps)
        for case, settings in TRANSPORT.items():
            us, ours = taken[case]
            keys = {"network": name, "rival": "frank-wolfe", "steps": steps, "settings": case}
            save(
                given.out, "attack-speed", keys, them / us, "times as fast", samples, us + them,
                eps=EPS, **settings, ours_seconds=us, theirs_seconds=them,
                ours_accuracy=left(ours.success), theirs_accuracy=left(theirs.success),
                theirs_steps=steps, theirs_accuracy_before_projection=left(wrong(model, before, y)),
                rounds=given.rounds,
            )  # fmt: skip


def multiple(given, name: str, model: nn.Module, x: Tensor, y: Tensor, samples: str) -> None:
    """What `transport` costs, in gradients of the network: images there and back, `BATCH` a time.

    Below 1 it cannot be; what lies above is spent on plans, and on batches that have grown small.
    """
    ball, count = WassersteinBall(EPS), 20
    objective = objective_of(model, x[:BATCH], y[:BATCH], False, "ce")

    def gradients() -> None:
        for _ in range(count):
            objective.gradient(x[:BATCH])

    taken = in_turns(given.rounds, {
        "ours": partial(attacks.transport, model, x, y, ball, batch_size=BATCH),
        "gradients": gradients,
    })  # fmt: skip
    (us, done), (network, _) = taken["ours"], taken["gradients"]
    one = network / (count * len(x[:BATCH]))
    save(
        given.out, "attack-cost", {"network": name}, us / (done.backward * one), "gradients",
        samples, us + network, eps=EPS, gradients=done.backward / len(x), gradient_seconds=one,
        ours_seconds=us, rounds=given.rounds,
    )  # fmt: skip


def table(given, name: str, model: nn.Module, x: Tensor, y: Tensor, samples: str) -> None:
    """Every attack, once."""
    ball = WassersteinBall(EPS)
    for case, run in TABLE.items():
        spent, done = timed(lambda: run(model, x, y, ball, batch_size=BATCH))  # noqa: B023
        broken, seen = wrong(model, done.x_adv, y), certify(x, done.x_adv, ball)
        save(
            given.out, "attack-table", {"attack": case}, left(broken & seen.inside), "%", samples,
            spent, eps=EPS, network=name, claimed=left(broken),
            inside=100 * float(seen.inside.double().mean()),
            largest_exact_w_over_eps=float((seen.cost / EPS).max()),
            gradients=float(done.steps.double().mean()), attack_seconds=spent,
        )  # fmt: skip


PARTS = {"radius": radii, "eps": at_one_eps, "cost": multiple}


def main() -> None:
    parser = options_of_images(__doc__)
    choices = (*PARTS, "table")
    parser.add_argument("--parts", nargs="+", choices=choices, default=choices, help="these alone")
    given = parse(parser)
    found, x, y, samples = networks(given)
    for name, model in found.items():
        attacks.transport(model, x[:10], y[:10], WassersteinBall(EPS), steps=2)  # warm up
        for part, measure in PARTS.items():
            if part in given.parts:
                measure(given, name, model, x, y, samples)
    name = "hu2020" if "hu2020" in found else next(iter(found))
    if "table" in given.parts:
        table(given, name, found[name], x, y, samples)


if __name__ == "__main__":
    main()
