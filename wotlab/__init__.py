"""wotlab: optimal transport for adversarial robustness, in PyTorch. Companion of Moving Mass."""

from wotlab import data, evaluate, models, ot, plots, results, training
from wotlab.balls import WassersteinBall
from wotlab.ground import GroundCost
from wotlab.ot import wasserstein_distance
from wotlab.plans import Certificate, TransportPlan, certify

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "GroundCost",
    "TransportPlan",
    "WassersteinBall",
    "certify",
    "data",
    "evaluate",
    "models",
    "ot",
    "plots",
    "results",
    "training",
    "wasserstein_distance",
]
