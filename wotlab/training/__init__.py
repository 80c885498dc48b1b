"""Training: one loop, `fit`; a defense is an object that says what the loss is."""

from wotlab.training.defenses import Standard, WassersteinAT
from wotlab.training.fit import Fit, fit

__all__ = ["Fit", "Standard", "WassersteinAT", "fit"]
