"""wotlab: optimal transport for adversarial robustness, in PyTorch. Companion of Moving Mass."""

from wotlab import (
    attacks,
    balls,
    data,
    evaluate,
    gibbs,
    iwd,
    models,
    ot,
    plans,
    plots,
    projections,
    results,
    training,
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

__version__ = "0.1.0"

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
    "gibbs",
    "iwd",
    "models",
    "ot",
    "plans",
    "plots",
    "projections",
    "results",
    "training",
    "transformations",
    "wasserstein_distance",
]
