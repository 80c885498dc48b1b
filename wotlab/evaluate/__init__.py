"""Measures of a classifier, each with its uncertainty, and checks of what is claimed of it."""

from wotlab.evaluate._accuracy import Curve, accuracy, accuracy_curve, are_right, success_rate
from wotlab.evaluate._certified import certified_margin, certified_radius
from wotlab.evaluate._sanity import Doubt, sanity
from wotlab.evaluate._shares import Share, share, wilson

__all__ = [
    "Curve",
    "Doubt",
    "Share",
    "accuracy",
    "accuracy_curve",
    "are_right",
    "certified_margin",
    "certified_radius",
    "sanity",
    "share",
    "success_rate",
    "wilson",
]
