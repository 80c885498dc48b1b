"""Perturbations that nobody aimed: Hu's tables 4 and 6, Subramanyam's tables V and VI."""

from functools import partial

import torch
from torch import Tensor

from wotlab import GroundCost, evaluate, transformations, wasserstein_distance
from wotlab.experiments.runner import Run

HU, SUBRAMANYAM = "Hu et al. (2020), table {}", "Subramanyam (2021), table {}"
GAUSSIAN = {3: 1.0, 5: 2.0, 7: 3.0}  # the papers' kernel sizes; deviations that fit their distances
HU_CASES = {
    **{f"translation-{p}": partial(transformations.translate, share=p / 100) for p in (5, 10, 20)},
    **{f"rotation-{d}": partial(transformations.rotate, degrees=d) for d in (5, 10, 20)},
    **{f"blur-{k}": partial(transformations.blur, sigma=s) for k, s in GAUSSIAN.items()},
}
SUBRAMANYAM_CASES = {
    **{f"translation-{p}": partial(transformations.translate, share=p / 100) for p in (5, 15, 20)},
    **{
        f"rotation-{d}": partial(transformations.rotate, degrees=d, exactly=False)
        for d in (10, 20, 30)
    },
}
HU_ACCURACY = {  # table 4
    "standard": (97.8, 85.8, 48.3, 98.5, 97.7, 91.9, 98.6, 93.1, 62.4),
    "hu2020": (91.2, 82.3, 49.3, 91.0, 88.7, 79.1, 88.0, 75.1, 58.4),
}
HU_W = (1.0, 2.2, 4.2, 0.5, 0.8, 1.5, 0.3, 1.0, 1.6)  # table 6
HU_L2 = (5.2, 8.1, 10.3, 3.7, 5.4, 7.8, 3.2, 5.5, 6.5)
SUBRAMANYAM_ACCURACY = {  # table V
    "standard": (97.75, 87.03, 47.85, 98.48, 97.39, 93.67),
    "wong2019": (95.47, 82.88, 45.83, 96.61, 95.14, 92.09),
    "hu2020": (91.15, 82.37, 50.018, 91.7, 89.03, 84.64),
}
SUBRAMANYAM_PROCRUSTES = (0.016, 0.094, 0.155, 0.005, 0.011, 0.016)  # table VI


def hu_table_4(run: Run) -> None:
    """Accuracy on shifted, turned and blurred images."""
    accuracies(run, "hu-table-4", HU_CASES, HU_ACCURACY, HU.format(4))


def hu_table_6(run: Run) -> None:
    """Mean distances of the same images, exact."""
    sizes(run, "hu-table-6", "w", HU_CASES, distance, HU_W, "pixels", HU.format(6))
    sizes(run, "hu-table-6", "l2", HU_CASES, length, HU_L2, "brightness", HU.format(6))


def subramanyam_table_5(run: Run) -> None:
    """Accuracy on shifted and turned images."""
    source = SUBRAMANYAM.format("V")
    accuracies(run, "subramanyam-table-5", SUBRAMANYAM_CASES, SUBRAMANYAM_ACCURACY, source)


def subramanyam_table_6(run: Run) -> None:
    """Procrustes dissimilarity and exact distance. The paper's own W has no unit that we know."""
    what, source = "subramanyam-table-6", SUBRAMANYAM.format("VI")
    printed = SUBRAMANYAM_PROCRUSTES
    measure = transformations.procrustes
    sizes(run, what, "procrustes", SUBRAMANYAM_CASES, measure, printed, "dissimilarity", source)
    sizes(run, what, "w", SUBRAMANYAM_CASES, distance, None, "pixels", source)


def accuracies(run: Run, what: str, cases: dict, printed: dict, source: str) -> None:
    x, y = run.test_images()
    for name in run.networks():
        model, column = run.network(name), printed.get(name)
        for turn, (case, perturb) in enumerate(cases.items()):
            given = column[turn] if column else None
            run.number(
                what, f"{name}-{case}", "%",
                lambda: evaluate.accuracy(model, (seeded(perturb, x), y)),  # noqa: B023
                printed=given, source=source if given else None, seed=0,
            )  # fmt: skip


def sizes(run: Run, what: str, which: str, cases: dict, measure, printed, unit, source) -> None:
    x, _ = run.test_images()
    for turn, (case, perturb) in enumerate(cases.items()):
        given = printed[turn] if printed else None
        run.number(
            what, f"{which}-{case}", unit,
            lambda: float(measure(x, seeded(perturb, x)).mean()),  # noqa: B023
            printed=given, source=source if given else None, seed=0,
        )  # fmt: skip


def seeded(perturb, x: Tensor) -> Tensor:
    """Each case draws the same numbers, whatever was measured before it."""
    if perturb.func is transformations.blur:
        return perturb(x)
    return perturb(x, generator=torch.Generator().manual_seed(0))


def distance(x: Tensor, z: Tensor) -> Tensor:
    """Exact W of images scaled to the same mass."""
    scale = torch.maximum(x, z).amax((1, 2, 3), keepdim=True)
    x, z = (x / scale).double(), (z / scale).double()
    low = torch.minimum(x.sum((1, 2, 3), keepdim=True), z.sum((1, 2, 3), keepdim=True))
    x, z = (v * low / v.sum((1, 2, 3), keepdim=True) for v in (x, z))
    return wasserstein_distance(x, z, GroundCost(None))


def length(x: Tensor, z: Tensor) -> Tensor:
    return (z - x).flatten(1).norm(dim=1)
