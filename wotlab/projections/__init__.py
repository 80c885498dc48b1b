r"""Projections of a stepped image onto a Wasserstein ball around x, for projected gradients.

`constrained_sinkhorn` (Hu et al., 2020) is the one to use in attacks: batched, in [0, 1], and
near the exact projection for reg <= 0.001. `projected_sinkhorn` (Wong et al., 2019) is its
predecessor, whose pixels may exceed 1. `dual_projection` (Wu et al., 2020) has no entropy, but
projects the plan instead of the image. `unbalanced_sinkhorn` (Subramanyam, 2022) knows no budget
and is here to be studied. `exact_projection` solves a quadratic program image by image: the
reference for all of them, for small images.
"""

from wotlab.projections._dual import dual_projection
from wotlab.projections._exact import exact_projection
from wotlab.projections._problem import Projection
from wotlab.projections._sinkhorn import constrained_sinkhorn, projected_sinkhorn
from wotlab.projections._unbalanced import unbalanced_sinkhorn

__all__ = [
    "Projection",
    "constrained_sinkhorn",
    "dual_projection",
    "exact_projection",
    "projected_sinkhorn",
    "unbalanced_sinkhorn",
]
