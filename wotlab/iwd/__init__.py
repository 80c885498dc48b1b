"""Internal Wasserstein distance (IWD): how far the patches of an image have moved.

`exact` is the distance; `tiled` and `sliced` bound it from above and below where images are large,
`entropic` comes near; `critic` is the paper's own estimate by a network that is trained for each
pair of images.
"""

from wotlab.iwd._distance import entropic, exact, matching, matching_cost, sliced, tiled, tiles
from wotlab.iwd._patches import PatchCost
from wotlab.iwd._projection import project
from wotlab.iwd.game import critic

__all__ = [
    "PatchCost",
    "critic",
    "entropic",
    "exact",
    "matching",
    "matching_cost",
    "project",
    "sliced",
    "tiled",
    "tiles",
]
