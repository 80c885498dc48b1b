"""wotlab: optimal transport for adversarial robustness, in PyTorch. Companion of Moving Mass."""

from typing import TYPE_CHECKING

from wotlab import (
    attacks,
    balls,
    evaluate,
    gibbs,
    iwd,
    ot,
    plans,
    projections,
    smoothing,
    transformations,
)
from wotlab.attacks import AttackResult
from wotlab.balls import (
    Certificate,
    InternalWassersteinBall,
    L2Ball,
    LinfBall,
    WassersteinBall,
    certify,
)
from wotlab.iwd import PatchCost
from wotlab.ot import GroundCost, wasserstein_distance
from wotlab.plans import TransportPlan

__all__ = [
    "AttackResult",
    "Certificate",
    "GroundCost",
    "InternalWassersteinBall",
    "L2Ball",
    "LinfBall",
    "PatchCost",
    "TransportPlan",
    "WassersteinBall",
    "attacks",
    "balls",
    "certify",
    "data",
    "evaluate",
    "exercises",
    "gibbs",
    "iwd",
    "models",
    "ot",
    "plans",
    "plots",
    "projections",
    "results",
    "smoothing",
    "training",
    "transformations",
    "wasserstein_distance",
]

if TYPE_CHECKING:
    from wotlab import data, exercises, models, plots, results, training

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """The other submodules on first use: torchvision, matplotlib, Lightning take long."""
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("wotlab")
        if name in __all__:
            return import_module(f"wotlab.{name}")
        raise AttributeError(f"module 'wotlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
