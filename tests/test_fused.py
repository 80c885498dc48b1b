"""A step in one kernel is the step of PyTorch; the kernel runs under Triton's interpreter."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from interpreter import barriers_only, needs_triton
from torch import Tensor

from wotlab import GroundCost
from wotlab.plans import PotentialPlans
from wotlab.plans._potential import fuses

Numbers = tuple[Tensor, ...]


def interpreted(x: Tensor, cost: GroundCost, given: Numbers, block: int, late: bool) -> Numbers:
    """A step by the kernel, so many pixels at a time."""
    from wotlab.plans import _fused

    plans, _fused.BLOCK = PotentialPlans(x, cost), block
    plans.fused = True
    with barriers_only() if late else nullcontext():
        return plans.step(*given)


def case(shape, seed=0, scale=3.0, eps=0.3, sweeps=1) -> tuple[Tensor, Numbers]:
    """A black image, one with full and with black pixels, and a full one; where steps begin."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(3, *shape, generator=draw)
    x = x.where(x > 0.3, 0).where(x < 0.8, 1)
    x[0], x[2] = 0, 1
    G, phi = scale * torch.rand(2, *x.shape, generator=draw).double()
    psi = scale * torch.rand(3, generator=draw).double()
    return x, (2 * G - scale, phi / 3, psi, torch.full_like(psi, eps), sweeps)


def held(x: Tensor, cost: GroundCost, given: Numbers, found: Numbers) -> None:
    """It is what PyTorch makes of it, and it is feasible."""
    plans = PotentialPlans(x.double(), cost)
    for one, other in zip(found, plans.step(*given), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    image, spent = found[2:]
    assert ((image >= 0) & (image <= 1)).all() and (spent <= given[3] * (1 + 1e-5)).all()
    mass, then = plans.x.sum((2, 3)), image.sum((2, 3))
    torch.testing.assert_close(then, mass, rtol=1e-5, atol=0)


CASES = {
    "one pixel": ((1, 1, 1), GroundCost(5), {}),
    "one row": ((1, 1, 7), GroundCost(3), {}),
    "colour": ((3, 5, 4), GroundCost(9), {}),
    "window 1": ((2, 3, 3), GroundCost(1), {}),
    "window 3": ((1, 8, 8), GroundCost(3, p=2), {"sweeps": 3}),
    "window 5": ((1, 8, 8), GroundCost(5, norm=1), {}),
    "window 9": ((1, 8, 8), GroundCost(9, p=2, norm=1), {}),
    "window 13": ((1, 8, 8), GroundCost(13), {}),
    "whole grid": ((1, 8, 8), GroundCost(None), {}),
    "no budget": ((1, 5, 4), GroundCost(5), {"eps": 0.0}),
    "tiny budget": ((1, 5, 4), GroundCost(5), {"eps": 1e-7, "sweeps": 3}),
    "huge budget": ((2, 5, 4), GroundCost(5), {"eps": 1e6, "sweeps": 2}),
    "steep": ((2, 5, 4), GroundCost(5), {"scale": 200.0, "sweeps": 2}),
    "far": ((1, 5, 4), GroundCost(None, p=9), {"eps": 1e4}),
    "flat": ((1, 5, 4), GroundCost(3), {"scale": 0.0}),
    "digit": ((1, 28, 28), GroundCost(3), {}),
}


BIG = {
    "digit, window 9": ((1, 28, 28), GroundCost(9), {}),
    "colour, 64 x 64": ((3, 64, 64), GroundCost(3), {}),
}
ON_A_GPU = CASES | BIG | {
    "digit, whole grid": ((1, 28, 28), GroundCost(None), {"sweeps": 3}),
    "four channels": ((4, 48, 64), GroundCost(13), {"eps": 3.0}),
}  # fmt: skip


@needs_triton
@pytest.mark.parametrize(
    ("shape", "cost", "how"),
    [pytest.param(*one, id=name) for name, one in CASES.items()]
    + [pytest.param(*one, id=name, marks=pytest.mark.slow) for name, one in BIG.items()],
)
def test_kernel_is_the_step(shape, cost, how, apart):
    x, given = case(shape, **how)
    held(x, cost, given, apart(interpreted, x, cost, given, 512, False))


@needs_triton
@pytest.mark.parametrize("block", [4, 16])
def test_no_thread_reads_what_another_writes_before_a_barrier(block, apart):
    """Bit by bit the same whether what is written is seen at once or from the next barrier on.

    At once, blocks go one by one, and later ones see what earlier ones wrote.
    """
    cost, (x, given) = GroundCost(3, p=2), case((1, 4, 4), sweeps=2)
    early, late = (apart(interpreted, x, cost, given, block, when) for when in (False, True))
    held(x, cost, given, late)
    assert all(map(torch.equal, early, late))


@needs_triton
def test_numbers_in_single_precision_give_such(apart):
    x, given = case((2, 5, 4))
    wanted = apart(interpreted, x, GroundCost(5), given, 16, False)
    single = *(part.float() for part in given[:4]), given[4]
    phi, psi, image, spent = apart(interpreted, x, GroundCost(5), single, 16, False)
    assert phi.dtype == psi.dtype == spent.dtype == torch.float32 and image.dtype == torch.float64
    for one, other in zip((phi, psi, image, spent), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5)


@needs_triton
def test_a_kernel_is_taken_only_where_it_runs_and_is_right(apart, monkeypatch):
    assert apart(fuses, torch.device("cpu"))
    assert not PotentialPlans(torch.ones(1, 1, 2, 2), GroundCost()).fused
    fuses.cache_clear()
    with pytest.warns(UserWarning, match="PyTorch computes the plans, Triton does not"):
        assert not fuses(torch.device("cpu"))  # without the interpreter
    fuses.cache_clear()
    from wotlab.plans import _fused

    monkeypatch.setattr(_fused, "step", lambda x, G, phi, psi, *more: (phi, psi, x, 0 * psi))
    with pytest.warns(UserWarning, match="it is wrong"):
        assert not fuses(torch.device("cpu"))
    fuses.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("shape", "cost", "how"), ON_A_GPU.values(), ids=ON_A_GPU.keys())
def test_compiled_kernel_is_the_step(shape, cost, how):
    """Each time the same bits, and the host waits for none of them."""
    x, given = case(shape, **how)
    with warnings.catch_warnings(action="error"):
        plans = PotentialPlans(x.repeat(100, 1, 1, 1).cuda(), cost)
    assert plans.fused
    many = *(part.repeat(100, *[1] * (part.ndim - 1)).cuda() for part in given[:4]), given[4]
    first = plans.step(*many)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = plans.step(*many)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first, second))
    for part in first:
        assert torch.equal(part, part[:3].repeat(100, *[1] * (part.ndim - 1)))
    held(x, cost, given, tuple(part[:3].cpu() for part in first))
