"""Measures of a classifier, each with its uncertainty, and checks of what is claimed of it."""

from wotlab.evaluate._accuracy import Curve, accuracy, accuracy_curve, are_right, success_rate
from wotlab.evaluate._certified import certified_margin, certified_radius
from wotlab.evaluate._matrix import Field, Matrix, matrix
from wotlab.evaluate._sanity import Doubt, sanity
from wotlab.evaluate._shares import Share, share, wilson
from wotlab.evaluate._threats import Threat
from wotlab.evaluate._usual import usual_threats

__all__ = [
    "Curve",
    "Doubt",
    "Field",
    "Matrix",
    "Share",
    "Threat",
    "accuracy",
    "accuracy_curve",
    "are_right",
    "certified_margin",
    "certified_radius",
    "matrix",
    "sanity",
    "share",
    "success_rate",
    "usual_threats",
    "wilson",
]
