"""Sinkhorn in one kernel is Sinkhorn of PyTorch; the kernel runs under Triton's interpreter."""

import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from interpreter import barriers_only, needs_triton
from torch import Tensor

from wotlab import GroundCost, ot
from wotlab.ot import _entropic
from wotlab.ot._kernels import Kernel
from wotlab.ot.marginals import KL, Balanced

L1, SQUARED = GroundCost(None, norm=1), GroundCost(None, p=2, norm=2)
Solved = tuple[list[Tensor], list[Tensor]]


def images(*shape, seed=0) -> tuple[Tensor, Tensor]:
    """Three pairs with empty pixels; the second is of one image, the third of two constants."""
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(2, 3, *shape, generator=draw, dtype=torch.double) - 0.3).clamp(0)
    x[..., -1, -1] += 0.1
    y[..., 0, 0] += 0.1
    y[1], x[2], y[2] = x[1], 0.4, 0.7
    for v in (x, y):
        v /= v.sum((2, 3), keepdim=True)  # each channel holds the same share
    return x, y


def solved(x: Tensor, y: Tensor, cost: GroundCost, reg: float, **how) -> Solved:
    """All that a result holds, and the gradients of its values."""
    x, y = (v.clone().requires_grad_() for v in (x, y))
    done = ot.sinkhorn(x, y, cost, reg, **how)
    slopes = torch.autograd.grad(done.value.sum(), (x, y))
    exact = [done.iterations, done.converged]
    return exact, [done.marginal_error, done.value.detach(), done.primal, done.dual,
                   done.f, done.g, done.plan, *slopes]  # fmt: skip


def interpreted(given: tuple, how: dict, block: int = 1024, late: bool = False) -> Solved:
    """The same by the kernel, so many pixels at a time."""
    from wotlab.ot import _fused

    def alternate(*given):
        with barriers_only() if late else nullcontext():
            return whole(*given)

    _entropic._fits, _fused.BLOCK = lambda at, marginal: True, block
    whole, _fused.alternate = _fused.alternate, alternate
    found = solved(*given, **how)
    _fused.alternate = whole
    return found


def same(ours: Solved, theirs: Solved, atol=1e-9) -> None:
    assert all(map(torch.equal, ours[0], theirs[0]))
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-7, atol=atol)


CASES = {
    "one pixel": ((1, 1, 1), L1, 0.5, {}),
    "one row": ((1, 1, 7), L1, 0.1, {"max_iter": 20}),
    "one column": ((1, 6, 1), SQUARED, 2.0, {}),
    "until it has converged": ((1, 5, 4), L1, 0.5, {"tol": 1e-8}),
    "reg 0.1": ((1, 4, 3), L1, 0.1, {"tol": 1e-4}),
    "squared": ((1, 4, 5), SQUARED, 1.0, {}),
    "colour": ((3, 4, 3), L1, 0.5, {"tol": 1e-4}),
    "sharp": ((1, 4, 5), L1, 0.005, {"max_iter": 20}),
    "sharp, squared": ((1, 5, 4), SQUARED, 0.02, {"max_iter": 20}),
    "as sharp as can be": ((1, 4, 3), L1, 1e-6, {"max_iter": 10}),
    "blunt": ((1, 4, 3), L1, 1e3, {}),
    "only one iteration": ((1, 5, 4), L1, 0.5, {"max_iter": 1}),
    "between two looks": ((1, 5, 4), L1, 0.1, {"max_iter": 17}),
    "17 x 33": ((1, 17, 33), L1, 0.5, {"max_iter": 12}),
}
BIG = {
    "digit, reg 0.1": ((1, 28, 28), L1, 0.1, {"max_iter": 20}),
    "64 x 64": ((1, 64, 64), L1, 0.5, {"max_iter": 2}),
    "64 x 64, sharp": ((1, 64, 64), L1, 0.1, {"max_iter": 2}),
}


@needs_triton
@pytest.mark.parametrize(
    ("shape", "cost", "reg", "how"),
    [pytest.param(*one, id=name) for name, one in CASES.items()]
    + [pytest.param(*one, id=name, marks=pytest.mark.slow) for name, one in BIG.items()],
)
def test_kernel_is_sinkhorn(shape, cost, reg, how, apart):
    given = (*images(*shape), cost, reg)
    same(apart(interpreted, given, how), solved(*given, **how))


@needs_triton
def test_each_pair_stops_by_itself_and_its_error_is_that_of_its_potentials(apart):
    x, y = images(1, 5, 4)
    (iterations, converged), numbers = apart(interpreted, (x, y, L1, 0.1), {"tol": 1e-5})
    assert converged.all() and len(iterations.unique()) == 3 and iterations[2] == 10
    error, plan = numbers[0], numbers[6][:, 0]
    rows, columns = (plan.sum(k) - v.flatten(1) for k, v in ((2, x), (1, y)))
    torch.testing.assert_close(rows.abs().sum(1) + columns.abs().sum(1), error, rtol=0, atol=1e-12)
    assert (error <= 1e-5).all() and error[0] > 1e-10


@needs_triton
def test_boxes_of_mass_may_differ(apart):
    x, y = images(1, 6, 7)
    x[..., :2, :], x[..., 5:], y[..., 4:, :] = 0, 0, 0
    given = (x / x.sum((2, 3), keepdim=True), y / y.sum((2, 3), keepdim=True), L1, 0.5)
    same(apart(interpreted, given, {}), solved(*given))


@needs_triton
@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("reg", [0.5, 0.005])
def test_no_thread_reads_what_another_writes_before_a_barrier(block, reg, apart):
    """Bit by bit the same whether what is written is seen at once or from the next barrier on."""
    given, how = (*images(1, 3, 4), L1, reg), {"max_iter": 11}
    early, late = (apart(interpreted, given, how, block, when) for when in (False, True))
    same(late, solved(*given, **how))
    for one, other in zip(early, late, strict=True):
        assert all(map(torch.equal, one, other))


@needs_triton
def test_a_kernel_is_taken_only_where_it_runs_and_is_right(apart, monkeypatch):
    fuses = _entropic.fuses
    assert apart(fuses, torch.device("cpu"))
    fuses.cache_clear()
    with pytest.warns(UserWarning, match="PyTorch computes Sinkhorn, Triton does not"):
        assert not fuses(torch.device("cpu"))  # without the interpreter
    fuses.cache_clear()
    from wotlab.ot import _fused

    wrong = {k: torch.zeros(2) for k in ("f", "g", "error", "iterations")}
    monkeypatch.setattr(_fused, "alternate", lambda *given: wrong)
    with pytest.warns(UserWarning, match="PyTorch computes Sinkhorn, Triton does not"):
        assert not fuses(torch.device("cpu"))
    fuses.cache_clear()


@pytest.mark.parametrize(
    ("where", "sides", "axes", "marginal", "wanted"),
    [
        ("cuda", (64, 64), 2, Balanced(), True),
        ("cuda", (65, 3), 2, Balanced(), False),
        ("cuda", (8, 8), 2, KL(1.0), False),
        ("cuda", (1, 64), 1, Balanced(), False),
        ("cpu", (8, 8), 2, Balanced(), False),
    ],
)
def test_it_does_what_it_was_made_for(where, sides, axes, marginal, wanted, monkeypatch):
    monkeypatch.setattr(_entropic, "fuses", lambda device: True)
    a = SimpleNamespace(is_cuda=where == "cuda", shape=(3, *sides), device=where)
    at = SimpleNamespace(a=a, b=a, kernel=SimpleNamespace(axes=(0,) * axes))
    assert _entropic._fits(at, marginal) == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("shape", "cost", "reg", "how"), (CASES | BIG).values(), ids=(CASES | BIG).keys()
)
def test_compiled_kernel_is_sinkhorn(shape, cost, reg, how, monkeypatch):
    """Among many pairs, each time the same bits, whatever else is in the batch."""
    x, y = images(*shape)
    with warnings.catch_warnings(action="error"):
        assert _entropic.fuses(torch.device("cuda", torch.cuda.current_device()))
        many = solved(x.repeat(50, 1, 1, 1).cuda(), y.repeat(50, 1, 1, 1).cuda(), cost, reg, **how)
    monkeypatch.setattr(_entropic, "_fits", lambda at, marginal: False)
    same([[v[:3].cpu() for v in part] for part in many], solved(x, y, cost, reg, **how))
    same([[v[-3:].cpu() for v in part] for part in many], solved(x, y, cost, reg, **how))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_waits_for_no_iteration():
    from wotlab.ot import _fused

    x, y = (v[:, 0].cuda() for v in images(1, 28, 28))
    axis = L1.axis(28, x.device, x.dtype)
    at = _entropic.Batch(kernel=Kernel((axis, axis), 0.1), log_a=x.log(), log_b=y.log())
    first = _fused.alternate(at, 1e-6, 10_000, _entropic.CHECK)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = _fused.alternate(at, 1e-6, 10_000, _entropic.CHECK)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first.values(), second.values()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("cost", "reg"), [(L1, 0.5), (L1, 0.1), (L1, 0.02), (SQUARED, 1.0)])
def test_compiled_kernel_converges_to_what_pytorch_converges_to(cost, reg, monkeypatch):
    x, y = (v.cuda() for v in images(1, 28, 28))
    given, how = (x, y, cost, reg), {"tol": 1e-8, "max_iter": 100_000}
    ours = ot.sinkhorn(*given, **how)
    monkeypatch.setattr(_entropic, "_fits", lambda at, marginal: False)
    theirs = ot.sinkhorn(*given, **how)
    assert ours.converged.all() and theirs.converged.all()
    torch.testing.assert_close(ours.value, theirs.value, rtol=0, atol=1e-6)
