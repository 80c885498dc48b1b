"""Internal Wasserstein distance: transport between the patches of two images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab import ot
from wotlab._base import checks, draws
from wotlab.iwd._patches import PatchCost

MOST = 20_000  # patches that are matched with each other: their costs fill 3.2 GB
BATCH = 10_000_000  # costs that are computed at a time where problems are small


def tiles(x: Tensor, cost: PatchCost, tile: int | None) -> list[Tensor]:
    """`PatchCost.tiles` of these images, if they are small enough to be matched.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
    cost : PatchCost
    tile : int or None
        Side of a square, in patches; None: one square for all.

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost, iwd
    >>> iwd.tiles(torch.rand(1, 1, 4, 5), PatchCost(size=1), tile=2)[-1]
    tensor([[ 0,  1,  5,  6],
            [ 2,  3,  7,  8],
            [10, 11, 15, 16],
            [12, 13, 17, 18]])
    """
    checks.instance("cost", cost, PatchCost)
    if tile is not None:
        checks.count("tile", tile)
    found = cost.tiles(x.shape[-2], x.shape[-1], tile)
    if (most := found[-1].shape[1]) > MOST:
        raise ValueError(
            f"tile must be {'given' if tile is None else 'smaller'} for images of "
            f"{x.shape[-2]}x{x.shape[-1]} pixels: {most} patches are too many to match with each "
            f"other; take tile=32 (an upper bound of the distance), or `sliced`"
        )
    return found


def matching(
    x: Tensor, z: Tensor, cost: PatchCost | None = None, *, tile: int | None = None
) -> Tensor:
    r"""The best permutation of the patches u of x onto the patches v of z.

    .. math:: \operatorname*{arg\,min}_m\ \sum_j c(u_{m(j)}, v_j)

    Images of one shape have equally many patches of equal weight, so that an optimal plan is a
    permutation, and transport an assignment problem.

    Parameters
    ----------
    x, z, cost
        As for `exact`.
    tile : int, optional
        Patches change places only within squares of tile x tile of them: many small problems in
        place of one, for large images. The best permutation of that kind.

    Returns
    -------
    Tensor, integers (B, N)
        m: for each patch of z the patch of x that it is matched with.

    Raises
    ------
    ValueError
        As `tiled`.

    Notes
    -----
    SciPy's shortest augmenting paths on the CPU, in as many threads as torch has. Costs are
    computed on the device of x, at most 3.2 GB of them at a time.

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost, iwd
    >>> x = torch.tensor([[[[0.1, 0.9, 0.5]]]], dtype=torch.float64)
    >>> iwd.matching(x, x.flip(3), PatchCost(size=1))
    tensor([[2, 1, 0]])
    """
    cost = cost or PatchCost()
    checks.instance("cost", cost, PatchCost)
    checks.image_pair(black=True, x=x, z=z)
    found, threads = tiles(x, cost, tile), torch.get_num_threads()
    if found[-1].shape[1] == 1:  # each patch a tile of its own
        return torch.arange(cost.count(*x.shape[-2:]), device=x.device).repeat(len(x), 1)
    size = found[-1].shape[1] ** 2  # costs of the largest problem
    # many small problems at a time, of large ones as many as there are threads, and memory for
    at_once = min(max(threads, BATCH // size), MOST**2 // size)
    pairs = torch.empty(len(x), cost.count(*x.shape[-2:]), dtype=torch.long, device=x.device)
    u, v = (cost.cut(images.detach().double()) for images in (x, z))
    with ThreadPoolExecutor(threads) as pool:
        for part in (group.to(x.device) for each in found for group in each.split(at_once)):
            images = max(1, at_once // len(part))
            for k in range(0, len(x), images):
                some = slice(k, k + images)
                ends, starts = (patches[some][:, part].flatten(0, 1) for patches in (v, u))
                best = assignment(ends, starts, cost, pool).unflatten(0, (-1, len(part)))
                pairs[some, part] = part.expand_as(best).gather(2, best)
    return pairs


def assignment(v: Tensor, u: Tensor, cost: PatchCost, pool: ThreadPoolExecutor) -> Tensor:
    """The permutations m of least sum_j c(u_m(j), v_j) for patches (B, N, d): (B, N)."""
    costs = cost.between(v, u)
    best = costs.argmin(2)
    # where no two patches have the same nearest one, nothing can be cheaper
    taken = torch.zeros_like(best).scatter_(1, best, 1)
    hard = (taken == 0).any(1).nonzero()[:, 0]
    costs = costs[hard] if len(hard) < len(costs) else costs  # no copy of one large problem
    reduce(costs, v[hard], u[hard], cost)
    parts = torch.get_num_threads()
    blocks = np.array_split(costs.cpu().numpy(), parts)  # a thread each: small ones cost nothing
    solved = [columns for block in pool.map(solve, blocks) for columns in block]
    if solved:
        best[hard] = torch.from_numpy(np.stack(solved)).to(best)
    return best


def reduce(costs: Tensor, v: Tensor, u: Tensor, cost: PatchCost) -> None:
    r"""Take potentials f(v_j) + g(u_i) <= c(u_i, v_j) off the costs, in place.

    The same matching stays best, and the nearer sum f + g is to its cost, the sooner it is found.
    Of two choices each problem takes the larger sum: what the nearest patch costs, right where
    patches change each in its own way; and the linear critic <s, v_j - u_i>, s the vector of dual
    norm 1 along their mean change, and what is nearest then, right where all change alike.
    """
    s = unit((v - u).mean(1, keepdim=True), cost, 2)
    linear = (v * s).sum(2)[:, :, None], -(u * s).sum(2)[:, None]
    f, g = take_minima(costs)
    costs += f - linear[0]
    costs += g - linear[1]
    f2, g2 = (a + b for a, b in zip(take_minima(costs), linear, strict=True))
    back = f.sum(1, True) + g.sum(2, True) > f2.sum(1, True) + g2.sum(2, True)
    costs += (f2 - f) * back
    costs += (g2 - g) * back


def unit(w: Tensor, cost: PatchCost, dim: int) -> Tensor:
    """Vectors of dual norm 1, so that <w, .> is 1-Lipschitz for the cost: signs for l1."""
    return w.sign() if cost.norm == 1 else F.normalize(w, dim=dim)


def take_minima(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their minima, then columns, in place; both minima."""
    f = costs.amin(2, keepdim=True)
    costs -= f
    g = costs.amin(1, keepdim=True)
    costs -= g
    return f, g


def solve(block: np.ndarray) -> list[np.ndarray]:
    from scipy.optimize import linear_sum_assignment

    return [linear_sum_assignment(costs)[1] for costs in block]


def exact(x: Tensor, z: Tensor, cost: PatchCost | None = None) -> Tensor:
    r"""The internal Wasserstein distance, W_1 between the patches of two images, exactly: (B,).

    .. math:: \mathrm{IWD}(x, z) = \min_m\ \frac1N \sum_{j=1}^N c(u_{m(j)}, v_j)

    Parameters
    ----------
    x, z : Tensor (B, C, H, W)
        Images in [0, 1] of one shape.
    cost : PatchCost, optional
        Sliding patches of 3x3 and the l1 cost by default (Tan et al., Definition 3).

    Returns
    -------
    Tensor (B,)
        In units of brightness, summed over a patch's pixels and channels: with the l1 cost a
        change of all pixels by h costs at most C size^2 h. Differentiable in x and z: the
        gradient of the matched pairs, which is the right one wherever the best matching is
        unique.

    Raises
    ------
    ValueError
        For bad images, images of different shapes, patches larger than the images, or more than
        20,000 patches.

    Notes
    -----
    A pseudo-metric: symmetric, with a triangle inequality, but 0 also for different images that
    hold the same patches. Assignment takes time of about N^3 at worst: 0.1 s for 32x32 pixels,
    seconds for 64x64. For larger images take `tiled`, `sliced` or `entropic`.

    Examples
    --------
    >>> from wotlab import data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> iwd.exact(x.double(), x.double().flip(0)).round(decimals=3)  # brightness of a patch
    tensor([1.3490, 1.3490], dtype=torch.float64)
    """
    return tiled(x, z, cost, tile=None)


def tiled(x: Tensor, z: Tensor, cost: PatchCost | None = None, *, tile: int | None = 32) -> Tensor:
    r"""IWD where patches change places only within squares of tile x tile of them: (B,).

    Parameters
    ----------
    x, z, cost
        As for `exact`.
    tile : int, optional
        1 leaves each patch where it is; None is `exact`.

    Returns
    -------
    Tensor (B,)
        Never below `exact`, since any matching costs more than the best. Differentiable. Takes
        seconds for 299x299 pixels, where `exact` can not be had; `sliced` is the bound from below.

    Raises
    ------
    ValueError
        As `exact`; for a tile that is no positive integer, or holds more than 20,000 patches.

    Examples
    --------
    >>> from wotlab import data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> x, z = x[:1].double(), x[1:].double()
    >>> [round(float(iwd.tiled(x, z, tile=side)), 3) for side in (1, 3, None)]
    [2.127, 1.905, 1.349]
    """
    cost = cost or PatchCost()
    pairs = matching(x, z, cost, tile=tile)
    return matching_cost(cost.cut(x), cost.cut(z), pairs, cost)


def matching_cost(u: Tensor, v: Tensor, pairs: Tensor, cost: PatchCost) -> Tensor:
    r"""What a matching m of patches u and v costs, for the mean patch: (B,).

    .. math:: F_m = \frac1N \sum_{j=1}^N c(u_{m(j)}, v_j)

    Never less than the distance, whatever the matching. Differentiable in both.

    Parameters
    ----------
    u, v : Tensor (B, N, d)
        Patches.
    pairs : Tensor (B, N), integers
        m(j): which patch of u goes to patch j of v.
    cost : PatchCost

    Examples
    --------
    >>> import torch
    >>> from wotlab import PatchCost, iwd
    >>> cost = PatchCost(size=1)
    >>> u, v = (cost.cut(torch.tensor([[[row]]]).double()) for row in ([0.0, 1.0], [1.0, 0.25]))
    >>> swapped, kept = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    >>> iwd.matching_cost(u, v, swapped, cost), iwd.matching_cost(u, v, kept, cost)
    (tensor([0.1250], dtype=torch.float64), tensor([0.8750], dtype=torch.float64))
    """
    matched = u.gather(1, pairs[:, :, None].expand_as(u))
    return cost.along(matched, v).mean(1)


def entropic(
    x: Tensor, z: Tensor, cost: PatchCost | None = None, *, reg: float = 0.05, max_iter: int = 1000
) -> Tensor:
    r"""Entropic IWD without its bias, by Sinkhorn's algorithm: (B,).

    .. math:: S(u, v) = \mathrm{OT}(u, v) - \tfrac12 \mathrm{OT}(u, u) - \tfrac12 \mathrm{OT}(v, v)

    OT is the entropic value of `wotlab.ot.sinkhorn` between patches, with weight `reg`.

    Parameters
    ----------
    x, z, cost
        As for `exact`.
    reg : float > 0
        Entropic weight, in the units of the cost.
    max_iter : int

    Returns
    -------
    Tensor (B,)
        Differentiable. Runs on the device of x; three matrices of N x N an image.

    Raises
    ------
    ValueError
        For images or patches as `exact`; for reg <= 0 or max_iter < 1.

    Warns
    -----
    UserWarning
        If a problem has not converged in `max_iter` iterations.

    Examples
    --------
    >>> from wotlab import data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> iwd.entropic(x.double(), x.double().flip(0), reg=0.5).round(decimals=2)
    tensor([0.8400, 0.8400], dtype=torch.float64)
    """
    cost = cost or PatchCost()
    checks.instance("cost", cost, PatchCost)
    checks.image_pair(black=True, x=x, z=z)
    u, v = cost.cut(x), cost.cut(z)
    weight = u.new_ones(u.shape[:2])
    costs = (cost.between(u, v), cost.between(u, u), cost.between(v, v))
    return ot.sinkhorn_divergence(weight, weight, costs, reg, max_iter=max_iter)


def sliced(
    x: Tensor,
    z: Tensor,
    cost: PatchCost | None = None,
    *,
    directions: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean over directions w of the distance between the patches' projections: (B,).

    .. math:: \mathbb{E}_w\, W_1(\langle w, u\rangle, \langle w, v\rangle)
        \ \le\ \mathrm{IWD}(x, z)

    Parameters
    ----------
    x, z, cost
        As for `exact`.
    directions : int
        Drawn at random with dual norm 1: for the l1 cost signs, for the l2 cost uniform on the
        sphere.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor (B,)
        A lower bound of `exact`, since <w, .> is 1-Lipschitz. Differentiable; sorts N numbers a
        direction, with no N x N matrix.

    Raises
    ------
    ValueError
        For images or patches as `exact`; for directions < 1.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, iwd
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> x, z, one = x[:1].double(), x[1:].double(), torch.Generator().manual_seed(0)
    >>> bool(iwd.sliced(x, z, generator=one) <= iwd.exact(x, z))
    True
    """
    cost = cost or PatchCost()
    checks.instance("cost", cost, PatchCost)
    checks.count("directions", directions)
    checks.image_pair(black=True, x=x, z=z)
    u, v = cost.cut(x), cost.cut(z)
    w = draws.normal(u.new_empty(u.shape[2], directions), generator)
    w = unit(w, cost, 0)
    return ((u @ w).sort(1).values - (v @ w).sort(1).values).abs().mean((1, 2))
