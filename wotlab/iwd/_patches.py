"""Images as sets of patches, and what it costs to turn one patch into another."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab._base import checks


@dataclass(frozen=True)
class PatchCost:
    r"""Cut images into patches, and what it costs to turn one patch into another.

    .. math:: c(u, v) = \lVert u - v\rVert_{\mathtt{norm}}

    Patches are size x size pixels with all channels, a vector of d = C * size^2 numbers. They
    begin at each `stride`-th row and column. Where the last ones would not reach the image's
    border, one more row and column of patches is laid flush with it, so that every pixel is in
    some patch: else pixels could change at no cost.

    Parameters
    ----------
    size : int >= 1
        Side of a patch in pixels: 3 in Tan et al. (IWD).
    stride : int from 1 to `size`
        1, the default, slides by one pixel, as the paper's text says. stride = size cuts the
        image into blocks, as the paper's count N = HW / size^2 says; then the distance is blind
        to any permutation of blocks.
    norm : 1 or 2
        Norm of the difference of two patches, summed over their pixels and channels: 1 in the
        paper.

    Raises
    ------
    ValueError
        For a size or stride below 1, a stride above the size, a norm other than 1 and 2.

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost
    >>> x = torch.rand(1, 1, 8, 8)
    >>> PatchCost().cut(x).shape, PatchCost(size=4, stride=4).cut(x).shape
    (torch.Size([1, 36, 9]), torch.Size([1, 4, 16]))
    """

    size: int = 3
    stride: int = 1
    norm: int = 1

    def __post_init__(self) -> None:
        checks.count("size", self.size)
        checks.count("stride", self.stride)
        if self.stride > self.size:
            raise ValueError(
                f"stride must be at most the size, {self.size}; got {self.stride}: the pixels "
                f"between patches could change at no cost"
            )
        if self.norm not in (1, 2):
            raise ValueError(f"norm must be 1 or 2; got {self.norm!r}")

    def starts(self, length: int) -> list[int]:
        """First pixels of the patches along a side of `length` pixels.

        Raises
        ------
        ValueError
            If the side is shorter than a patch.
        """
        last = length - self.size
        if last < 0:
            raise ValueError(
                f"patches of {self.size} pixels do not fit into images of {length}; "
                f"take a smaller size"
            )
        starts = list(range(0, last + 1, self.stride))
        return starts if starts[-1] == last else [*starts, last]

    def count(self, height: int, width: int) -> int:
        """Number of patches of an image."""
        return len(self.starts(height)) * len(self.starts(width))

    def tiles(self, height: int, width: int, tile: int | None) -> list[Tensor]:
        """Numbers of the patches of each square of tile x tile patches; of all for None.

        Squares of one size are the rows of one tensor; those at the border may be smaller.
        """
        number = torch.arange(self.count(height, width)).view(len(self.starts(height)), -1)
        side = tile or max(number.shape)
        parts = [part.flatten() for band in number.split(side) for part in band.split(side, 1)]
        sizes = sorted({len(part) for part in parts})
        return [torch.stack([part for part in parts if len(part) == size]) for size in sizes]

    def cut(self, x: Tensor) -> Tensor:
        """Patches of images (B, C, H, W): (B, N, d), row by row; differentiable."""
        if x.ndim != 4:
            raise ValueError(f"x must have shape (B, C, H, W); got {tuple(x.shape)}")
        rows, columns = (
            torch.tensor(self.starts(length), device=x.device) for length in x.shape[-2:]
        )
        sliding = x.unfold(2, self.size, 1).unfold(3, self.size, 1)
        kept = sliding.index_select(2, rows).index_select(3, columns)  # (B, C, n, m, k, k)
        return kept.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def join(self, patches: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Values that patches (B, N, d) lay on the pixels of images of `shape` (B, C, H, W).

        Returns
        -------
        values : Tensor (M, B, C, H, W)
            What each patch over a pixel says of it; M is the largest number of patches over one.
        there : Tensor, booleans (M, 1, 1, H, W)
            Which of them there are: pixels near the border have fewer patches.
        """
        height, width = shape[-2:]
        grid = torch.arange(height * width, device=patches.device).reshape(1, 1, height, width)
        pixel, order = self.cut(grid).flatten().sort(stable=True)  # of each entry of each patch
        over = torch.bincount(pixel, minlength=height * width)
        rank = torch.arange(len(pixel), device=pixel.device) - (over.cumsum(0) - over)[pixel]
        entries = patches.unflatten(2, (shape[1], -1)).movedim(2, 1).flatten(2)[:, :, order]
        values = patches.new_zeros(int(over.max()), *shape[:2], height * width)
        values[rank, :, :, pixel] = entries.movedim(2, 0)
        there = torch.arange(len(values), device=pixel.device)[:, None] < over
        there = there[:, None, None].unflatten(3, (height, width))
        return values.unflatten(3, (height, width)), there

    def between(self, u: Tensor, v: Tensor) -> Tensor:
        """Matrices of ground costs (..., N, M) for patches (..., N, d) and (..., M, d)."""
        # by matrix products equal patches would not cost 0
        return torch.cdist(u, v, p=self.norm, compute_mode="donot_use_mm_for_euclid_dist")

    def along(self, u: Tensor, v: Tensor) -> Tensor:
        """Ground costs of pairs: (..., N) for patches (..., N, d) twice."""
        return torch.linalg.vector_norm(u - v, ord=self.norm, dim=-1)
