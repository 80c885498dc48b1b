"""Exact transport against closed forms, linear programming, and the axioms of a metric."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import wotlab
from wotlab import GroundCost, ot

COSTS = [GroundCost(None, p, norm) for p in (0.5, 1, 2) for norm in (1, 2)]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def dot(h, w, *places):
    image = torch.zeros(1, 1, h, w, dtype=torch.double)
    for row, column, mass in places:
        image[0, 0, row, column] = mass
    return image


def by_linear_program(a, b, c):
    n, m = c.shape
    equal = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    answer = linprog(c.ravel(), A_eq=equal, b_eq=np.concatenate([a, b]))
    assert answer.success
    return answer.fun


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_two_dots_pay_the_way_between_them(cost):
    x, y = dot(5, 7, (0, 1, 1.0)), dot(5, 7, (3, 5, 0.3))
    way = 3 + 4 if cost.norm == 1 else 5
    assert ot.exact(x, y, cost).primal.item() == pytest.approx(way**cost.p)


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_against_a_linear_program(cost):
    x, y = noise(3, 1, 3, 4, seed=1), noise(3, 1, 3, 4, seed=2)
    y[0, 0, 0] = 0  # empty pixels
    c = cost.dense(3, 4).numpy()
    for k, value in enumerate(wotlab.wasserstein_distance(x, y, cost)):
        a, b = ((v[k] / v[k].sum()).flatten().numpy() for v in (x, y))
        assert value.item() == pytest.approx(by_linear_program(a, b, c), abs=1e-9)


def test_a_shift_costs_its_length():
    x = torch.nn.functional.pad(noise(4, 1, 4, 5), (4, 4, 4, 4))
    shifted = x.roll((3, -4), (2, 3))
    for p, paid in ((1, 5), (2, 25)):
        value = wotlab.wasserstein_distance(x, shifted, GroundCost(None, p))
        assert torch.allclose(value, torch.full_like(value, paid))


def test_on_a_line_it_is_the_area_between_the_distribution_functions():
    x, y = noise(5, 1, 1, 20, seed=3), noise(5, 1, 1, 20, seed=4)
    a, b = x / x.sum(3, keepdim=True), y / y.sum(3, keepdim=True)
    area = (a.cumsum(3) - b.cumsum(3)).abs().sum((1, 2, 3))
    assert torch.allclose(wotlab.wasserstein_distance(x, y), area)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2]))
def test_it_is_a_metric(seed, h, w, norm):
    x, y, z = noise(3, 1, h, w, seed=seed).clamp_min(1e-3).split(1)
    cost = GroundCost(None, 1, norm)
    d = lambda u, v: wotlab.wasserstein_distance(u, v, cost).item()  # noqa: E731
    assert d(x, x) == pytest.approx(0, abs=1e-9)
    assert d(x, y) == pytest.approx(d(y, x), abs=1e-9)
    assert d(x, z) <= d(x, y) + d(y, z) + 1e-9
    assert d(x, y) == pytest.approx(d(x.flip(2), y.flip(2)), abs=1e-9)
    assert d(x, y) == pytest.approx(d(x.mT, y.mT), abs=1e-9)
    assert d(x, y / 7) == pytest.approx(d(x, y), abs=1e-9)  # brightness does not count


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4), (1, 1, 1)])
def test_potentials_certify_the_plan(shape):
    c, h, w = shape
    x, y = noise(3, *shape, seed=5), noise(3, *shape, seed=6)
    y = y * (x.sum((2, 3), keepdim=True) / y.sum((2, 3), keepdim=True))
    x, y = x / 20, y / 20
    done = ot.exact(x, y, GroundCost(None))
    n, total = h * w, x.sum((1, 2, 3)).view(-1, 1, 1)
    f, g = done.f.view(3, c, n, 1), done.g.view(3, c, 1, n)
    assert (f + g <= GroundCost(None).dense(h, w) + 1e-9).all()
    assert torch.allclose(done.primal, done.dual)
    assert torch.allclose(done.plan.sum(3), x.view(3, c, n) / total)
    assert torch.allclose(done.plan.sum(2), y.view(3, c, n) / total)


def test_a_batch_is_a_loop_and_colours_add_up():
    x, y = noise(4, 1, 4, 4, seed=7), noise(4, 1, 4, 4, seed=8)
    together = wotlab.wasserstein_distance(x, y)
    alone = torch.cat([wotlab.wasserstein_distance(x[k : k + 1], y[k : k + 1]) for k in range(4)])
    assert torch.equal(together, alone)
    x, y = x / x.sum((2, 3), keepdim=True), y / y.sum((2, 3), keepdim=True)
    colour = [torch.cat([v[:1], v[1:2] * 2, torch.zeros_like(v[:1])], 1) for v in (x, y)]
    both = wotlab.wasserstein_distance(*colour)
    assert both.item() == pytest.approx((together[0] + 2 * together[1]).item() / 3)


def test_channels_that_hold_other_shares_are_refused():
    x = noise(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"share.*channel"):
        wotlab.wasserstein_distance(x, x * torch.tensor([0.5, 1, 1]).view(1, 3, 1, 1))


def test_gradients_are_the_potentials_and_the_plan():
    x, y = noise(2, 1, 3, 3, seed=9), noise(2, 1, 3, 3, seed=10)
    squared = GroundCost(None, 2)
    value = lambda u, v: wotlab.wasserstein_distance(u, v, squared)  # noqa: E731
    x, y = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(value, (x, y), eps=1e-8, atol=1e-5)
    a, b, c = noise(2, 4, seed=1), noise(2, 5, seed=2), noise(2, 4, 5, seed=3).requires_grad_()
    done = ot.exact(a, b, c)
    done.value.sum().backward()
    assert torch.allclose(c.grad, done.plan)
    assert torch.autograd.gradcheck(lambda c: ot.exact(a, b, c).value, (c,), eps=1e-8, atol=1e-5)


def reaches(a, b, allowed):
    c = (~allowed).double().numpy()
    return by_linear_program(a.flatten().numpy(), b.flatten().numpy(), c) < 1e-9


def test_w_infinity_is_the_least_radius_with_a_plan():
    cost = GroundCost(None)
    c = cost.dense(3, 3)
    for seed in range(4):
        x, y = noise(2, 1, 3, 3, seed=seed).split(1)
        x, y = (x * (x > 0.4)).clamp_min(0) + dot(3, 3, (0, 0, 1e-3)), y * (y > 0.4)
        a, b = x / x.sum(), y / y.sum()
        radius = ot.wasserstein_infinity(x, y, cost).item()
        assert reaches(a, b, c <= radius + 1e-9)
        assert radius == 0 or not reaches(a, b, c < radius - 1e-9)


def test_w_infinity_of_a_shift_and_as_a_limit():
    x = torch.nn.functional.pad(noise(1, 1, 2, 2), (3, 3, 3, 3))
    assert ot.wasserstein_infinity(x, x.roll((0, 3), (2, 3))).item() == 3
    y = torch.nn.functional.pad(noise(1, 1, 3, 2, seed=2), (3, 3, 3, 2))
    far = ot.wasserstein_infinity(x, y).item()
    powers = [wotlab.wasserstein_distance(x, y, GroundCost(None, p)).item() ** (1 / p)
              for p in (1, 4, 16, 64)]  # fmt: skip
    assert powers == sorted(powers) and powers[-1] == pytest.approx(far, rel=0.1)
    assert powers[-1] <= far + 1e-9


BAD = {
    "nan": (torch.full((1, 1, 2, 2), torch.nan), "NaN"),
    "infinite": (torch.full((1, 1, 2, 2), torch.inf), "infinite"),
    "negative": (torch.full((1, 1, 2, 2), -0.5), r"\[0, 1\]"),
    "above one": (torch.full((1, 1, 2, 2), 255.0), r"\[0, 1\]"),
    "black": (torch.zeros(1, 1, 2, 2), "black"),
    "integers": (torch.ones(1, 1, 2, 2, dtype=torch.uint8), "uint8"),
    "three dimensions": (torch.ones(1, 2, 2), "shape"),
    "no image": (torch.ones(0, 1, 2, 2), "shape"),
    "no tensor": ([[1.0]], "tensor"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("solver", [wotlab.wasserstein_distance, ot.wasserstein_infinity])
def test_bad_images_are_named(kind, solver):
    bad, says = BAD[kind]
    good = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=rf"^x .*{says}"):
        solver(bad, good)
    with pytest.raises(ValueError, match=rf"^y .*{says}"):
        solver(good, bad)


def test_images_that_differ_in_kind_are_refused():
    x = torch.ones(2, 1, 3, 3)
    for y in (torch.ones(2, 1, 3, 4), torch.ones(1, 1, 3, 3), x.double()):
        with pytest.raises(ValueError, match="y must have the"):
            wotlab.wasserstein_distance(x, y)
    with pytest.raises(ValueError, match="cost must"):
        ot.exact(x, x, "l1")
    with pytest.raises(ValueError, match="cost must be"):
        ot.exact(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 4))
    with pytest.raises(ValueError, match="b must hold as many"):
        ot.exact(torch.ones(2, 3), torch.ones(1, 3), torch.ones(3, 3))


def test_two_dots_on_a_large_grid_need_no_matrix_of_it():
    x, y = dot(224, 224, (3, 4, 1.0)), dot(224, 224, (3, 4, 0.5), (103, 104, 0.5))
    begin = time.perf_counter()
    tracemalloc.start()
    done = ot.exact(x, y, GroundCost(None))
    far = ot.wasserstein_infinity(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.value.item() == pytest.approx(50 * 2**0.5) == done.dual.item()
    assert far.item() == pytest.approx(100 * 2**0.5)
    assert time.perf_counter() - begin < 1 and peak < 20e6  # the matrix: 40 GB


@pytest.mark.parametrize("cost", [GroundCost(None, 1, 2), GroundCost(3, 1, 1)], ids=str)
def test_potentials_are_tight_where_the_plan_moves(cost):
    x, y = noise(3, 1, 4, 5, seed=1), noise(3, 1, 4, 5, seed=2)
    x, y = x * (x > 0.5), y * (y > 0.4)  # empty pixels, others in each image
    done, c = ot.exact(x, y, cost), GroundCost(None, cost.p, cost.norm).dense(4, 5)
    slack = c - done.f.reshape(3, 20, 1) - done.g.reshape(3, 1, 20)
    assert slack.min() > -1e-12 and slack[done.plan[:, 0] > 0].max() < 1e-12
    a, b = x / x.sum((2, 3), keepdim=True), y / y.sum((2, 3), keepdim=True)
    assert torch.allclose((a * done.f + b * done.g).sum((1, 2, 3)), done.dual)


@pytest.mark.parametrize("p", [0.5, 14, 20])
@pytest.mark.parametrize("norm", [1, 2])
def test_any_power_is_solved_and_proved(p, norm):
    x, y = (torch.zeros(2, 1, 28, 28).double() for _ in range(2))
    x[:, :, 2:14, 3:9], y[:, :, 9:20, 12:22] = noise(2, 1, 12, 6), noise(2, 1, 11, 10, seed=1)
    x[..., 0, 0] = y[..., -1, -1] = 1e-3  # the range of costs up to the whole grid's
    done = ot.exact(x, y, GroundCost(None, p, norm))
    assert done.converged.all() and (done.value > 0).all()
    assert torch.allclose(done.value, done.dual, rtol=1e-5)
    far = ot.wasserstein_infinity(x, y, GroundCost(None, p, norm))
    assert (done.value <= far * (1 + 1e-9)).all()


def test_costs_of_either_sign():
    a, b, c = noise(1, 5, seed=1), noise(1, 4, seed=2), noise(5, 4, seed=3) - 0.7
    p, q = (v[0] / v.sum() for v in (a, b))
    for matrix in (c, -c.abs(), 0 * c):
        done = ot.exact(a, b, matrix)
        assert done.converged.all()
        best = by_linear_program(p.numpy(), q.numpy(), matrix.numpy())
        assert done.value.item() == pytest.approx(best, abs=1e-9)


def test_value_is_the_optimum_and_has_no_second_derivative():
    x, y = noise(1, 1, 3, 3, seed=1).requires_grad_(), noise(1, 1, 3, 3, seed=2)
    for done in (ot.exact(x, y, GroundCost(None)), ot.sinkhorn(x, y, GroundCost(None), 0.5)):
        (slope,) = torch.autograd.grad(done.value.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            slope.square().sum().backward()
    done = ot.exact(x, y, GroundCost(None))
    assert torch.equal(done.value, done.primal) and not done.primal.requires_grad


def test_a_solver_that_stops_early_is_no_answer(monkeypatch):
    x, y = noise(1, 1, 4, 4, seed=1), noise(1, 1, 4, 4, seed=2)
    monkeypatch.setattr("wotlab.ot._exact.MAX_PIVOTS", 1)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="stopped before the optimum"):
        ot.exact(x, y, GroundCost())
