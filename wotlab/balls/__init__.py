"""Threat models: the sets of images that an attack may return, and certificates of it."""

from wotlab.balls._ball import TOLERANCE, Ball, Certificate, certify
from wotlab.balls._internal import InternalWassersteinBall
from wotlab.balls._pixel import L2Ball, LinfBall
from wotlab.balls._wasserstein import WassersteinBall, hu_step

__all__ = [
    "TOLERANCE",
    "Ball",
    "Certificate",
    "InternalWassersteinBall",
    "L2Ball",
    "LinfBall",
    "WassersteinBall",
    "certify",
    "hu_step",
]
