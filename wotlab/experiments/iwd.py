"""Internal Wasserstein distance: attacks at equal distances, defenses, and their weights.

On the ten classes of ImageNet with torchvision's networks where data and a GPU are at hand, else
on a JPEG copy of CIFAR-10 with a small network that is trained here. The paper's own table
entries stand beside none of it: on other data and networks they would be no comparison.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, internal, models
from wotlab.attacks import AttackResult
from wotlab.attacks.objective import are_right
from wotlab.balls import InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments import linf
from wotlab.experiments.frame import Run
from wotlab.experiments.linf import Trial
from wotlab.patches import PatchCost
from wotlab.plans import TOLERANCE
from wotlab.training import IWDD, MART, PGDAT, TRADES, FastAT, FreeAT, Standard
from wotlab.training.defenses import madry

NUMBERS = 27  # of a 3x3 patch in colour: a change of every pixel by h costs at most 27 h
EPS = NUMBERS * 8 / 255
LINF, IWD, ANY = LinfBall(8 / 255), InternalWassersteinBall(EPS), InternalWassersteinBall(27.0)
BLOCKS = InternalWassersteinBall(EPS, PatchCost(3, 3))  # to train on: few patches, fast matching
DISTANCES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
TAUS, BETAS = (0.01, 0.03, 0.1, 0.3, 1.0), (0.01, 0.1, 1.0)
FEW = 100  # test images
START, IMAGES, EPOCHS, STEPS = 4, 10_000, 2, 5  # epochs, images and steps on a CPU


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def iwda(model: nn.Module, x: Tensor, y: Tensor, ball=ANY, **options) -> AttackResult:
    return attacks.iwda(model, x, y, ball, generator=generator(), **options)


def eot(model: nn.Module, x: Tensor, y: Tensor, ball) -> AttackResult:
    return attacks.eot(model, x, y, ball, steps=10, generator=generator())


BOUNDED = {  # by name: the attack, and its ball for images that may be d away in IWD
    "fgsm": (attacks.fgsm, lambda d: LinfBall(d / NUMBERS)),
    "pgd-10": (partial(attacks.pgd, steps=10), lambda d: LinfBall(d / NUMBERS)),
    "eot": (eot, lambda d: LinfBall(d / NUMBERS)),
    # mass moves by a pixel or more, so 2 eps of it changes; an image's mean is about a half
    "fwadv": (partial(attacks.frank_wolfe, steps=100), lambda d: WassersteinBall(d / NUMBERS)),
    "direct": (attacks.pgd, InternalWassersteinBall),
}
FREE = {"stadv": attacks.stadv, "adef": attacks.adef, "iwda": iwda}


def perform(name: str, model: nn.Module, x: Tensor, y: Tensor, d: float) -> AttackResult:
    """The attack by its name, with the budget that belongs to the distance d if it has one."""
    attack, ball = BOUNDED[name] if name in BOUNDED else (FREE[name], lambda d: ANY)
    return attack(model, x, y, ball(d))


def near(x: Tensor, done: AttackResult, d: float) -> AttackResult:
    """The same, where only images count whose exact distance is at most d."""
    inside = distances(x, done.x_adv) <= d * (1 + TOLERANCE)
    return replace(done, success=done.success & inside)


def within(name: str, d: float):
    """An attack that breaks by images at most d away."""
    return lambda model, x, y, _: near(x, perform(name, model, x, y, d), d)


def networks(run: Run) -> Iterator[tuple[str, nn.Module, Run]]:
    """Networks without a defense, and the data that they are tried on."""
    if run.device.type == "cuda" and (run.data / "imagenet").is_dir():
        for name, size in (("resnet101", 224), ("inception-v3", 299)):
            model = models.Among(models.build(name, weights="default"), models.IMAGENET10)
            yield name, model.eval().to(run.device), replace(run, dataset="imagenet10", size=size)
    here = replace(run, dataset="cifar10-jpeg")
    yield "cifar-small", linf.train(here, standard(here))[0], here


def standard(run: Run) -> Trial:
    whole = run.device.type == "cuda"
    return Trial(
        "iwd-defenses", "standard", "cifar-small", LINF, Standard(), 30 if whole else START,
        {}, batch=100, lr=0.1, augment=whole, few=FEW,
    )  # fmt: skip


def attack_all(run: Run) -> None:
    """Each attack on each network: how much of what is read rightly it breaks within d."""
    for name, model, here in networks(run):
        here = here.first(FEW)
        x, y = here.test_images()
        right = are_right(model, x, y)
        x, y, wrong = x[right], y[right], int((~right).sum())
        made = {}
        for attack, d in product((*BOUNDED, *FREE), DISTANCES):

            def broken(attack=attack, d=d, model=model, x=x, y=y, wrong=wrong, made=made):
                if attack in BOUNDED or attack not in made:
                    made[attack] = perform(attack, model, x, y, d)
                done = near(x, made[attack], d)
                hit = evaluate.share(int(done.success.sum()), len(x))
                return hit, sizes(x, done) | {"misread_from_the_start": wrong}

            here.number("iwd-attacks", f"{name}-{attack}-within-{d:g}", "%", broken, seed=0)


def distances(x: Tensor, z: Tensor) -> Tensor:
    """Exact IWD of small images; of large ones the lower bound by slices."""
    if x.shape[-1] <= 64:
        return internal.exact(x, z.clamp(0, 1))
    return internal.sliced(x, z.clamp(0, 1), generator=generator())


def sizes(x: Tensor, done: AttackResult) -> dict:
    """Medians over the broken images, as in Figure 5; seconds an image."""
    change, hit = done.x_adv - x, done.success
    found = {
        "l2": change.flatten(1).norm(dim=1), "linf": change.abs().amax((1, 2, 3)),
        "iwd": distances(x, done.x_adv),
    }  # fmt: skip
    middle = {k: float(v[hit].median()) if bool(hit.any()) else None for k, v in found.items()}
    return middle | {"seconds_an_image": done.seconds / len(x)}


def defend(run: Run) -> None:
    """Networks with a defense, from one that has none, under every attack within equal IWD."""
    here = replace(run, dataset="cifar10-jpeg")
    attack = madry(STEPS)
    rows = {
        "start": None,
        "free": FreeAT(LINF, 2),
        "fast": FastAT(LINF),
        "pgd": PGDAT(LINF, attack=attack),
        "trades": TRADES(LINF, attack=madry(STEPS, "kl")),
        "mart": MART(LINF, attack=attack),
        "iwdd": iwdd(),
    }
    judges = {name: within(name, EPS) for name in (*BOUNDED, *FREE)}
    for name, defense in rows.items():
        row = standard(here)
        if defense is not None:
            row = tuned(row, name, defense)
        linf.trial(here.first(2 * FEW), replace(row, judges=judges))


def iwdd(beta: float = 0.1) -> IWDD:
    direct = partial(attacks.pgd, steps=STEPS, early_stop=False)
    return IWDD(BLOCKS, attack=direct, beta=beta)


def tuned(start: Trial, name: str, defense) -> Trial:
    """A short training that goes on from the network without a defense."""
    return replace(
        start, case=name, defense=defense, start=start, images=IMAGES, epochs=EPOCHS, lr=0.02,
    )  # fmt: skip


def tau(run: Run) -> None:
    """The attack's weight of the classifier's loss: success, and distance of what broke."""
    for name, model, here in networks(run):
        here = here.first(FEW)
        x, y = here.test_images()
        right = are_right(model, x, y)
        for weight in TAUS:

            def broken(weight=weight, model=model, x=x[right], y=y[right]):
                done = iwda(model, x, y, tau=weight)
                return evaluate.share(int(done.success.sum()), len(x)), sizes(x, done)

            here.number("iwd-tau", f"{name}-tau-{weight:g}", "%", broken, seed=0)


def beta(run: Run) -> None:
    """The defense's weight of the clean images."""
    here = replace(run, dataset="cifar10-jpeg")
    judges = {name: within(name, EPS) for name in ("pgd-10", "direct")}
    for weight in BETAS:
        row = tuned(standard(here), f"iwdd-beta-{weight:g}", iwdd(weight))
        linf.trial(here.first(2 * FEW), replace(row, what="iwd-beta", judges=judges))
