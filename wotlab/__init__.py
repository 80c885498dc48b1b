"""wotlab: optimal transport for adversarial robustness, in PyTorch. Companion of Moving Mass."""

from wotlab import (
    attacks,
    data,
    evaluate,
    gibbs,
    internal,
    models,
    moves,
    natural,
    ot,
    plots,
    projections,
    results,
    training,
    warps,
)
from wotlab.attacks import AttackResult
from wotlab.balls import InternalWassersteinBall, L2Ball, LinfBall, WassersteinBall
from wotlab.ground import GroundCost
from wotlab.ot import wasserstein_distance
from wotlab.patches import PatchCost
from wotlab.plans import Certificate, TransportPlan, certify

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
    "certify",
    "data",
    "evaluate",
    "gibbs",
    "internal",
    "models",
    "moves",
    "natural",
    "ot",
    "plots",
    "projections",
    "results",
    "training",
    "warps",
    "wasserstein_distance",
]
