"""Internal Wasserstein distance (IWD): how far the patches of an image have moved.

`exact` is the distance; `tiled` and `sliced` bound it from above and below where images are large,
`entropic` comes near; `critic` is the paper's own estimate by a network that is trained for each
pair of images.
"""

from wotlab.internal.critic import critic
from wotlab.internal.distance import along, entropic, exact, matching, sliced, tiled
from wotlab.internal.projection import project

__all__ = ["along", "critic", "entropic", "exact", "matching", "project", "sliced", "tiled"]
