"""What climbs the duals: momentum, and the multiplier of distance at which a plan costs eps."""

from collections.abc import Callable

import torch
from torch import Tensor

from wotlab._base.batch import Batch
from wotlab.projections._problem import column

STEPS = 100


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


def multiplier(
    spent: Callable[[Tensor], tuple[Tensor, ...]], eps: Tensor, psi: Tensor, slack: float
) -> tuple[Tensor, ...]:
    r"""The psi >= 0 at which a plan costs eps, or 0 where it costs no more at 0.

    Newton's method on log F(psi) = log eps: the cost F falls with psi, and for large psi like
    exp(-psi) where the plan is entropic, so that a step is nearly exact. A bracket guards it.

    Parameters
    ----------
    spent : function
        From psi (B,) to the cost F(psi) (B,), its derivative (B,), at most 0, and whatever
        says the plan, which is returned with its psi.
    eps : Tensor (B,), above 0
    psi : Tensor (B,), at least 0
        Where to start.
    slack : float
        Stop when F is within slack * eps of eps.
    """
    low, high = torch.zeros_like(psi), torch.full_like(psi, torch.inf)
    needed = torch.zeros_like(psi, dtype=torch.bool)  # whether psi > 0 is known to be
    for _ in range(STEPS):
        cost, slope, *plan = spent(psi)
        over = cost > eps
        needed |= over
        low, high = torch.where(over, psi, low), torch.where(over, high, psi)
        narrow = (high - low <= 1e-15 * high) & high.isfinite()  # no number is left between
        done = ((cost - eps).abs() <= slack * eps) | (~over & ((psi == 0) | narrow))
        if bool(done.all()):
            return psi, *plan
        step = psi - (cost / eps).log() * cost / slope
        step = torch.where(~needed & ~(step > 0), 0, step)
        step = step.minimum(100 * psi + 100)  # where F is nearly flat, its slope says little
        middle = torch.where(high.isinf(), 2 * psi + 1, (low + high) / 2)
        middle = torch.where(narrow, high, middle)
        good = (step >= low) & (step <= high) & (step != psi)  # NaN is not
        psi = torch.where(done, psi, torch.where(good, step, middle))
    psi = torch.where(done, psi, torch.where(high.isinf(), psi, high))  # the side that keeps eps
    return psi, *spent(psi)[2:]
