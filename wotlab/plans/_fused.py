"""A step of `PotentialPlans` in one launch on a GPU: a program an image, in float32.

All exponents, to base 2, are taken from the window's largest, so potentials of any range do. What
is read around a pixel has a margin as wide as the window, so that no place needs a look whether it
is in the image. Triton's interpreter shows on a CPU what the kernel computes, one program and one
block after the other. That alone proves no kernel on a GPU: the tests marked `gpu` hold what is
compiled to PyTorch.
"""
# mypy: allow-untyped-defs
# what Triton compiles has types of its own

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels at a time, a power of two; two a thread
FULL = tl.constexpr(1 + 8 * torch.finfo(torch.float32).eps)  # a pixel at 1, but for rounding
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)
BITS = tl.constexpr(1 / math.log(2))  # exp(u) = 2 ** (BITS u)
INFINITY = tl.constexpr(math.inf)


def step(
    x: Tensor, G: Tensor, phi: Tensor, psi: Tensor, eps: Tensor, costs: Tensor,
    radii: tuple[int, int], sweeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `PotentialPlans.step` returns. Costs stay below 1e15: sums of squares are float32."""
    x, G, phi, psi, eps = (part.contiguous() for part in (x, G, phi, psi, eps))
    b, c, h, w = x.shape
    n, wide = c * h * w, c * (h + 2 * radii[0]) * (w + 2 * radii[1])
    made = torch.empty_like(phi), torch.empty_like(psi), torch.empty_like(x), torch.empty_like(psi)
    size = 4 * wide + 2 * n + len(costs)  # what a program keeps for itself
    scratch = torch.empty(b, size, dtype=torch.float32, device=x.device)
    block = min(BLOCK, max(triton.next_power_of_2(n), 32))
    with torch.cuda.device_of(x):
        _step[(b,)](
            x, G, phi, psi, eps, costs.float(), *made, scratch,
            size, n, wide, len(costs), sweeps, h, w, *radii, block, num_warps=max(block // 64, 1),
        )  # fmt: skip
    return made


@triton.jit
def _step(
    x, G, phi, psi, eps, costs, new_phi, new_psi, image, spent, scratch,
    size, n, wide, distances, sweeps, height: tl.constexpr, width: tl.constexpr,
    down: tl.constexpr, right: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sweeps` times `PotentialPlans.sweep`, then `feasible`.

    Barriers part phases in which no thread reads what another one writes.
    """
    b = tl.program_id(0).to(tl.int64)
    row: tl.constexpr = width + 2 * right  # places from one row of what has a margin to the next
    x, G, phi, new_phi, image = x + b * n, G + b * n, phi + b * n, new_phi + b * n, image + b * n
    potential = scratch + b * size  # G - phi
    highest, share, accepted = potential + wide, potential + 2 * wide, potential + 3 * wide
    stays, arriving, prices = potential + 4 * wide, potential + 4 * wide + n, potential + 4 * wide
    prices += 2 * n  # of each distance
    budget, per_pixel = tl.load(eps + b).to(tl.float32), tl.load(psi + b).to(tl.float32)
    aim, mass = tl.maximum(budget, 1e-12), 0.0
    for first in range(0, wide, BLOCK):  # nothing comes from the margin, nothing goes there
        k = first + tl.arange(0, BLOCK)
        tl.store(potential + k, -INFINITY, k < wide)
        tl.store(highest + k, INFINITY, k < wide)
        tl.store(share + k, 0.0, k < wide)
        tl.store(accepted + k, 0.0, k < wide)
    tl.debug_barrier()
    for first in range(0, n, BLOCK):
        k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
        full = tl.load(phi + k)
        tl.store(new_phi + k, full, exists)
        tl.store(potential + at, (tl.load(G + k) - full) * BITS, exists)
        mass += tl.sum(tl.load(x + k, exists, 0.0).to(tl.float32))
    mass = tl.maximum(mass, LEAST)

    cost, over = 0.0, 0
    for turn in range(sweeps + 1):
        for first in range(0, distances, BLOCK):
            k = first + tl.arange(0, BLOCK)
            price = per_pixel * tl.load(costs + k, k < distances, 0.0) * BITS
            tl.store(prices + k, price, k < distances)
        tl.debug_barrier()
        cost, slope = 0.0, 0.0
        for first in range(0, n, BLOCK):
            k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
            own = tl.load(potential + at)
            top = own
            for i in range(-down, down + 1):
                for j in range(-right, right + 1):
                    price = tl.load(prices + max(i, -i) * (right + 1) + max(j, -j))
                    top = tl.maximum(top, tl.load(potential + at + (i * row + j)) - price)
            total = tl.zeros((BLOCK,), tl.float32)
            paid, square = total, total
            for i in range(-down, down + 1):
                for j in range(-right, right + 1):
                    d = max(i, -i) * (right + 1) + max(j, -j)
                    there, c = tl.load(potential + at + (i * row + j)), tl.load(costs + d)
                    weight = tl.exp2(there - tl.load(prices + d) - top)
                    total += weight
                    paid += weight * c
                    square += weight * (c * c)
            own_mass = tl.load(x + k, exists, 0.0).to(tl.float32)
            mean = paid / total
            cost += tl.sum(own_mass * mean)
            slope += tl.sum(own_mass * (square / total - mean * mean))
            # the normaliser is kept as its largest exponent, and x over what remains of it
            tl.store(highest + at, top, exists)
            tl.store(share + at, own_mass / total, exists)
            tl.store(stays + k, own_mass * (tl.exp2(own - top) / total), exists)
        cost, slope = cost / mass, slope / mass
        tl.debug_barrier()
        for first in range(0, n, BLOCK):
            k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
            own, come = tl.load(potential + at), tl.zeros((BLOCK,), tl.float32)
            for i in range(-down, down + 1):
                for j in range(-right, right + 1):
                    price = tl.load(prices + max(i, -i) * (right + 1) + max(j, -j))
                    near = at + (i * row + j)
                    weight = tl.exp2(own - price - tl.load(highest + near))
                    come += weight * tl.where(near != at, tl.load(share + near), 0.0)
            z = come + tl.load(stays + k)
            if turn < sweeps:
                full = tl.load(new_phi + k) + tl.log(tl.maximum(z, 1e-6))
                full = tl.maximum(full, 0.0)
                tl.store(new_phi + k, full, exists)
                tl.store(potential + at, (tl.load(G + k) - full) * BITS, exists)
            else:
                tl.store(arriving + k, come, exists)
                tl.store(accepted + at, 1.0, exists)
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
            k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
            own, come = tl.load(x + k).to(tl.float32), tl.load(arriving + k)
            part, stay = tl.load(accepted + at), tl.load(stays + k)
            some = (part * come + stay > FULL) | (turn == 4)
            stay = tl.where(turn == 4, own, stay)
            room = (1 - stay) / tl.maximum(part * come, LEAST)
            room = tl.minimum(tl.maximum(room, 0.0), 1.0)
            tl.store(accepted + at, tl.where(some, part * room, part), exists)
        tl.debug_barrier()
        cost, over = 0.0, 0
        for first in range(0, n, BLOCK):
            k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
            top, sent = tl.load(highest + at), tl.load(share + at)
            left, paid = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
            for i in range(-down, down + 1):
                for j in range(-right, right + 1):
                    d = max(i, -i) * (right + 1) + max(j, -j)
                    near = at + (i * row + j)
                    weight = tl.exp2(tl.load(potential + near) - tl.load(prices + d) - top)
                    weight *= tl.where(near != at, tl.load(accepted + near), 0.0)
                    left += weight
                    paid += weight * tl.load(costs + d)
            stay = tl.load(x + k).to(tl.float32) - sent * left
            z = tl.load(accepted + at) * tl.load(arriving + k) + stay
            tl.store(stays + k, stay, exists)
            over += tl.sum(((z > FULL) & exists).to(tl.int32))
            cost += tl.sum(tl.where(exists, sent * paid, 0.0))
        cost, turn = cost / mass, turn + 1
        tl.debug_barrier()

    keep = tl.minimum(budget / tl.maximum(cost, LEAST), 1.0)
    tl.store(spent + b, keep * cost)
    for first in range(0, n, BLOCK):
        k, at, exists = _pixels(first, n, height, width, down, right, BLOCK)
        own = tl.load(x + k).to(tl.float32)
        z = tl.load(accepted + at) * tl.load(arriving + k) + tl.load(stays + k)
        z = own + keep * (z - own)
        tl.store(image + k, tl.minimum(tl.maximum(z, 0.0), 1.0), exists)


@triton.jit
def _pixels(
    first, n, height: tl.constexpr, width: tl.constexpr, down: tl.constexpr, right: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block's pixels, their places in what has a margin, and whether they exist.

    Past the end stands the last pixel.
    """
    k = first + tl.arange(0, BLOCK)
    exists = k < n
    k = tl.minimum(k, n - 1)
    row = k // width
    row += row // height * (2 * down) + down  # each channel has a margin of its own
    return k, row * (width + 2 * right) + k % width + right, exists
