"""One yardstick: each image's radius under every threat, for the networks of three data sets."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, models, training
from wotlab.balls import InternalWassersteinBall, LinfBall
from wotlab.evaluate import Threat, usual_threats
from wotlab.experiments.internal import ANY, with_noise
from wotlab.experiments.recipes import RECIPES, growing
from wotlab.experiments.runner import Cell, Run
from wotlab.experiments.trials import fitted

IWD = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
LINF = (0.02, 0.04, 0.06, 0.1, 0.2, 0.3)  # where images are sought that fool when moved, too
EPS = {  # in l-infinity, where networks were trained: AutoAttack has the last word there
    "mnist": 0.3, "fashion-mnist": 0.1, "cifar10": 2 / 255,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A threat, the largest radius that it looks for, and the images that it gets; None: all."""

    threat: Threat
    largest: float
    few: int | None = None


def searched(data: str) -> dict[str, Column]:
    """The usual threats for the images of a data set."""
    x = torch.zeros(1, 3, 32, 32) if data == "cifar10" else torch.zeros(1, 1, 28, 28)
    usual = usual_threats(x)
    usual["linf"] = usual["linf"].also_by(attacks.library, EPS[data])
    largest = {
        "linf": 1.0, "l2": x[0].numel() ** 0.5, "wasserstein": 4.0, "shift": 6.0,
        "rotation": 90.0, "blur": 3.0,
    }  # fmt: skip
    return {name: Column(threat, largest[name]) for name, threat in usual.items()}


def deformed() -> dict[str, Column]:
    """Threats that are slow, or know grey images alone; they get fewer images."""
    tiled = InternalWassersteinBall(0.0, tile=4)
    return {
        "iwd": Column(Threat.on_grid(attacks.pgd, tiled, IWD, "IWD"), max(IWD), 200),
        "flow": Column(Threat.once(attacks.stadv, ANY, "IWD"), ANY.eps, 200),
        "deformation": Column(Threat.once(attacks.adef, ANY, "IWD"), ANY.eps, 200),
        "patches": Column(Threat.once(partial(with_noise, attacks.iwda), ANY, "IWD"), ANY.eps, 200),
        "moved": Column(
            Threat.on_grid(partial(with_noise, attacks.eot), LinfBall(0.0), LINF), 1.0, 200
        ),
    }


def field_of(
    column: Column, name: str, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[float, dict]:
    """The median radius, the largest counting where nothing was found, and what there is to it."""
    made = evaluate.matrix({name: model}, {"it": column.threat}, (x, y)).fields[name]["it"]
    listed = [float(f"{r:.5g}") if math.isfinite(r) else None for r in made.radii.tolist()]
    return min(made.half, column.largest), {
        "radii": listed, "forward": made.forward, "backward": made.backward,
        "attack_seconds": made.seconds, "doubts": [str(doubt) for doubt in made.doubts],
    }  # fmt: skip


def row(
    what: str, run: Run, network: str, given: Callable, threats: dict[str, Column]
) -> Iterator[Cell]:
    """One network under each threat; those on the same images share it."""
    runs = {column.few: run.first(column.few) for column in threats.values()}
    shared = {few: cache(partial(given, here)) for few, here in runs.items()}
    for which, column in threats.items():
        yield Cell(
            what, {"network": network, "threat": which}, runs[column.few],
            partial(field_of, column, network), shared[column.few],
            f"{column.threat.unit}, median", seed=0,
        )  # fmt: skip


def yardstick(run: Run) -> Iterator[Cell]:
    """Each image's radius under eleven threats: the networks that ship for MNIST."""
    for name in models.shipped():
        if name.startswith("mnist-"):
            threats = searched("mnist") | deformed()
            yield from row("yardstick", run, name, partial(Run.shipped, name=name), threats)


def pgd_at(eps: float) -> training.PGDAT:
    """As the network that ships for MNIST, at another eps."""
    return training.PGDAT(LinfBall(eps), growing(eps, 4), training.pgd_adversary(10))


DEFENSES: dict[str, dict[str, Callable]] = {  # of the networks that are trained here
    "fashion-mnist": {
        "standard": training.Standard, "pgd-at": partial(pgd_at, EPS["fashion-mnist"]),
    },
    "cifar10": {"standard": training.Standard},
}  # fmt: skip
TRAINED = {"mnist": (0.1, 0.2), "fashion-mnist": (0.2, 0.3)}  # eps; the third is in the others


def elsewhere(data: str, run: Run) -> Iterator[Cell]:
    """Each image's radius under six threats: networks trained as on MNIST, and released ones."""
    run = replace(run, dataset=data).first(200)

    def given(name: str, here: Run) -> tuple[nn.Module, Tensor, Tensor]:
        if name not in DEFENSES[data]:
            return here.network(name), *here.test_images()
        return trained(here, DEFENSES[data][name](), name), *here.test_images()

    for name in (*DEFENSES[data], *run.networks()):
        yield from row(f"yardstick-{data}", run, name, partial(given, name), searched(data))


def over_eps(run: Run) -> Iterator[Cell]:
    """Transport after PGD-AT at several eps: is it the images that decide, or the eps?"""
    column = {"wasserstein": searched("mnist")["wasserstein"]}

    def given(eps: float, here: Run) -> tuple[nn.Module, Tensor, Tensor]:
        return trained(here, pgd_at(eps), "pgd-at", f"-{eps:g}"), *here.test_images()

    for data, budgets in TRAINED.items():
        here = replace(run, dataset=data).first(200)
        for eps in budgets:
            yield from row("yardstick-eps", here, f"{data}-{eps:g}", partial(given, eps), column)


def trained(run: Run, defense: training.Defense, name: str, which: str = "") -> nn.Module:
    """As the network of that name for MNIST, on all training images."""
    model = run.untrained(seed=0).to(run.device)
    path = run.checkpoints / f"yardstick-{run.dataset}-{name}{which}.safetensors"
    images = run.load("train").tensors()
    return fitted(model, images, defense, path, seed=0, **RECIPES[f"mnist-{name}"].fit)[0]
