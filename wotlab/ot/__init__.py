r"""Optimal transport between images or histograms, in batches.

Every solver takes `a`, `b` and a cost. Either two batches of images (B, C, H, W) with a
`GroundCost` (whole grid; its window is for plans and plays no part here), or two batches of
histograms (B, n) and (B, m) with a cost matrix (n, m) or (B, n, m). The balanced problems scale
every image to mass 1, over all channels together; mass moves within a channel, so each channel
must hold the same share of `a` and of `b`.

Which solver? `exact` for one number that must be right; `sinkhorn` for large batches, gradients
and GPUs, at the price of the bias that `sinkhorn_divergence` removes; `unbalanced_sinkhorn`
where mass may appear and vanish; `semi_dual` where one potential is learned.
"""

from wotlab.ot._entropic import sinkhorn, sinkhorn_divergence, unbalanced_sinkhorn
from wotlab.ot._exact import exact, wasserstein_distance, wasserstein_infinity
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot._problem import OTResult
from wotlab.ot._semidual import c_transform, semi_dual
from wotlab.ot.marginals import wright_omega

__all__ = [
    "GroundCost",
    "OTResult",
    "c_transform",
    "exact",
    "semi_dual",
    "sinkhorn",
    "sinkhorn_divergence",
    "unbalanced_sinkhorn",
    "wasserstein_distance",
    "wasserstein_infinity",
    "wright_omega",
]
