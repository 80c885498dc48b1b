"""One yardstick: the networks that ship for MNIST, each image's radius under every threat."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wotlab import attacks, evaluate, models
from wotlab.balls import InternalWassersteinBall
from wotlab.evaluate import Threat, usual_threats
from wotlab.experiments.internal import ANY, with_noise
from wotlab.experiments.runner import Cell, Run

IWD = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
EPS = 0.3  # in l-infinity, where the networks were trained: AutoAttack has the last word there


@dataclass(frozen=True)
class Column:
    """A threat, the largest radius that it looks for, and the images that it gets; None: all."""

    threat: Threat
    largest: float
    few: int | None = None


def columns() -> dict[str, Column]:
    """Threats for MNIST's images; the slow ones get fewer."""
    x = torch.zeros(1, 1, 28, 28)
    usual = usual_threats(x)
    usual["linf"] = usual["linf"].also_by(attacks.library, EPS)
    largest = {
        "linf": 1.0, "l2": x[0].numel() ** 0.5, "wasserstein": 4.0, "shift": 6.0,
        "rotation": 90.0, "blur": 3.0,
    }  # fmt: skip
    tiled = InternalWassersteinBall(0.0, tile=4)
    return {name: Column(threat, largest[name]) for name, threat in usual.items()} | {
        "iwd": Column(Threat.on_grid(attacks.pgd, tiled, IWD, "IWD"), max(IWD), 200),
        "flow": Column(Threat.once(attacks.stadv, ANY, "IWD"), ANY.eps, 200),
        "deformation": Column(Threat.once(attacks.adef, ANY, "IWD"), ANY.eps, 200),
        "patches": Column(Threat.once(partial(with_noise, attacks.iwda), ANY, "IWD"), ANY.eps, 50),
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


def given(run: Run, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that ships, and test images."""
    return models.load(name).to(run.device), *run.test_images()


def yardstick(run: Run) -> Iterator[Cell]:
    """Each image's radius under ten threats: the networks that ship for MNIST."""
    names = [name for name in models.shipped() if name.startswith("mnist-")]
    for name in names:
        for which, column in columns().items():
            here = run.first(column.few)
            yield Cell(
                "yardstick", {"network": name, "threat": which}, here,
                partial(field_of, column, name), partial(given, here, name),
                f"{column.threat.unit}, median", seed=0,
            )  # fmt: skip
