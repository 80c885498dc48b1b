"""The networks that Tan et al. attack and defend: trained here, or published.

The ten classes of ImageNet with torchvision's networks where data and a GPU are at hand, and
CIFAR-10 with a small network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from wotlab import attacks, models
from wotlab.balls import InternalWassersteinBall, LinfBall
from wotlab.experiments import trials
from wotlab.experiments.runner import Run
from wotlab.experiments.trials import Trial
from wotlab.training import IWDD, MART, PGDAT, TRADES, FastAT, FreeAT, GenerativeIWDD, Standard
from wotlab.training._defenses import pgd_adversary

LINF = LinfBall(8 / 255)
INTERNAL = InternalWassersteinBall(0.1, tile=4)  # of IWDD; tiles keep a minibatch's matchings cheap
SMALL = "cifar10"  # what the small network is trained on
SIDES = {"resnet101": 224, "inception-v3": 299}
# Short trainings: epochs of a network without a defense, then of rows from it, images and steps.
FIRST, IMAGES, EPOCHS, STEPS = 4, 5_000, 2, 5
REPEATS = 4  # of free training
GRADIENTS = {"free": REPEATS, "fast": 2}  # an image and epoch, where it is not STEPS + 1


def iwdd(steps: int, beta: float = 0.1) -> IWDD:
    return IWDD(INTERNAL, attack=partial(attacks.pgd, steps=steps, early_stop=False), beta=beta)


DEFENSES: dict[str, Callable[[int], object]] = {  # by the paper's names, with a number of steps
    "natural": lambda steps: Standard(),
    "free": lambda steps: FreeAT(LINF, REPEATS),
    "fast": lambda steps: FastAT(LINF),
    "pgd": lambda steps: PGDAT(LINF, attack=pgd_adversary(steps)),
    "trades": lambda steps: TRADES(LINF, attack=pgd_adversary(steps, "kl")),
    "mart": lambda steps: MART(LINF, attack=pgd_adversary(steps)),
    "iwdd": iwdd,  # against the direct attack
    "iwdd-generator": lambda steps: GenerativeIWDD(),  # as printed, Algorithm 2
}


@dataclass(frozen=True)
class Setting:
    """A kind of network, and the data that it is trained and tried on."""

    run: Run
    network: str

    @property
    def whole(self) -> bool:
        """As long as in the paper, from first weights; else short, and from one start."""
        return self.run.device.type == "cuda" and self.run.epochs is None

    @property
    def undefended(self) -> str:
        return "published" if self.network in SIDES else "natural"

    def trial(self, name: str, defense=None) -> Trial:
        """The training of a row, by its defense's name, or with a defense of its own."""
        defense = defense or DEFENSES[name](10 if self.whole else STEPS)
        start = Trial(
            "iwd-table-3", f"{self.network}-natural", self.network, LINF, Standard(),
            200 if self.whole else FIRST, {}, batch=128, lr=0.1, augment=self.whole,
        )  # fmt: skip
        if name == "natural":
            return start
        row = replace(start, case=self.case(name), defense=defense)
        if self.whole:
            return replace(row, epochs=start.epochs // (REPEATS if name == "free" else 1))
        epochs = (self.run.epochs or EPOCHS) * (STEPS + 1)
        row = replace(
            row, start=start, lr=0.02, epochs=max(1, epochs // GRADIENTS.get(name, STEPS + 1))
        )  # fmt: skip
        return row if self.run.epochs else replace(row, images=IMAGES, batch=50)

    def case(self, name: str) -> str:
        """The network's name in records."""
        longer = self.run.epochs and name not in ("natural", "published")
        return f"{self.network}-{name}" + (f"-{self.run.epochs}-epochs" if longer else "")

    def model(self, name: str) -> nn.Module:
        """A network by the name of its defense; "published": torchvision's, among ten classes."""
        if name != "published":
            return trials.train(self.run, self.trial(name))[0]
        model = models.Among(models.build(self.network, weights="default"), models.IMAGENET10)
        return model.eval().to(self.run.device)


def settings(run: Run) -> Iterator[Setting]:
    """What is at hand."""
    if run.device.type == "cuda" and (run.data / "imagenet").is_dir():
        for network, size in SIDES.items():
            yield Setting(replace(run, dataset="imagenet10", size=size), network)
    yield Setting(replace(run, dataset=SMALL), "cifar-small")
