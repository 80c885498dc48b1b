"""Balanced Sinkhorn with a separable cost in one launch on a GPU: a program a pair, in float64.

Each iterates by the rules of `_alternate`, and is done when its own error is small. Log-sum-exps
go along rows, then along columns: as products with the kernel, the potential's largest taken out,
where no kernel is too sharp for that, else with the largest exponent of each sum taken out.
"""
# mypy: allow-untyped-defs
# what Triton compiles has types of its own

import torch
import triton
import triton.language as tl
from torch import Tensor

from wotlab._base.batch import Batch
from wotlab.ot._kernels import sharp

BLOCK = 1024  # pixels at a time, a power of two from 128; four a thread
LOWEST = tl.constexpr(torch.finfo(torch.float64).min)
SIZES = ["most", "height_a", "width_a", "height_b", "width_b", "max_iter", "look"]


def alternate(at: Batch, tol: float, max_iter: int, look: int) -> dict[str, Tensor]:
    """What `_alternate` returns for `Balanced` marginals, looking at the error so often."""
    log_a, log_b = at.log_a.contiguous(), at.log_b.contiguous()
    (pairs, *shape_a), shape_b, factors = log_a.shape, log_b.shape[1:], at.kernel.factors
    exact = sharp(sum(factor.smallest for factor in factors), log_a.dtype)
    tables = [factor.log_k if exact else factor.k for factor in factors]
    back = [table.T.contiguous() for table in tables]  # threads that are neighbours read neighbours
    there = [table.contiguous() for table in tables]
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    next_f, next_g, error = torch.zeros_like(f), torch.zeros_like(g), f.new_empty(pairs)
    iterations = torch.empty(pairs, dtype=torch.long, device=f.device)
    most = max(shape_a[0], shape_b[0]) * max(shape_a[1], shape_b[1])
    block = min(BLOCK, max(triton.next_power_of_2(most), 128))
    with torch.cuda.device_of(f):
        _alternate[(pairs,)](
            log_a, log_b, *there, *back, f, g, next_f, next_g, error, iterations,
            f.new_empty(pairs, 2, most), f.new_full((1,), tol),
            most, *shape_a, *shape_b, min(max_iter, 2**31 - 1), look, exact, block,
            num_warps=max(block // 128, 1),
        )  # fmt: skip
    return {"f": f, "g": g, "error": error, "iterations": iterations}


@triton.jit(do_not_specialize=SIZES)
def _alternate(
    log_a, log_b, down, across, up, along, f, g, next_f, next_g, errors, iterations, scratch, tol,
    most, height_a, width_a, height_b, width_b, max_iter, look,
    EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Potentials are updated when they are next needed, so that an error is that of (f, g)."""
    p = tl.program_id(0).to(tl.int64)
    n, m = height_a * width_a, height_b * width_b
    log_a, f, next_f = log_a + p * n, f + p * n, next_f + p * n
    log_b, g, next_g = log_b + p * m, g + p * m, next_g + p * m
    scratch += p * 2 * most
    aim, error = tl.load(tol), tl.full((), float("inf"), tl.float64)
    omega, one = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    step, last = 0, max_iter
    while step < last:
        step += 1
        looks = (step % look == 0) | (step == max_iter)
        _update(
            g, next_g, log_b, omega, next_f, up, along,
            scratch, most, height_b, width_b, height_a, width_a, EXACT, BLOCK,
        )  # fmt: skip
        _update(
            f, next_f, log_a, tl.where(looks, one, omega), next_g, down, across,
            scratch, most, height_a, width_a, height_b, width_b, EXACT, BLOCK,
        )  # fmt: skip
        if looks:
            before, error = error, tl.zeros((), tl.float64)
            for first in range(0, m, BLOCK):
                k = first + tl.arange(0, BLOCK)
                mass = tl.exp(tl.load(log_b + k, k < m, -float("inf")))
                ratio = tl.exp(tl.load(g + k, k < m, 0.0) - tl.load(next_g + k, k < m, 0.0))
                error += tl.sum(tl.where(mass > 0, tl.abs(mass * ratio - mass), 0.0))
            omega = _relaxation(omega, tl.exp(tl.log(error / before) / look))
            last = tl.where(error <= aim, step, last)
    tl.store(errors + p, error)
    tl.store(iterations + p, step)


@triton.jit
def _relaxation(omega, rate):
    """The same as in `_entropic.py`."""
    theta = (rate + omega - 1) * (rate + omega - 1) / (rate * omega * omega)
    best = 2 / (1 + tl.sqrt(1 - tl.minimum(theta, 1 - 1e-7)))
    best = tl.where(rate <= 0.99 * (omega - 1), 1 + 0.95 * (omega - 1), best)
    return tl.where(rate < 1, tl.minimum(tl.maximum(best, 1.0), 1.98), 1.0)


@triton.jit
def _update(
    potential, new, log_mass, omega, other, down, across, scratch, most, height, width,
    out_height, out_width, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A potential goes `omega` of the way to its new value; `other` is the other's new value.

    Tables have a row an input. Barriers part phases in which no thread reads what another one
    writes.
    """
    h, half, n = scratch, scratch + most, height * width
    top = tl.full((), LOWEST, tl.float64)
    for first in range(0, n, BLOCK):
        k = first + tl.arange(0, BLOCK)
        now = tl.load(potential + k, k < n, 0.0)
        now += omega * (tl.load(new + k, k < n, 0.0) - now)
        tl.store(potential + k, now, k < n)
        now += tl.load(log_mass + k, k < n, -float("inf"))
        tl.store(h + k, now, k < n)
        top = tl.maximum(top, tl.max(now))
    tl.debug_barrier()
    if not EXACT:
        for first in range(0, n, BLOCK):
            k = first + tl.arange(0, BLOCK)
            tl.store(h + k, tl.exp(tl.load(h + k, k < n, 0.0) - top), k < n)
        tl.debug_barrier()
    n = height * out_width
    for first in range(0, n, BLOCK):
        k = first + tl.arange(0, BLOCK)
        at = tl.minimum(k, n - 1)
        source, table = h + at // out_width * width, across + at % out_width
        tl.store(half + k, _sum(source, 1, table, out_width, width, EXACT, BLOCK), k < n)
    tl.debug_barrier()
    n = out_height * out_width
    for first in range(0, n, BLOCK):
        k = first + tl.arange(0, BLOCK)
        at = tl.minimum(k, n - 1)
        source, table = half + at % out_width, down + at // out_width
        total = _sum(source, out_width, table, out_height, height, EXACT, BLOCK)
        if not EXACT:
            total = tl.log(total) + top
        tl.store(other + k, -total, k < n)
    tl.debug_barrier()


@triton.jit
def _sum(source, step, table, table_step, count, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """sum_j source_j table_j, or log sum_j exp(source_j + table_j)."""
    total = tl.zeros((BLOCK,), tl.float64)
    if EXACT:
        top = total + LOWEST  # finite: where nothing is, the logarithm of 0 says so
        for j in range(count):
            exponent = tl.load(source + j * step) + tl.load(table + j * table_step)
            top = tl.maximum(top, exponent)
        for j in range(count):
            exponent = tl.load(source + j * step) + tl.load(table + j * table_step)
            total += tl.exp(exponent - top)
        total = tl.log(total) + top
    else:
        for j in range(count):
            total += tl.load(source + j * step) * tl.load(table + j * table_step)
    return total
