"""Transport plans of images: what a plan makes and costs, and how it becomes feasible."""

from wotlab.plans._moves import Moves, repair
from wotlab.plans._plan import TransportPlan
from wotlab.plans._potential import PotentialPlans

__all__ = ["Moves", "PotentialPlans", "TransportPlan", "repair"]
