"""Tan et al.: attacks at equal internal distances, their tables 1 to 3, their weights tau and beta.

The ten classes of ImageNet with torchvision's networks where data and a GPU are at hand, and
CIFAR-10 with a small network that is trained here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, models, training
from wotlab.attacks import AttackResult
from wotlab.balls import TOLERANCE, InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments import trials
from wotlab.experiments.runner import Cell, Run, printed
from wotlab.experiments.trials import Trial
from wotlab.results import Key, Keys

LINF = LinfBall(8 / 255)
INTERNAL = InternalWassersteinBall(0.1, tile=4)  # of IWDD; tiles keep a minibatch's matchings cheap
SMALL = "cifar10"  # what the small network is trained on
SIDES = {"resnet101": 224, "inception-v3": 299}
# Short trainings: epochs of a network without a defense, then of rows from it, images and steps.
FIRST, IMAGES, EPOCHS, STEPS = 4, 5_000, 2, 5
REPEATS = 4  # of free training
GRADIENTS = {"free": REPEATS, "fast": 2}  # an image and epoch, where it is not STEPS + 1

NUMBERS = 27  # of a 3x3 patch in colour: a change of every pixel by h costs at most 27 h
NEAR = NUMBERS * LINF.eps  # what l-infinity attacks of 8/255 may spend
DISTANCES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
BETAS = (0.01, 1.0)  # 0.1, the paper's, is table 3's
FEW, MANY = 200, 500  # test images; of table 3, as its entries suggest
TILE = 16  # of photographs too large to be matched whole


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ball(d: float, x: Tensor) -> InternalWassersteinBall:
    """Exact for small images, by the upper bound for large ones."""
    return InternalWassersteinBall(d, tile=TILE if x.shape[-1] > 64 else None)


def linf(d: float, x: Tensor) -> LinfBall:
    """Its images are at most d away in IWD."""
    return LinfBall(d / NUMBERS)


def mass(d: float, x: Tensor) -> WassersteinBall:
    """Mass moves by a pixel or more, so 2 eps of it changes; an image's mean is about a half."""
    return WassersteinBall(d / NUMBERS)


def any_image(d: float, x: Tensor) -> InternalWassersteinBall:
    """For attacks without a budget."""
    return ball(float(NUMBERS), x)


ATTACKS: dict[str, tuple[Callable[..., AttackResult], Callable]] = {  # and the ball of a distance
    "fgsm": (attacks.fgsm, linf),
    "pgd-10": (partial(attacks.pgd, steps=10), linf),
    "eot": (lambda *a, **k: attacks.eot(*a, steps=10, generator=generator(), **k), linf),
    "stadv": (attacks.stadv, any_image),
    "adef": (attacks.adef, any_image),
    "fwadv": (partial(attacks.frank_wolfe, steps=100), mass),
    "iwda": (lambda *a, **k: attacks.iwda(*a, generator=generator(), **k), any_image),
    "direct": (attacks.pgd, ball),
}
ROWS = {1: ("natural", "free", "fast"), 2: ("pgd", "trades")}
COLUMNS = {1: tuple(ATTACKS), 2: ("fgsm", "adef", "fwadv", "iwda", "direct")}
FWADV = WassersteinBall(0.005)
BUDGETS: dict[str, object] = {
    "pgd-10": LINF,
    "fwadv": FWADV,
    "direct": InternalWassersteinBall(INTERNAL.eps),
}
JUDGES: dict[str, Callable[..., AttackResult]] = {  # of table 3, beside clean images
    "pgd-10": partial(attacks.pgd, steps=10),
    "fwadv": lambda model, x, y, _: attacks.frank_wolfe(model, x, y, FWADV, steps=100),
    "direct": lambda model, x, y, _: attacks.pgd(model, x, y, ball(INTERNAL.eps, x)),
}


def iwdd(steps: int, beta: float = 0.1) -> training.IWDD:
    attack = partial(attacks.pgd, steps=steps, early_stop=False)
    return training.IWDD(INTERNAL, attack=attack, beta=beta)


DEFENSES: dict[str, Callable[[int], Any]] = {  # by the paper's names, with a number of steps
    "natural": lambda steps: training.Standard(),
    "free": lambda steps: training.FreeAT(LINF, repeats=REPEATS),
    "fast": lambda steps: training.FastAT(LINF),
    "pgd": lambda steps: training.PGDAT(LINF, attack=training.pgd_adversary(steps)),
    "trades": lambda steps: training.TRADES(LINF, attack=training.pgd_adversary(steps, "kl")),
    "mart": lambda steps: training.MART(LINF, attack=training.pgd_adversary(steps)),
    "iwdd": iwdd,  # against the direct attack
    "iwdd-generator": lambda steps: training.GenerativeIWDD(),  # as printed, Algorithm 2
}


@dataclass(frozen=True)
class Setting:
    """A kind of network, and the data that it is trained and tried on."""

    run: Run
    network: str

    @property
    def whole(self) -> bool:
        """As long as in the paper, from first weights; else short, and from one start."""
        return self.run.whole and self.run.epochs is None

    @property
    def steps(self) -> int:
        return 10 if self.whole else STEPS

    @property
    def undefended(self) -> str:
        return "published" if self.network in SIDES else "natural"

    def keys(self, **row: Key) -> Keys:
        """Those of a row: a training by its name, or the weight of one."""
        longer = self.run.epochs and row.get("training") not in ("natural", "published")
        return {"network": self.network, **row} | ({"epochs": self.run.epochs} if longer else {})

    def trial(self, name: str) -> Trial:
        """The training of a row, by its defense's name."""
        start = Trial(
            "iwd-table-3", self.keys(training="natural"), self.network, LINF, training.Standard(),
            200 if self.whole else FIRST, {}, batch=128, lr=0.1, augment=self.whole,
        )  # fmt: skip
        if name == "natural":
            return start
        row = replace(start, keys=self.keys(training=name), defense=DEFENSES[name](self.steps))
        if self.whole:
            return replace(row, epochs=start.epochs // (REPEATS if name == "free" else 1))
        epochs = (self.run.epochs or EPOCHS) * (STEPS + 1)
        row = replace(
            row, start=start, lr=0.02, epochs=max(1, epochs // GRADIENTS.get(name, STEPS + 1))
        )  # fmt: skip
        return row if self.run.epochs else replace(row, images=IMAGES, batch=50)

    def model(self, name: str) -> nn.Module:
        """A network by the name of its defense; "published": torchvision's, among ten classes."""
        if name != "published":
            return trials.train(self.run, self.trial(name))[0]
        model = models.ClassSubset(models.build(self.network, weights="default"), models.IMAGENET10)
        return model.eval().to(self.run.device)

    def right_ones(self, name: str) -> tuple[nn.Module, Tensor, Tensor, dict]:
        """A network, the test images that it reads rightly, and how many it does not."""
        return right_ones(self.model(name), self.run)


def right_ones(model: nn.Module, run: Run) -> tuple[nn.Module, Tensor, Tensor, dict]:
    """A network, the test images that it reads rightly, and how many it does not."""
    x, y = run.test_images()
    right = evaluate.are_right(model, x, y)
    return model, x[right], y[right], {"misread_from_the_start": int((~right).sum())}


def settings(run: Run, few: int) -> Iterator[Setting]:
    """What is at hand, on so many test images at most."""
    run = run.first(few)
    if run.whole and (run.data / "imagenet").is_dir():
        for network, size in SIDES.items():
            yield Setting(replace(run, dataset="imagenet10", size=size), network)
    yield Setting(replace(run, dataset=SMALL), "cifar-small")


def perform(
    name: str, model: nn.Module, x: Tensor, y: Tensor, d: float, **options: Any
) -> AttackResult:
    """The attack by its name, with the budget that belongs to the distance d if it has one.

    The result's cost is IWD (of large images its upper bound), whatever the attack's own ball.
    """
    attack, budget = ATTACKS[name]
    if options.get("targeted"):
        y = another(y, model(x[:1]).shape[1])
    done = attack(model, x, y, budget(d, x), **options)
    if budget in (ball, any_image):
        return done
    return replace(done, cost=ball(0.0, x).distance(x, done.x_adv.clamp(0, 1)))


Given = Callable[[], tuple[nn.Module, Tensor, Tensor, dict]]
Once = Callable[[], AttackResult]


def once(given: Given, name: str, d: float, **options: Any) -> Once:
    """The attack on what is given, for cells that share it: performed where it is asked for."""
    return cache(lambda: perform(name, *given()[:3], d, **options))


def another(y: Tensor, classes: int) -> Tensor:
    """A class for each image that is not its own."""
    step = torch.randint(1, classes, y.shape, generator=generator())
    return (y + step.to(y.device)) % classes


def near(done: AttackResult, d: float) -> AttackResult:
    """The same, where only images count whose IWD is at most d."""
    return replace(done, success=done.success & (done.cost <= d * (1 + TOLERANCE)))


def broken(
    done: Once, d: float, model: nn.Module, x: Tensor, y: Tensor,
    counted: dict,
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """The share of images broken within d.

    With medians over the broken images, as in Figure 5, and seconds an image.
    """
    seen = near(done(), d)
    change, hit = seen.x_adv - x, seen.success
    sizes = {
        "l2": change.flatten(1).norm(dim=1), "linf": change.abs().amax((1, 2, 3)),
        "iwd": seen.cost,
    }  # fmt: skip
    middle = {k: float(v[hit].median()) if bool(hit.any()) else None for k, v in sizes.items()}
    counts = evaluate.share(int(hit.sum()), len(hit))
    return counts, middle | {"seconds_an_image": seen.seconds / len(x)} | counted


def attack_all(run: Run) -> Iterator[Cell]:
    """Each attack on undefended networks: how much of what is read rightly it breaks within d."""
    for setting in settings(run, FEW):
        given = cache(partial(setting.right_ones, setting.undefended))
        for name, (_, budget) in ATTACKS.items():
            free = once(given, name, 0.0)  # without a budget the same images for every d
            for d in DISTANCES:
                done = free if budget is any_image else once(given, name, d)
                yield Cell(
                    "iwd-attacks", {"network": setting.network, "attack": name, "within": d},
                    setting.run, partial(broken, done, d), given, seed=0,
                )  # fmt: skip


def tau(run: Run) -> Iterator[Cell]:
    """The attack's weight of the classifier's loss: success, and distance of what broke."""
    for setting in settings(run, FEW):
        given = cache(partial(setting.right_ones, setting.undefended))
        for weight in TAUS:
            done = once(given, "iwda", 0.0, tau=weight)
            yield Cell(
                "iwd-tau", {"network": setting.network, "tau": weight}, setting.run,
                partial(broken, done, float("inf")), given, seed=0,
            )  # fmt: skip


def success(number: int, run: Run) -> Iterator[Cell]:
    """Tables 1 and 2: the share of rightly read images that each attack breaks.

    As the paper counts: within l-infinity 8/255 and the budgets that belong to it, attacks without
    a budget at any distance. And again, within NEAR: what ended no farther. A network without a
    defense is attacked towards classes drawn at random, too.
    """
    for setting, row in product(settings(run, FEW), ROWS[number]):
        natural = row == "natural"
        given = cache(partial(setting.right_ones, setting.undefended if natural else row))
        kinds = ("untargeted", "targeted") if natural else ("untargeted",)
        for name, kind in product(COLUMNS[number], kinds):
            aim = {"targeted": True} if kind == "targeted" else {}
            done = once(given, name, NEAR, **aim)
            keys = setting.keys(training=row) | {"attack": name, "kind": kind}
            theirs = printed("iwd", number, keys, setting.run.dataset, "success")
            for within in (False, True):
                yield Cell(
                    f"iwd-table-{number}", keys | {"within": within}, setting.run,
                    partial(broken, done, NEAR if within else float(NUMBERS)), given, seed=0,
                    **({} if within else theirs),
                )  # fmt: skip


def defend(run: Run) -> Iterator[Cell]:
    """Table 3: accuracies of each defense, on clean images and under three attacks."""
    for setting, name in product(settings(run, MANY), DEFENSES):
        yield from judged(setting, replace(setting.trial(name), printed=("iwd", 3)))


def beta(run: Run) -> Iterator[Cell]:
    """IWDD's weight of the clean images."""
    for setting, weight in product(settings(run, MANY), BETAS):
        row = replace(setting.trial("iwdd"), defense=iwdd(setting.steps, weight))
        yield from judged(setting, replace(row, what="iwd-beta", keys=setting.keys(beta=weight)))


def judged(setting: Setting, row: Trial) -> Iterator[Cell]:
    return trials.trial(setting.run, replace(row, judges=JUDGES, budgets=BUDGETS))
