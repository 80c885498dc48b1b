"""wotlab: optimal transport for adversarial robustness, in PyTorch. Companion of Moving Mass."""

from wotlab import (
    attacks,
    data,
    evaluate,
    gibbs,
    models,
    moves,
    natural,
    ot,
    plots,
    projections,
    results,
    training,
)
from wotlab.attacks import AttackResult
from wotlab.balls import L2Ball, LinfBall, WassersteinBall
from wotlab.ground import GroundCost
from wotlab.ot import wasserstein_distance
from wotlab.plans import Certificate, TransportPlan, certify

__version__ = "0.1.0"

__all__ = [
    "AttackResult",
    "Certificate",
    "GroundCost",
    "L2Ball",
    "LinfBall",
    "TransportPlan",
    "WassersteinBall",
    "attacks",
    "certify",
    "data",
    "evaluate",
    "gibbs",
    "models",
    "moves",
    "natural",
    "ot",
    "plots",
    "projections",
    "results",
    "training",
    "wasserstein_distance",
]
