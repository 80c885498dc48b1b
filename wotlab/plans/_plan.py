"""Local transport plans, and the images that they make."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.precision import wide
from wotlab.ot import GroundCost


@dataclass(frozen=True)
class TransportPlan:
    """Mass that each pixel sends along each step of its window.

    Attributes
    ----------
    mass : Tensor (B, C, K, H, W)
        What pixel (h, w) of channel c sends along step k of `ground_cost.offsets(H, W)`; the sum
        over k is the source image. Non-negative, and zero along steps that leave the image.
    ground_cost : GroundCost
        The ground cost, whose window says which K steps there are.

    Examples
    --------
    >>> import torch
    >>> from wotlab import GroundCost, TransportPlan, ot
    >>> x = torch.tensor([[[[1.0, 0.0, 0.0]]]], dtype=torch.float64)
    >>> matrix = ot.exact(x, x.flip(3), GroundCost()).plan
    >>> plan = TransportPlan.from_matrix(matrix, 1, 3, GroundCost())
    >>> plan.image(), plan.cost()
    (tensor([[[[0., 0., 1.]]]], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    mass: Tensor
    ground_cost: GroundCost

    @classmethod
    def identity(cls, x: Tensor, ground_cost: GroundCost) -> "TransportPlan":
        """The plan that leaves every unit of mass of the images `x` where it is."""
        checks.instance("ground_cost", ground_cost, GroundCost)
        checks.tensor("x", x, 4, "(B, C, H, W)")
        here = (ground_cost.offsets(x.shape[2], x.shape[3], x.device) == 0).all(1)
        return cls(x[:, :, None] * here[:, None, None].to(x.dtype), ground_cost)

    @classmethod
    def from_matrix(
        cls, matrix: Tensor, height: int, width: int, ground_cost: GroundCost
    ) -> "TransportPlan":
        """The same plan from its matrix, (B, C, n, n) as in `OTResult.plan`.

        Raises
        ------
        ValueError
            If the matrix moves mass further than the window reaches, or has another shape.
        """
        checks.instance("ground_cost", ground_cost, GroundCost)
        checks.tensor("matrix", matrix, 4, "(B, C, n, n)")
        b, c, n, m = matrix.shape
        if n != height * width or m != n:
            raise ValueError(
                f"matrix must be (B, C, {height * width}, {height * width}) for a grid of "
                f"{height} x {width}; got {tuple(matrix.shape)}"
            )
        pixels = torch.arange(n, device=matrix.device).reshape(1, 1, height, width)
        target = ground_cost.gather(pixels.to(torch.float64) + 1)[0, 0].long() - 1  # -1: outside
        target = target.reshape(-1, n)
        source = pixels.reshape(1, n).expand_as(target)
        mass = matrix[:, :, source, target.clamp_min(0)] * (target >= 0)
        lost = float((matrix.sum((2, 3)) - mass.sum((2, 3))).abs().max())
        if lost > 1e-6 * float(matrix.sum((2, 3)).max()):
            raise ValueError(
                f"matrix moves mass {lost:.3g} further than the window of {ground_cost.window} "
                f"pixels reaches; use a larger window, or None for the whole grid"
            )
        return cls(mass.reshape(b, c, -1, height, width), ground_cost)

    def source(self) -> Tensor:
        """The image that the plan starts from: (B, C, H, W)."""
        return self.mass.sum(2)

    def image(self) -> Tensor:
        """The image that the plan ends at: (B, C, H, W)."""
        return self.ground_cost.scatter(self.mass)

    def cost(self) -> Tensor:
        r"""Cost of the plan, for mass 1 over all channels: (B,).

        .. math:: \sum_i \sum_d \mathtt{mass}_i(d)\, C(d) \Big/ \sum_i \sum_d \mathtt{mass}_i(d)

        An upper bound of the exact transport cost between `source` and `image`. 0 for a black
        image, which sends nothing.
        """
        h, w = self.mass.shape[-2:]
        dtype = wide(self.mass.device)
        sent = self.mass.sum((1, 3, 4), dtype=dtype)  # along each step, (B, K)
        c = self.ground_cost.costs(h, w, self.mass.device, dtype)
        total = sent.sum(1).clamp_min(torch.finfo(dtype).tiny)
        return ((sent @ c) / total).to(self.mass.dtype)
