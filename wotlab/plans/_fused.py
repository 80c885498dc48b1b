"""A step of `PotentialPlans` in one launch on a GPU: a program an image, in float32.

All exponents are taken from the window's largest, so potentials of any range do. Triton's
interpreter shows on a CPU what the kernel computes, one program and one block after the other.
That alone proves no kernel on a GPU: the tests marked `gpu` hold what is compiled to PyTorch.
"""
# mypy: allow-untyped-defs
# what Triton compiles has types of its own

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels at a time, a power of two; two a thread
KEPT = tl.constexpr(6)  # numbers a pixel that a program keeps for itself
FULL = tl.constexpr(1 + 8 * torch.finfo(torch.float32).eps)  # a pixel at 1, but for rounding
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)


def step(
    x: Tensor, G: Tensor, phi: Tensor, psi: Tensor, eps: Tensor, costs: Tensor,
    radii: tuple[int, int], sweeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `PotentialPlans.step` returns. Costs stay below 1e15: sums of squares are float32."""
    x, G, phi, psi, eps = (part.contiguous() for part in (x, G, phi, psi, eps))
    b, c, h, w = x.shape
    n, made = c * h * w, [torch.empty_like(x) for _ in range(2)]
    spent = [torch.empty_like(psi) for _ in range(2)]
    scratch = torch.empty(b, KEPT.value, n, dtype=torch.float32, device=x.device)
    block = min(BLOCK, max(triton.next_power_of_2(n), 32))
    with torch.cuda.device_of(x):
        _step[(b,)](
            x, G, phi, psi, eps, costs.float(), made[0], spent[0], made[1], spent[1], scratch,
            n, sweeps, h, w, *radii, block, num_warps=max(block // 64, 1),
            enable_fp_fusion=False,  # a share is the same number where it leaves and arrives
        )  # fmt: skip
    return made[0], spent[0], made[1], spent[1]


@triton.jit
def _step(
    x, G, phi, psi, eps, costs, new_phi, new_psi, image, spent, scratch,
    n, sweeps, height: tl.constexpr, width: tl.constexpr, down: tl.constexpr,
    right: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sweeps` times `PotentialPlans.sweep`, then `feasible`.

    Barriers part phases in which no thread reads what another one writes.
    """
    b = tl.program_id(0).to(tl.int64)
    x, G, phi, new_phi, image = x + b * n, G + b * n, phi + b * n, new_phi + b * n, image + b * n
    potential = scratch + b * KEPT * n  # G - phi
    highest, share = potential + n, potential + 2 * n  # of each source
    stays, arriving, accepted = potential + 3 * n, potential + 4 * n, potential + 5 * n
    budget, per_pixel = tl.load(eps + b).to(tl.float32), tl.load(psi + b).to(tl.float32)
    aim, mass = tl.maximum(budget, 1e-12), 0.0
    for first in range(0, n, BLOCK):
        k, _, _, exists = _pixels(first, n, height, width, BLOCK)
        full = tl.load(phi + k)
        tl.store(new_phi + k, full, exists)
        tl.store(potential + k, tl.load(G + k) - full, exists)
        mass += tl.sum(tl.load(x + k, exists, 0.0).to(tl.float32))
    mass = tl.maximum(mass, LEAST)
    tl.debug_barrier()

    cost, over = 0.0, 0
    for turn in range(sweeps + 1):
        cost, slope = _leave(
            potential, x, costs, highest, share, stays, per_pixel,
            n, height, width, down, right, BLOCK,
        )  # fmt: skip
        cost, slope = cost / mass, slope / mass
        tl.debug_barrier()
        for first in range(0, n, BLOCK):
            k, row, column, exists = _pixels(first, n, height, width, BLOCK)
            own, come = tl.load(potential + k), tl.zeros((BLOCK,), tl.float32)
            for i in range(-down, down + 1):
                rows = (row >= -i) & (row < height - i)
                for j in range(-right, right + 1):
                    far = rows & (column >= -j) & (column < width - j) & ((i != 0) | (j != 0))
                    c = tl.load(costs + max(i, -i) * (right + 1) + max(j, -j))
                    top = tl.load(highest + k + (i * width + j), far, float("inf"))
                    weight = tl.exp(own - per_pixel * c - top)
                    come += weight * tl.load(share + k + (i * width + j), far, 0.0)
            z = come + tl.load(stays + k)
            if turn < sweeps:
                full = tl.load(new_phi + k) + tl.log(tl.maximum(z, 1e-6))
                full = tl.maximum(full, 0.0)
                tl.store(new_phi + k, full, exists)
                tl.store(potential + k, tl.load(G + k) - full, exists)
            else:
                tl.store(arriving + k, come, exists)
                tl.store(accepted + k, 1.0, exists)
                over += tl.sum(((z > FULL) & exists).to(tl.int32))
        tl.debug_barrier()
        if turn < sweeps:
            newton = per_pixel + tl.log(tl.maximum(cost / aim, 1e-6)) * cost / tl.maximum(
                slope, 1e-30
            )
            newton = tl.where(cost > 1e-6 * aim, newton, 0.0)
            newton = tl.minimum(newton, 1.5 * per_pixel + 0.5)
            per_pixel = tl.maximum(newton, per_pixel / 1.5)
    tl.store(new_psi + b, per_pixel)

    turn = 0
    while (turn < 5) & (over > 0):
        for first in range(0, n, BLOCK):
            k, _, _, exists = _pixels(first, n, height, width, BLOCK)
            own, come = tl.load(x + k).to(tl.float32), tl.load(arriving + k)
            part, stay = tl.load(accepted + k), tl.load(stays + k)
            some = (part * come + stay > FULL) | (turn == 4)
            stay = tl.where(turn == 4, own, stay)
            room = (1 - stay) / tl.maximum(part * come, LEAST)
            room = tl.minimum(tl.maximum(room, 0.0), 1.0)
            tl.store(accepted + k, tl.where(some, part * room, part), exists)
        tl.debug_barrier()
        cost, over = 0.0, 0
        for first in range(0, n, BLOCK):
            k, row, column, exists = _pixels(first, n, height, width, BLOCK)
            top, sent = tl.load(highest + k), tl.load(share + k)
            left, paid = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
            for i in range(-down, down + 1):
                rows = (row >= -i) & (row < height - i)
                for j in range(-right, right + 1):
                    far = rows & (column >= -j) & (column < width - j) & ((i != 0) | (j != 0))
                    c = tl.load(costs + max(i, -i) * (right + 1) + max(j, -j))
                    there = tl.load(potential + k + (i * width + j), far, -float("inf"))
                    weight = tl.exp(there - per_pixel * c - top)
                    weight *= tl.load(accepted + k + (i * width + j), far, 0.0)
                    left += weight
                    paid += weight * c
            stay = tl.load(x + k).to(tl.float32) - sent * left
            z = tl.load(accepted + k) * tl.load(arriving + k) + stay
            tl.store(stays + k, stay, exists)
            over += tl.sum(((z > FULL) & exists).to(tl.int32))
            cost += tl.sum(tl.where(exists, sent * paid, 0.0))
        cost, turn = cost / mass, turn + 1
        tl.debug_barrier()

    keep = tl.minimum(budget / tl.maximum(cost, LEAST), 1.0)
    tl.store(spent + b, keep * cost)
    for first in range(0, n, BLOCK):
        k, _, _, exists = _pixels(first, n, height, width, BLOCK)
        own = tl.load(x + k).to(tl.float32)
        z = tl.load(accepted + k) * tl.load(arriving + k) + tl.load(stays + k)
        z = own + keep * (z - own)
        tl.store(image + k, tl.minimum(tl.maximum(z, 0.0), 1.0), exists)


@triton.jit
def _leave(
    potential, x, costs, highest, share, stays, per_pixel,
    n, height: tl.constexpr, width: tl.constexpr, down: tl.constexpr, right: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Where mass goes: log-normalisers of all sources; sums of the cost and of its variance.

    The normaliser is kept as its largest exponent, and x over what remains of it.
    """
    cost, slope = 0.0, 0.0
    for first in range(0, n, BLOCK):
        k, row, column, exists = _pixels(first, n, height, width, BLOCK)
        own = tl.load(potential + k)
        top = own
        for i in range(-down, down + 1):
            for j in range(-right, right + 1):
                exponent, c = _exponent(
                    potential, costs, k, row, column, i, j, per_pixel, height, width, right
                )
                top = tl.maximum(top, exponent)
        total = tl.zeros((BLOCK,), tl.float32)
        paid, square = total, total
        for i in range(-down, down + 1):
            for j in range(-right, right + 1):
                exponent, c = _exponent(
                    potential, costs, k, row, column, i, j, per_pixel, height, width, right
                )
                weight = tl.exp(exponent - top)
                total += weight
                paid += weight * c
                square += weight * c * c
        mass = tl.load(x + k, exists, 0.0).to(tl.float32)
        mean = paid / total
        cost += tl.sum(mass * mean)
        slope += tl.sum(mass * (square / total - mean * mean))
        tl.store(highest + k, top, exists)
        tl.store(share + k, mass / total, exists)
        tl.store(stays + k, mass * (tl.exp(own - top) / total), exists)
    return cost, slope


@triton.jit
def _exponent(
    potential, costs, k, row, column, i, j, per_pixel,
    height: tl.constexpr, width: tl.constexpr, right: tl.constexpr,
):  # fmt: skip
    """The exponent of a move by (i, j) from pixels k, -infinity out of the image; what it costs."""
    inside = (row >= -i) & (row < height - i) & (column >= -j) & (column < width - j)
    c = tl.load(costs + max(i, -i) * (right + 1) + max(j, -j))
    there = tl.load(potential + k + (i * width + j), inside, -float("inf"))
    return there - per_pixel * c, c


@triton.jit
def _pixels(first, n, height: tl.constexpr, width: tl.constexpr, BLOCK: tl.constexpr):
    """Places of a block's pixels, rows, columns, and whether they exist; past the end, the last."""
    k = first + tl.arange(0, BLOCK)
    exists = k < n
    k = tl.minimum(k, n - 1)
    return k, k // width % height, k % width, exists
