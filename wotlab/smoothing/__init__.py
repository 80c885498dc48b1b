r"""Smoothed classifiers: the class that a network gives most often under noise, and how far.

Two kinds of noise prove something about the Wasserstein ball. Laplace noise on the flows between
neighbouring pixels (Levine and Feizi, 2020) proves it directly: `noisy`, `predict`, `certify`.
Splitting noise (Levine and Feizi, 2021) proves it for the l1 distance without any chance,
`noisy_l1`, `certify_l1`, and a Wasserstein ball lies in an l1 ball, `wasserstein_radius`. A network
learns under either noise by `wotlab.training.NoiseAugmentation`.
"""

from wotlab.smoothing._flows import flow, noisy
from wotlab.smoothing._radii import flow_rate, l1_radius, laplace_radius, wasserstein_radius
from wotlab.smoothing._sampling import Smoothed, certify, predict
from wotlab.smoothing._splitting import certify_l1, noisy_l1, split

__all__ = [
    "Smoothed",
    "certify",
    "certify_l1",
    "flow",
    "flow_rate",
    "l1_radius",
    "laplace_radius",
    "noisy",
    "noisy_l1",
    "predict",
    "split",
    "wasserstein_radius",
]
