"""Internal Wasserstein distance (IWD): how far the patches of an image have moved.

`exact` is the distance; `tiled` and `sliced` bound it from above and below where images are large,
`entropic` comes near; `critic` is the paper's own estimate by a network that is trained for each
pair of images.
"""

from wotlab.internal.critic import critic
from wotlab.internal.distance import entropic, exact, matching, matching_cost, sliced, tiled, tiles
from wotlab.internal.projection import project

__all__ = [
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
