"""Smoothed networks: how far around each image nothing is misread for sure, and how far it is."""

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn

from wotlab import GroundCost, attacks, certify, models, training
from wotlab._base.votes import count_classes, votes, winner
from wotlab.balls import WassersteinBall
from wotlab.experiments.noise import Flows, Noise, Splitting
from wotlab.experiments.recipes import LAM, OTHERS, RECIPES, SIGMA
from wotlab.experiments.runner import Cell, Run
from wotlab.experiments.strength import listed, median
from wotlab.experiments.trials import fitted

BUDGETS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400)  # of eps * 784, for the attack
STEPS, COPIES = 60, 8  # of the attack, and noisy images at each gradient
VOTES, ALPHA = 1000, 0.001

# of 0.0005, 0.001, 0.002, 0.005, 0.01 the scale with the largest median of 100 other images
NETWORKS: dict[str, Noise] = {
    "mnist-standard": Flows(0.002),
    "mnist-pgd-at": Flows(0.002),
    "mnist-wasserstein-at": Flows(0.005),
    "mnist-smoothed": Flows(SIGMA),
    "mnist-split": Splitting(LAM),
}


class Averaged(nn.Module):
    """Logarithms of the mean probabilities under noise, fresh at each call.

    Where the noise shows a step function, its gradient is taken for that of the image itself.
    """

    def __init__(self, model: nn.Module, noise: Noise, generator: torch.Generator):
        super().__init__()
        self.model, self.noise, self.generator = model, noise, generator

    def forward(self, z: Tensor) -> Tensor:
        many = z.repeat_interleave(COPIES, 0)
        seen = self.noise(many, self.generator)
        if self.noise.stepwise:
            seen = many + (seen - many).detach()
        shares = self.model(seen).softmax(1).unflatten(0, (len(z), COPIES)).mean(1)
        return shares.clamp_min(1e-30).log()


@torch.no_grad()
def said(model: nn.Module, noise: Noise, z: Tensor, generator: torch.Generator) -> Tensor:
    """The class of the smoothed network, beyond doubt; -1 where two come equally often."""
    classes, found = count_classes(model, z), []
    for one in z.split(1):
        noisy = noise(one.expand(VOTES, -1, -1, -1), generator)
        found.append(winner(votes(model, noisy, classes), ALPHA))
    return torch.tensor(found, device=z.device)


def other(found: Tensor, y: Tensor) -> Tensor:
    """Another class, without doubt."""
    return (found != y) & (found >= 0)


def below(noise: Noise, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """Proven radii; 0 where the smoothed network is wrong, or abstains."""
    found = noise.certify(model, x)
    radius = torch.where(found.prediction == y, found.radius, 0)
    return median(radius), {"radii": listed(radius)}


def above(noise: Noise, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """The exact cost at which an attack first turned the vote; 0 where it was wrong beyond doubt.

    Mirror ascent on the averages goes on where it has turned a few: it is the vote that counts.
    """
    draw = torch.Generator(x.device).manual_seed(0)
    soft = Averaged(model, noise, draw).eval()
    wrong = other(said(model, noise, x, draw), y)
    radius = torch.where(wrong, 0.0, torch.inf).to(x)
    for budget in BUDGETS:
        left = radius.isinf().nonzero()[:, 0]
        if not len(left):
            break
        ball = WassersteinBall(budget / x[0].numel(), GroundCost(9))
        done = attacks.mirror_ascent(soft, x[left], y[left], ball, steps=STEPS, early_stop=False)
        now, seen = said(model, noise, done.x_adv, draw), certify(x[left], done.x_adv, ball)
        broken = other(now, y[left]) & seen.inside
        radius[left[broken]] = seen.cost[broken].to(radius)
    most = median(radius.clamp_max(BUDGETS[-1] / x[0].numel()))  # where it found nothing, at least
    return most, {"radii": listed(radius), "copies": COPIES, "steps": STEPS}


def radii(run: Run) -> Iterator[Cell]:
    """Smoothed networks: the distance that is proven for each image, and that an attack needs."""
    for name, noise in NETWORKS.items():
        for side, (find, count) in {"proof": (below, 200), "attack": (above, 50)}.items():
            here = run.first(count)
            yield Cell(
                "smoothed-radii", {"network": name, "side": side}, here, partial(find, noise),
                cache(partial(here.shipped, name)), "eps * 784, median", seed=0,
                details={"noise": noise.name, "scale": noise.scale},
            )  # fmt: skip


SWEPT: list[Noise] = [
    *(Flows(sigma) for sigma in (0.005, 0.01, 0.02, 0.04)),
    *(Splitting(lam) for lam in (2.0, 4.0, 8.0, 16.0, 32.0)),
]


def sweep(run: Run) -> Iterator[Cell]:
    """Certified radii of networks that were trained under more and less noise, of both kinds."""
    here = run.first(200)

    def given(noise: Noise) -> tuple[nn.Module, Tensor, Tensor]:
        path = run.checkpoints / f"smoothing-sweep-{noise.name}-{noise.scale:g}.safetensors"
        model = models.build("wong-mnist", seed=0).to(run.device)
        images = run.load("train").tensors(slice(OTHERS, None))
        fit = RECIPES["mnist-smoothed"].fit
        defense = training.NoiseAugmentation(noise)
        return fitted(model, images, defense, path, seed=0, **fit)[0], *here.test_images()

    for noise in SWEPT:
        yield Cell(
            "smoothing-sweep", {"noise": noise.name, "scale": noise.scale}, here,
            partial(below, noise), cache(partial(given, noise)), "eps * 784, median", seed=0,
        )  # fmt: skip
