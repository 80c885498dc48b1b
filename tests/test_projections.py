"""Projections against quadratic and exponential-cone programs; the papers' errors, measured."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import digits, pair

from wotlab import GroundCost, TransportPlan
from wotlab.ot import wasserstein_distance
from wotlab.projections import (
    constrained_sinkhorn,
    dual_projection,
    exact_projection,
    projected_sinkhorn,
    unbalanced_sinkhorn,
)

COST = GroundCost(5)
BALLS = {
    "projected": projected_sinkhorn,
    "constrained": constrained_sinkhorn,
    "dual": dual_projection,
    "exact": exact_projection,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def squared(z, w):
    return (z - w).square().sum((1, 2, 3))


# Entropic projections


def test_excess_over_the_exact_projection_falls_with_lam():
    x, w = pair(4, 1, 8, 8)
    least = squared(exact_projection(x, w, 0.2, COST).image, w)
    excess = []
    for lam in (10.0, 100.0, 1000.0, 3000.0):
        found = constrained_sinkhorn(x, w, 0.2, COST, reg=1 / lam, tol=1e-6)
        assert found.converged.all()
        excess.append(float((squared(found.image, w) / least).mean()))
    assert excess == sorted(excess, reverse=True)
    assert 1.7 < excess[0] < 6 and 1.2 < excess[1] < 2
    assert 1.002 < excess[2] < 1.05 and 1.0 < excess[3] < 1.006


def test_the_multiplier_of_distance_is_that_of_the_exact_projection():
    x, w = pair(3, 1, 6, 6, seed=1)
    exact = exact_projection(x, w, 0.2, COST).duals["psi"]
    found = constrained_sinkhorn(x, w, 0.2, COST, reg=1e-4, tol=1e-6, max_iter=5000)
    assert torch.allclose(found.duals["psi"] / 1e4, exact, rtol=0.03)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.01, 0.3, 2.0]), st.sampled_from([3, 5, None]))
def test_result_lies_in_the_ball(seed, eps, window):
    x, w = pair(2, 2, 5, 6, seed=seed)
    cost = GroundCost(window)
    found = constrained_sinkhorn(x, w, eps, cost, tol=1e-5)
    total = x.sum((1, 2, 3))[:, None]
    assert found.converged.all()
    assert found.image.min() >= 0 and found.image.max() <= 1
    assert ((found.image - x).sum((2, 3)).abs() <= 1e-5 * total).all()  # channel by channel
    assert (found.plan.cost() <= eps * (1 + 1e-5)).all()
    assert torch.allclose(found.plan.source(), x)
    assert ((found.plan.image() - found.image).abs().sum((1, 2, 3)) <= 2e-5 * total[:, 0]).all()


@pytest.mark.parametrize("rule", ["plan", "dual"])
def test_an_image_inside_the_ball_comes_back(rule):
    x, _ = pair(2, 1, 6, 6, seed=3)
    w = x.clone()
    w[:, :, 3, 3] += 0.05 * x[:, :, 3, 2]
    w[:, :, 3, 2] *= 0.95
    w = w.clamp(max=1)
    w[:, :, 3, 2] += (x - w).sum((2, 3))
    tol = 1e-6 if rule == "plan" else 1e-10
    found = constrained_sinkhorn(x, w, 1.0, COST, reg=1e-4, tol=tol, rule=rule, max_iter=5000)
    assert found.converged.all()
    assert (found.image - w).abs().max() < 0.02


def spent(x, z):
    """Exact distance of images scaled to one mass."""
    z = z * (x.sum((1, 2, 3)) / z.sum((1, 2, 3)))[:, None, None, None]
    scale = z.amax((1, 2, 3), keepdim=True).clamp_min(1)
    return wasserstein_distance(x / scale, z / scale, COST)


@pytest.mark.parametrize("tol, most", [(0.01, 1.1), (0.1, 2.0)])
def test_the_published_stop_test_does_not_see_the_distance(tol, most):
    """It holds the mass of z and the plan's cost, and z lies outside the ball all the same."""
    x = digits()[0]
    total = x.sum((1, 2, 3), keepdim=True)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    g = g - g.mean((1, 2, 3), keepdim=True)
    w = x + 0.02 * total * g / g.abs().amax((1, 2, 3), keepdim=True)
    found = constrained_sinkhorn(x, w, 0.1, COST, rule="published", tol=tol)
    strict = constrained_sinkhorn(x, w, 0.1, COST, tol=tol)
    assert found.converged.all() and (found.plan.cost() <= 0.1 * (1 + tol)).all()
    assert ((found.image.sum((1, 2, 3)) / total.flatten() - 1).abs() <= tol + 1e-9).all()
    assert float(spent(x, found.image).mean()) > most * 0.1
    assert float(spent(x, strict.image).mean()) < 0.8 * float(spent(x, found.image).mean())
    # where both are iterated to the end they agree
    tight = constrained_sinkhorn(x, w, 0.1, COST, rule="published", tol=1e-9, max_iter=9000)
    least = constrained_sinkhorn(x, w, 0.1, COST, tol=1e-7, max_iter=9000)
    assert torch.allclose(tight.image, least.image, atol=5e-3)


def test_the_published_loop_is_plain_block_ascent():
    """One turn more from the duals of an earlier call is one turn more of the same call."""
    x, w = pair(3, 1, 6, 6, seed=16)
    options = {"rule": "published", "tol": 1e-12}
    three = constrained_sinkhorn(x, w, 0.2, COST, max_iter=3, **options)
    two = constrained_sinkhorn(x, w, 0.2, COST, max_iter=2, **options)
    again = constrained_sinkhorn(x, w, 0.2, COST, max_iter=2, warm=two.duals, **options)
    assert torch.allclose(again.duals["beta"], three.duals["beta"], rtol=1e-3, atol=1e-3)


def test_only_the_bound_keeps_pixels_below_one():
    x, w = pair(3, 1, 8, 8, seed=4, step=1.0)
    free = projected_sinkhorn(x, w, 0.5, COST, tol=1e-8)
    kept = constrained_sinkhorn(x, w, 0.5, COST, tol=1e-6)
    assert (free.image.amax((1, 2, 3)) > 1.05).all()
    assert kept.image.max() <= 1 and kept.duals["phi"].max() > 0
    assert (free.duals["phi"] == 0).all()
    same = constrained_sinkhorn(x, w, 0.5, COST, tol=1e-8, rule="dual", bound=False)
    assert torch.equal(same.image, free.image)


def test_clamping_loses_mass_and_leaves_the_ball():
    x, w = pair(6, 1, 8, 8, seed=5, step=1.0)
    free = projected_sinkhorn(x, w, 0.3, COST, tol=1e-9)
    clamped = projected_sinkhorn(x, w, 0.3, COST, tol=1e-9, clamp=True).image
    mass = x.sum((1, 2, 3))
    assert torch.allclose(free.image.sum((1, 2, 3)), mass, rtol=1e-3)
    assert (clamped.sum((1, 2, 3)) < 0.98 * mass).all()
    scaled = clamped * (mass / clamped.sum((1, 2, 3)))[:, None, None, None]
    scale = scaled.amax((1, 2, 3), keepdim=True).clamp_min(1)
    assert (wasserstein_distance(x / scale, scaled / scale, COST) > 0.3).double().mean() > 0.5


def test_cap_uses_the_mass_of_x_not_of_w():
    # with r = 1 / |w|_1 of a dimmer w, pixels would exceed 1 (erratum b2)
    x, w = pair(3, 1, 6, 6, seed=6)
    found = constrained_sinkhorn(x, 0.8 * w.clamp(0, 1), 0.5, COST, tol=1e-6)
    assert found.image.max() <= 1
    assert torch.allclose(found.image.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lam", [1.0, 1e5])
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 1.0, 100.0])
def test_no_nan_at_the_extremes(eps, lam, dtype):
    x, w = pair(2, 1, 5, 5, seed=7, step=30.0, dtype=dtype)
    x[0, 0, :3] = 0  # pixels that no mass reaches
    for name in ("constrained", "projected"):
        found = BALLS[name](x, w, eps, GroundCost(3), reg=1 / lam, max_iter=60)
        parts = found.image, found.plan.mass, found.value, *found.duals.values()
        assert {part.dtype for part in parts} == {dtype} and len(parts) > 3
        assert found.image.isfinite().all() and found.plan.mass.isfinite().all()
        assert all(value.isfinite().all() for value in found.duals.values())
        assert (found.plan.cost() <= eps * (1 + 0.01)).all()


def test_warm_start_needs_fewer_iterations():
    x, w = pair(4, 1, 8, 8, seed=8)
    first = constrained_sinkhorn(x, w, 0.3, COST, tol=1e-4)
    near = w + 0.01 * pair(4, 1, 8, 8, seed=9)[0]
    cold = constrained_sinkhorn(x, near, 0.3, COST, tol=1e-4)
    warm = constrained_sinkhorn(x, near, 0.3, COST, tol=1e-4, warm=first.duals)
    assert (warm.iterations < cold.iterations).all()
    assert torch.allclose(warm.image, cold.image, atol=1e-2)
    again = constrained_sinkhorn(x, w, 0.3, COST, tol=1e-4, warm=first.duals)
    assert (again.iterations == 1).all() and torch.equal(again.image, first.image)


# What all projections onto a ball share


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_budget_returns_x_itself(name, dtype):
    x, w = pair(2, 2, 4, 5, dtype=dtype)
    found = BALLS[name](x, w, 0.0, COST)
    assert torch.equal(found.image, x) and found.converged.all()
    assert torch.equal(found.plan.mass, TransportPlan.identity(x, COST).mass)
    mixed = BALLS[name](x, w, torch.tensor([0.0, 0.2]), COST)
    assert torch.equal(mixed.image[0], x[0]) and not torch.allclose(mixed.image[1], x[1])


@pytest.mark.parametrize("name", BALLS)
def test_batch_is_a_loop(name):
    x, w = pair(3, 2, 5, 6, seed=10)
    eps = torch.tensor([0.05, 0.3, 1.0], dtype=torch.double)
    batch = BALLS[name](x, w, eps, COST)
    for i in range(3):
        one = BALLS[name](x[i : i + 1], w[i : i + 1], float(eps[i]), COST)
        assert torch.allclose(one.image[0], batch.image[i], atol=1e-8)
        assert torch.allclose(one.plan.mass[0], batch.plan.mass[i], atol=1e-8)
        assert one.iterations[0] == batch.iterations[i]


@pytest.mark.parametrize("name", BALLS)
def test_float32_agrees_with_float64(name):
    x, w = pair(2, 1, 6, 6, seed=11, dtype=torch.float32)
    single = BALLS[name](x, w, 0.3, COST)
    double = BALLS[name](x.double(), w.double(), 0.3, COST)
    assert single.image.dtype == torch.float32
    assert torch.allclose(single.image.double(), double.image, atol=1e-5)


@pytest.mark.parametrize("name", BALLS)
def test_bad_input(name):
    project = BALLS[name]
    x, w = pair(2, 1, 4, 4)
    bad = [float("inf"), -0.1, torch.tensor([0.1, -1.0]), torch.tensor([0.1, torch.nan]),
           torch.tensor([0.1, torch.inf])]  # fmt: skip
    for eps in bad:
        with pytest.raises(ValueError, match="eps must be"):
            project(x, w, eps, COST)
    with pytest.raises(ValueError, match=r"eps must be a number or have shape \(2,\)"):
        project(x, w, torch.ones(3), COST)
    with pytest.raises(ValueError, match="x must lie in"):
        project(x + 1, w, 0.1, COST)
    with pytest.raises(ValueError, match="w must have the dtype"):
        project(x, w.float(), 0.1, COST)
    with pytest.raises(ValueError, match="w must be finite"):
        project(x, w / 0, 0.1, COST)


def test_bad_options():
    x, w = pair(1, 1, 4, 4)
    with pytest.raises(ValueError, match="rule must be one of"):
        constrained_sinkhorn(x, w, 0.1, COST, rule="hu")
    with pytest.raises(ValueError, match="warm must hold 'beta'"):
        constrained_sinkhorn(x, w, 0.1, COST, warm={})
    with pytest.raises(ValueError, match=r"warm\['psi'\] must be finite"):
        psi = torch.full((1,), torch.inf)
        constrained_sinkhorn(x, w, 0.1, COST, warm={"beta": w, "psi": psi})
    for option in ("reg", "tol"):
        with pytest.raises(ValueError, match=f"{option} must be"):
            constrained_sinkhorn(x, w, 0.1, COST, **{option: 0.0})
    with pytest.raises(ValueError, match="max_iter must be a positive integer"):
        constrained_sinkhorn(x, w, 0.1, COST, max_iter=0)
    with pytest.raises(ValueError, match="w must be a plan with the ground cost"):
        dual_projection(x, TransportPlan.identity(x, GroundCost(3)), 0.1, COST)
    with pytest.raises(ValueError, match="variant must be one of"):
        unbalanced_sinkhorn(x, w, COST, variant="eq14")
    with pytest.raises(ValueError, match="max_iter must be"):
        unbalanced_sinkhorn(x, w, COST, max_iter=0)


def test_values_are_what_the_projections_minimise():
    x, w = pair(2, 1, 5, 5, seed=15)
    mass, reg = x.sum((1, 2, 3), keepdim=True), 0.01
    best = exact_projection(x, w, 0.2, COST)
    assert torch.allclose(best.value, (best.image - w).square().sum((1, 2, 3)) / 2)

    def entropic(found):
        plan = found.plan.mass / mass[:, :, None]
        far = ((found.image - w) / mass).square().sum((1, 2, 3)) / 2
        return far + reg * torch.special.xlogy(plan, plan).sum((1, 2, 3, 4))

    found = constrained_sinkhorn(x, w, 0.2, COST, reg=reg, tol=1e-6)
    assert torch.allclose(found.value, entropic(found))
    assert (found.value < entropic(best)).all() and found.value.dtype == x.dtype


# Dual projection


def nearest_plan(x, stepped, eps, cost, bound):
    """The same projection as a dense quadratic program: objective, in units of mass."""
    h, w = x.shape[-2:]
    costs = cost.dense(h, w).numpy()
    start, goal = (v.numpy() for v in (x.flatten() / x.sum(), stepped / x.sum()))
    plan = cp.Variable(costs.shape, nonneg=True)
    near = np.isfinite(costs) & (start > 0)[:, None]
    rules = [plan.sum(1) == start, plan[~near] == 0]
    rules += [cp.sum(cp.multiply(np.where(near, costs, 0), plan)) <= eps]
    rules += [plan.sum(0) <= 1 / float(x.sum())] * bound
    cp.Problem(cp.Minimize(cp.sum_squares(plan - goal)), rules).solve(solver=cp.CLARABEL)
    return float(((plan.value - goal)[near] ** 2).sum())


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("eps", [0.02, 0.3, 3.0])
def test_dual_projection_is_the_nearest_plan(eps, bound):
    x, w = pair(1, 1, 6, 6, seed=12)
    cost = GroundCost(3)
    found = dual_projection(x, w, eps, cost, bound=bound)
    assert found.converged.all()
    stepped = torch.diag(x.flatten()) + (w - x).flatten()
    steps = cost.gather(w - x) * cost.inside(6, 6)
    grid = TransportPlan(TransportPlan.identity(x, cost).mass + steps, cost)
    difference = (found.plan.mass - grid.mass) / x.sum() * (x > 0)[:, :, None]
    reached = float(difference.square().sum())
    assert float(found.value) == pytest.approx(reached / 2, rel=1e-6)
    assert reached == pytest.approx(nearest_plan(x, stepped, eps, cost, bound), rel=1e-4)
    assert torch.allclose(found.plan.source(), x, atol=1e-14)
    assert (found.plan.cost() <= eps * (1 + 1e-6)).all()
    if bound:
        assert found.plan.image().max() <= 1 + 1e-6
    same = dual_projection(x, grid, eps, cost, bound=bound)
    assert torch.allclose(same.plan.mass, found.plan.mass, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3, 1.0, 100.0]))
def test_dual_projection_keeps_rows_and_budget(seed, eps):
    x, w = pair(2, 2, 4, 5, seed=seed, step=3.0)
    found = dual_projection(x, w, eps, COST, max_iter=50)
    assert torch.allclose(found.plan.source(), x, atol=1e-14)
    assert (found.plan.cost() <= eps * (1 + 1e-6)).all()
    assert (found.plan.mass >= 0).all()
    for steps, start in zip(found.plan.mass.movedim(2, 0), x.expand(25, *x.shape), strict=True):
        assert (steps[start == 0] == 0).all()  # a black pixel sends nothing
