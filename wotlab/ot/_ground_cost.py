"""Ground cost: what it costs to move a unit of mass from one pixel to another."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device

from wotlab._base import checks
from wotlab._base.precision import wide

Dtype = torch.dtype | None


@dataclass(frozen=True)
class GroundCost:
    r"""Cost of moving a unit of mass from pixel to pixel: a power of the distance.

    .. math:: C_{ij} = \lVert i - j\rVert_{\mathtt{norm}}^{\,p}

    Distances are in pixels: a step to the next pixel of the same row costs 1.

    Parameters
    ----------
    window : odd int or None
        A local plan moves mass inside the window of this many pixels a side around each pixel;
        5 is the choice of Wong et al. (2019) and Hu et al. (2020). None: the whole grid.
        The window limits plans; distances (`wotlab.wasserstein_distance`) use the whole grid.
    p : float > 0
        Power of the distance; 1 in the papers that move pixels (Wong et al.; Hu et al.).
    norm : 1 or 2
        Norm of the displacement. 2 (Hu et al., 2020) by default. With `norm == p` the cost is a
        sum over rows and columns, and entropic transport on the whole grid becomes separable.

    Raises
    ------
    ValueError
        For an even or non-positive window, p <= 0 or infinite, a norm other than 1 and 2.

    Examples
    --------
    >>> from wotlab import GroundCost
    >>> GroundCost(3).costs(8, 8).reshape(3, 3)  # of the nine steps of its window
    tensor([[1.4142, 1.0000, 1.4142],
            [1.0000, 0.0000, 1.0000],
            [1.4142, 1.0000, 1.4142]])
    >>> GroundCost(None, p=2).dense(1, 3)
    tensor([[0., 1., 4.],
            [1., 0., 1.],
            [4., 1., 0.]], dtype=torch.float64)
    """

    window: int | None = 5
    p: float = 1
    norm: int = 2

    def __post_init__(self) -> None:
        whole = isinstance(self.window, Integral) and not isinstance(self.window, bool)
        if self.window is not None and (not whole or self.window < 1 or self.window % 2 == 0):
            raise ValueError(
                f"window must be an odd positive integer, or None for the whole grid; "
                f"got {self.window!r}"
            )
        checks.positive("p", self.p)
        if self.norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2; got {self.norm!r}")

    @property
    def separable(self) -> bool:
        """Whether C(i, j) is a sum of a cost over rows and a cost over columns."""
        return self.norm == self.p

    def radii(self, height: int, width: int) -> tuple[int, int]:
        """Largest vertical and horizontal step of a plan on a grid of this size."""
        if self.window is None:
            return height - 1, width - 1
        return self.window // 2, self.window // 2

    def offsets(self, height: int, width: int, device: Device = None) -> Tensor:
        """Steps d that a local plan may take: integers (K, 2), row step and column step."""
        down, right = self.radii(height, width)
        rows = torch.arange(-down, down + 1, device=device)
        columns = torch.arange(-right, right + 1, device=device)
        return torch.cartesian_prod(rows, columns)

    def costs(self, height: int, width: int, device: Device = None, dtype: Dtype = None) -> Tensor:
        """C(d) of each step in `offsets`: (K,).

        Infinite where `dtype` holds no such number: 38 pixels cost more than float32's 3.4e38
        from p = 24.4 on.
        """
        steps = self.offsets(height, width, device)
        return self._cost(steps.to(wide(steps.device))).to(dtype or torch.get_default_dtype())

    def inside(self, height: int, width: int, device: Device = None) -> Tensor:
        """Whether step k from pixel i ends inside the image: booleans (K, height, width)."""
        ones = torch.ones(1, 1, height, width, device=device)
        return self.gather(ones)[0, 0] > 0

    def gather(self, image: Tensor) -> Tensor:
        """Value that each pixel would find after each step: (B, C, H, W) to (B, C, K, H, W).

        Steps that leave the image find 0. Adjoint of `scatter`.
        """
        b, c, h, w = image.shape
        down, right = self.radii(h, w)
        window = 2 * down + 1, 2 * right + 1
        found = F.unfold(image.reshape(b * c, 1, h, w), window, padding=(down, right))
        return found.reshape(b, c, -1, h, w)

    def scatter(self, mass: Tensor) -> Tensor:
        """Image that arises when each pixel sends `mass`: (B, C, K, H, W) to (B, C, H, W).

        Mass sent out of the image is lost; `inside` says which steps do that.
        """
        b, c, k, h, w = mass.shape
        down, right = self.radii(h, w)
        window, sent = (2 * down + 1, 2 * right + 1), mass.reshape(b * c, k, h * w)
        return F.fold(sent, (h, w), window, padding=(down, right)).reshape(b, c, h, w)

    def axis(self, size: int, device: Device = None, dtype: Dtype = None) -> Tensor:
        """The cost |i - j|^p along one row or column of `size` pixels: (size, size)."""
        i = torch.arange(size, device=device, dtype=dtype or torch.get_default_dtype())
        return (i[:, None] - i[None, :]).abs() ** self.p

    def dense(
        self, height: int, width: int, device: Device = None, dtype: Dtype = torch.float64
    ) -> Tensor:
        """The whole cost matrix, (n, n) with n = height * width; infinite outside the window.

        For exact solvers and small images: 784 x 784 numbers for a digit of 28x28, 16.8 million
        for an image of 64x64.
        """
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        pixels = torch.cartesian_prod(rows, columns)
        cost = self.between(pixels, pixels, dtype)
        if self.window is not None:
            steps = pixels[:, None] - pixels[None, :]
            cost[(steps.abs() > self.window // 2).any(-1)] = torch.inf
        return cost

    def between(self, start: Tensor, end: Tensor, dtype: Dtype = torch.float64) -> Tensor:
        """C from each of some pixels to each of others, whatever the window: (n, m).

        Pixels are integers, row and column: (n, 2) and (m, 2).
        """
        return self._cost((start[:, None] - end[None, :]).to(dtype))

    def _cost(self, steps: Tensor) -> Tensor:
        if self.norm == 1:
            return steps.abs().sum(-1) ** self.p
        return steps.square().sum(-1) ** (self.p / 2)
