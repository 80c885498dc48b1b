"""Momentum for the ascents of a dual."""

import torch
from torch import Tensor

from wotlab._base.batch import Batch
from wotlab.projections._scaling import column


class Momentum(Batch):
    """FISTA's momentum (Beck and Teboulle, 2009), restarted where it no longer climbs.

    Attributes
    ----------
    last : Tensor (B, C, H, W)
        Where the last step ended, before momentum.
    age : Tensor (B,)
        The t of FISTA, 1 at a start.
    """

    last: Tensor
    age: Tensor

    def beyond(self, step: Tensor, climb: Tensor) -> Tensor:
        """Beyond a `step` in the direction of the last one; `climb` is the dual's gradient."""
        move = step - self.last
        age = torch.where((climb * move).sum((1, 2, 3)) < 0, 1, self.age)
        self.last, self.age = step, (1 + (1 + 4 * age.square()).sqrt()) / 2
        return step + column((age - 1) / self.age) * move
