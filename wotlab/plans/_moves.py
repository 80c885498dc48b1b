"""The moves that local plans can make, kept only for pixels that hold mass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.precision import wide
from wotlab.ot import GroundCost
from wotlab.plans._plan import TransportPlan


class Moves:
    """Every move from the N pixels of a batch that hold mass, along the K steps of a window.

    A plan is then its `shares` (K, N): the share of each pixel's mass that goes along each step;
    columns sum to 1. Four of five pixels of a digit are black, so this is a fifth of the memory
    and time of the plan on the whole grid, and what is done to it are plain tensor operations.

    Attributes
    ----------
    x : Tensor (B, C, H, W)
        Where the mass starts.
    pixels : Tensor (N,)
        Value of each pixel that holds mass.
    mass : Tensor (N,)
        The same, for images scaled to mass 1.
    image_index : Tensor (N,)
        Which image of the batch each pixel belongs to.
    costs : Tensor (K, 1)
        C(d), the cost of each step.
    stay : int
        The step that goes nowhere.
    outside : Tensor, booleans (K, N)
        Which moves leave the image, or cost more than the dtype can reckon with: in float32
        from about 1e16 on for a window of 55x55, beyond any budget.

    An image that is black has no pixels here: it costs 0, and what is sent is black.

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, plans
    >>> moves = plans.Moves(torch.tensor([[[[0.0, 1.0, 0.0]]]]).double(), GroundCost(3))
    >>> shares = moves.identity()  # (9, 1): the one pixel of mass stays
    >>> shares[moves.stay], shares[moves.stay + 1] = 0.75, 0.25  # a quarter to the right
    >>> moves.push_forward(shares)
    tensor([[[[0.0000, 0.7500, 0.2500]]]], dtype=torch.float64)
    >>> moves.cost(shares)
    tensor([0.2500], dtype=torch.float64)
    """

    def __init__(self, x: Tensor, ground_cost: GroundCost):
        checks.instance("x", x, Tensor)
        checks.instance("ground_cost", ground_cost, GroundCost)
        h, w = x.shape[-2:]
        self.x, self.ground_cost = x, ground_cost
        down, right = ground_cost.radii(h, w)
        self._pad = (right, right, down, down)
        padded = F.pad(x, self._pad)
        self._size = padded.shape[1:].numel()
        steps = ground_cost.offsets(h, w, device=x.device)
        # what climbs on plans sums the squares of the costs over the steps
        most = torch.finfo(x.dtype).max ** 0.5 / len(steps)
        costs = ground_cost.costs(h, w, device=x.device, dtype=wide(x.device))[:, None]
        self.costs = costs.clamp_max(most).to(x.dtype)
        self.stay = int((steps == 0).all(1).nonzero())
        self._source = padded.reshape(-1).nonzero().squeeze(1)
        jumps = steps[:, 0] * padded.shape[-1] + steps[:, 1]
        self._target = self._source + jumps[:, None]
        self.image_index = self._source // self._size
        self.pixels = padded.reshape(-1)[self._source]
        total = x.sum((1, 2, 3), dtype=costs.dtype)
        self.mass = (self.pixels / total[self.image_index]).to(x.dtype)
        border = F.pad(torch.zeros_like(x), self._pad, value=1.0)
        self.outside = (border.reshape(-1)[self._target] > 0) | (costs > most)

    def gather(self, image: Tensor) -> Tensor:
        """Value of the images (B, C, H, W) where each move ends, 0 outside: (K, N)."""
        return torch.take(F.pad(image, self._pad), self._target)

    def to_images(self, value: Tensor) -> Tensor:
        """One value a pixel that holds mass, (N,), as images; 0 elsewhere."""
        return self._crop(self._blank().index_put((self._source,), value))

    def push_forward(self, shares: Tensor) -> Tensor:
        """Images (B, C, H, W) that the plan makes."""
        sent = (shares * self.pixels).reshape(-1)
        return self._crop(self._blank().scatter_add_(0, self._target.reshape(-1), sent))

    def total(self, value: Tensor) -> Tensor:
        """Sum over each image's pixels of `value`, (N,): (B,)."""
        return value.new_zeros(len(self.x)).index_add_(0, self.image_index, value)

    def cost(self, shares: Tensor) -> Tensor:
        """Cost of the plan for mass 1: (B,)."""
        return self.total((shares * self.costs).sum(0) * self.mass)

    def identity(self) -> Tensor:
        """Shares of the plan that moves nothing."""
        shares = torch.zeros_like(self._target, dtype=self.x.dtype)
        shares[self.stay] = 1
        return shares

    def within(self, shares: Tensor, eps: Tensor | float) -> tuple[Tensor, Tensor]:
        """The plan, blended with the one that moves nothing until it costs at most eps.

        Also the share of it that is kept, (B,).
        """
        spent = self.cost(shares)
        keep = (eps / spent.clamp_min(torch.finfo(spent.dtype).tiny)).clamp(max=1)
        shares = shares * keep[self.image_index]
        shares[self.stay] += 1 - keep[self.image_index]
        return shares, keep

    def select(self, keep: Tensor) -> "Moves":
        """The moves of the images in `keep`, booleans (B,): columns `keep[image_index]` of all."""
        return Moves(self.x[keep], self.ground_cost)

    def plan(self, shares: Tensor) -> TransportPlan:
        """The same plan on the whole grid."""
        mass = torch.stack([self.to_images(row) for row in shares * self.pixels], dim=2)
        return TransportPlan(mass, self.ground_cost)

    def shares(self, plan: TransportPlan) -> Tensor:
        """Shares of a plan whose sources are these pixels; rows are scaled to sum to 1."""
        padded = F.pad(plan.mass, self._pad).movedim(2, 0).flatten(1)[:, self._source]
        padded = padded.clamp_min(0).masked_fill(self.outside, 0)
        total = padded.sum(0)
        return torch.where(total > 0, padded / total.clamp_min(1e-30), self.identity())

    def _blank(self) -> Tensor:
        return self.x.new_zeros(len(self.x) * self._size)

    def _crop(self, flat: Tensor) -> Tensor:
        right, _, down, _ = self._pad
        b, c, h, w = self.x.shape
        padded = flat.reshape(b, c, h + 2 * down, w + 2 * right)
        return padded[..., down : down + h, right : right + w]


def repair(moves: Moves, shares: Tensor, eps: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Make a plan feasible: its image in [0, 1], its cost at most eps. Mass is kept as it is.

    1. Mass that overfills a pixel goes back to where it came from; that only lowers the cost.
       A pixel that gets mass back may overflow in its turn, so this is done four times. In
       images that are still too full all pixels then take no more than 1 - x, the room that
       they have when they send nothing: none can overflow.
    2. Blend with the plan that moves nothing, :math:`q \leftarrow (1 - t) q + t q_0`. The image is
       then :math:`(1 - t) z + t x` and the cost 1 - t times what it was: the smallest t that meets
       eps is exact.

    Parameters
    ----------
    moves : Moves
    shares : Tensor (K, N)
        Columns sum to 1.
    eps : float or Tensor (B,)
        Budget in pixels of distance.

    Returns
    -------
    shares : Tensor (K, N)
    image : Tensor (B, C, H, W)

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, plans
    >>> moves = plans.Moves(torch.tensor([[[[1.0, 0.8]]]]).double(), GroundCost(3))
    >>> shares = moves.identity()
    >>> shares[moves.stay, 0], shares[moves.stay + 1, 0] = 0.5, 0.5  # overfills the right one
    >>> shares, z = plans.repair(moves, shares, eps=0.05)
    >>> z
    tensor([[[[0.9100, 0.8900]]]], dtype=torch.float64)
    >>> moves.cost(shares)
    tensor([0.0500], dtype=torch.float64)
    """
    image = moves.push_forward(shares)
    rounding = 1 + 8 * torch.finfo(image.dtype).eps  # left to the last line
    for turn in range(5):
        full = image > rounding
        if not bool(full.any()):
            break
        last = turn == 4
        if last:
            full = full.flatten(1).any(1)[:, None, None, None].expand_as(full)
        home = moves.to_images(shares[moves.stay] * moves.pixels)
        room = 1 - (moves.x if last else home)
        factor = (room / (image - home).clamp_min(1e-30)).clamp(0, 1)
        accepted = moves.gather(torch.where(full, factor, 1))
        accepted[moves.stay] = 1
        shares = shares * accepted
        shares[moves.stay] += 1 - shares.sum(0)
        image = moves.push_forward(shares)
    shares, keep = moves.within(shares, eps)
    image = moves.x + keep[:, None, None, None] * (image - moves.x)
    return shares, image.clamp(0, 1)  # a pixel may be above 1 by rounding
