"""Changes that nobody aimed: what Hu's tables 4 and 6 and Subramanyam's tables V and VI share."""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor, nn

from wotlab import GroundCost, evaluate, transformations, wasserstein_distance
from wotlab.experiments.runner import Cell, Run, printed
from wotlab.results import Keys

SIGMAS = {3: 1.0, 5: 2.0, 7: 3.0}  # the papers' kernel sizes; deviations that fit their distances
SIZES = {  # per cent of a side, degrees, pixels of a kernel
    "hu": {"translation": (5, 10, 20), "rotation": (5, 10, 20), "blur": (3, 5, 7)},
    "subramanyam": {"translation": (5, 15, 20), "rotation": (10, 20, 30)},
}


def changed(paper: str, kind: str, size: int, x: Tensor) -> Tensor:
    """The images of a case; each draws the same numbers, whatever was measured before it."""
    draw = torch.Generator().manual_seed(0)
    if kind == "translation":
        return transformations.translate(x, share=size / 100, generator=draw)
    if kind == "rotation":
        exactly = paper == "hu"
        return transformations.rotate(x, degrees=size, exactly=exactly, generator=draw)
    return transformations.blur(x, sigma=SIGMAS[size])


def cases(paper: str) -> Iterator[tuple[str, int]]:
    return ((kind, size) for kind, sizes in SIZES[paper].items() for size in sizes)


def accuracies(paper: str, number: int, run: Run) -> Iterator[Cell]:
    """Accuracy on shifted, turned and blurred images."""

    def accuracy(kind: str, size: int, model: nn.Module, x: Tensor, y: Tensor) -> evaluate.Share:
        return evaluate.accuracy(model, (changed(paper, kind, size, x), y))

    for name in run.networks():
        given = cache(partial(run.named, name))
        for kind, size in cases(paper):
            keys: Keys = {"network": name, "transformation": kind, "size": size}
            yield Cell(
                f"{paper}-table-{number}", keys, run, partial(accuracy, kind, size), given,
                seed=0, **printed(paper, number, keys),
            )  # fmt: skip


def distances(paper: str, measures: tuple[str, ...], number: int, run: Run) -> Iterator[Cell]:
    """Mean distances of the same images. W of Subramanyam's table has no unit that we know."""

    def mean(which: str, kind: str, size: int, x: Tensor, _: Tensor) -> float:
        return float(MEASURES[which][0](x, changed(paper, kind, size, x)).mean())

    given = cache(run.test_images)
    for which, (kind, size) in product(measures, cases(paper)):
        keys: Keys = {"measure": which, "transformation": kind, "size": size}
        yield Cell(
            f"{paper}-table-{number}", keys, run,
            partial(mean, which, kind, size), given, MEASURES[which][1], seed=0,
            **printed(paper, number, keys, metric=which),
        )  # fmt: skip


def moved(x: Tensor, z: Tensor) -> Tensor:
    """Exact W of images scaled to the same mass."""
    scale = torch.maximum(x, z).amax((1, 2, 3), keepdim=True)
    x, z = (x / scale).double(), (z / scale).double()
    low = torch.minimum(x.sum((1, 2, 3), keepdim=True), z.sum((1, 2, 3), keepdim=True))
    x, z = (v * low / v.sum((1, 2, 3), keepdim=True) for v in (x, z))
    return wasserstein_distance(x, z, GroundCost(None))


def length(x: Tensor, z: Tensor) -> Tensor:
    return (z - x).flatten(1).norm(dim=1)


MEASURES = {  # and their units
    "w": (moved, "pixels"),
    "l2": (length, "brightness"),
    "procrustes": (transformations.procrustes, "dissimilarity"),
}
