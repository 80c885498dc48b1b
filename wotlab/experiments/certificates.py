"""Smoothed networks: how far around each image nothing is misread for sure, and how far it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from wotlab import GroundCost, attacks, certify, models, smoothing, training
from wotlab.balls import WassersteinBall
from wotlab.experiments.recipes import LAM, RECIPES, SIGMA
from wotlab.experiments.runner import Cell, Run
from wotlab.experiments.strength import listed, median
from wotlab.experiments.trials import fitted

BUDGETS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400)  # of eps * 784, for the attack
STEPS, COPIES = 60, 8  # of the attack, and noisy images at each gradient
VOTES, ALPHA = 1000, 0.001


@dataclass(frozen=True)
class Way:
    """How a network is smoothed: by noise on flows of deviation `scale`, or by splitting noise."""

    noise: str
    scale: float

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.noise == "flows":
            return smoothing.noisy(x, self.scale, generator=generator)
        return smoothing.noisy_l1(x, self.scale, generator=generator)


NETWORKS = {  # of 0.0005, 0.001, 0.002, 0.005, 0.01 that of the largest median of 100 other images
    "mnist-standard": Way("flows", 0.002),
    "mnist-pgd-at": Way("flows", 0.002),
    "mnist-wasserstein-at": Way("flows", 0.005),
    "mnist-smoothed": Way("flows", SIGMA),
    "mnist-split": Way("splitting", LAM),
}


class Averaged(nn.Module):
    """Logarithms of the mean probabilities under noise, fresh at each call.

    Splitting noise is a step function; its gradient is taken for that of the image itself.
    """

    def __init__(self, model: nn.Module, way: Way, generator: torch.Generator):
        super().__init__()
        self.model, self.way, self.generator = model, way, generator

    def forward(self, z: Tensor) -> Tensor:
        many = z.repeat_interleave(COPIES, 0)
        seen = self.way(many, self.generator)
        if self.way.noise == "splitting":
            seen = many + (seen - many).detach()
        shares = self.model(seen).softmax(1).unflatten(0, (len(z), COPIES)).mean(1)
        return shares.clamp_min(1e-30).log()


def said(model: nn.Module, way: Way, z: Tensor, generator: torch.Generator) -> Tensor:
    """The class of the smoothed network, beyond doubt; -1 where two come equally often."""
    found = []
    for one in z.split(1):
        noisy = way(one.expand(VOTES, -1, -1, -1), generator)
        with torch.no_grad():
            votes = model(noisy).argmax(1).bincount(minlength=2)
        (first, second), (guess, _) = (part.tolist() for part in votes.topk(2))
        sure = binomtest(first, first + second, 0.5).pvalue <= ALPHA
        found.append(guess if sure else -1)
    return torch.tensor(found)


def other(found: Tensor, y: Tensor) -> Tensor:
    """Another class, without doubt."""
    return (found != y) & (found >= 0)


def below(way: Way, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """Proven radii; 0 where the smoothed network is wrong, or abstains."""
    if way.noise == "flows":
        noise = torch.Generator(x.device).manual_seed(0)
        found = smoothing.certify(model, x, sigma=way.scale, generator=noise)
        radius = found.radius
    else:
        found = smoothing.certify_l1(model, x, lam=way.scale)
        radius = smoothing.wasserstein_radius(found.radius, x)
    radius = torch.where(found.prediction == y, radius, 0)
    return median(radius), {"radii": listed(radius)}


def above(way: Way, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """The exact cost at which an attack first turned the vote; 0 where it was wrong beyond doubt.

    Mirror ascent on the averages goes on where it has turned a few: it is the vote that counts.
    """
    noise = torch.Generator(x.device).manual_seed(0)
    soft = Averaged(model, way, noise).eval()
    wrong = other(said(model, way, x, noise), y)
    radius = torch.where(wrong, 0.0, torch.inf).to(x)
    for budget in BUDGETS:
        left = radius.isinf().nonzero()[:, 0]
        if not len(left):
            break
        ball = WassersteinBall(budget / x[0].numel(), GroundCost(9))
        done = attacks.mirror_ascent(soft, x[left], y[left], ball, steps=STEPS, early_stop=False)
        now, seen = said(model, way, done.x_adv, noise), certify(x[left], done.x_adv, ball)
        broken = other(now, y[left]) & seen.inside
        radius[left[broken]] = seen.cost[broken].to(radius)
    return median(radius), {"radii": listed(radius), "copies": COPIES, "steps": STEPS}


def radii(run: Run) -> Iterator[Cell]:
    """Smoothed networks: the distance that is proven for each image, and that an attack needs."""

    def given(name: str, here: Run) -> tuple[nn.Module, Tensor, Tensor]:
        return models.load(name).to(here.device), *here.test_images()

    for name, way in NETWORKS.items():
        for side, (find, count) in {"proof": (below, 200), "attack": (above, 50)}.items():
            here = run.first(count)
            yield Cell(
                "smoothed-radii", {"network": name, "side": side}, here, partial(find, way),
                cache(partial(given, name, here)), "eps * 784, median", seed=0,
                details={"noise": way.noise, "scale": way.scale},
            )  # fmt: skip


SCALES = {"flows": (0.005, 0.01, 0.02, 0.04), "splitting": (2.0, 4.0, 8.0, 16.0, 32.0)}


def sweep(run: Run) -> Iterator[Cell]:
    """Certified radii of networks that were trained under more and less noise, of both kinds."""
    here = run.first(200)

    def given(way: Way) -> tuple[nn.Module, Tensor, Tensor]:
        path = run.checkpoints / f"smoothing-sweep-{way.noise}-{way.scale:g}.safetensors"
        model = models.build("wong-mnist", seed=0).to(run.device)
        images = run.load("train").tensors(slice(5848, None))  # what "mnist-5k" leaves
        fit = RECIPES["mnist-smoothed"].fit
        defense = training.NoiseAugmentation(way)
        return fitted(model, images, defense, path, seed=0, **fit)[0], *here.test_images()

    for noise, scales in SCALES.items():
        for scale in scales:
            way = Way(noise, scale)
            yield Cell(
                "smoothing-sweep", {"noise": noise, "scale": scale}, here, partial(below, way),
                cache(partial(given, way)), "eps * 784, median", seed=0,
            )  # fmt: skip
