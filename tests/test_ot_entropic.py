"""Sinkhorn, balanced and unbalanced, against other solvers, limits and convex programs."""

import warnings

import cvxpy as cp
import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import wrightomega

from wotlab import GroundCost, ot
from wotlab.ot._kernels import Kernel

L1, L2, SQUARED = GroundCost(None, 1, 1), GroundCost(None, 1, 2), GroundCost(None, 2, 2)
COSTS = pytest.mark.parametrize("cost", [L1, L2, SQUARED], ids=["l1", "l2", "squared"])


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def digits(count=3, h=4, w=5):
    """Random images with empty pixels."""
    x, y = noise(count, 1, h, w, seed=1), noise(count, 1, h, w, seed=2)
    return x * (x > 0.3), y * (y > 0.3)


def flat(x):
    return x.flatten(1)


@COSTS
@pytest.mark.parametrize("reg", [0.2, 1.0, 5.0])
def test_against_pot(cost, reg):
    x, y = digits()
    done = ot.sinkhorn(x, y, cost, reg, tol=1e-11)
    c = cost.dense(4, 5).numpy()
    assert done.converged.all()
    for k in range(3):
        a, b = ((v[k] / v[k].sum()).flatten() for v in (x, y))
        i, j = a.nonzero().flatten(), b.nonzero().flatten()
        theirs = pot.sinkhorn(
            a[i].numpy(), b[j].numpy(), c[np.ix_(i, j)], reg,
            method="sinkhorn_log", stopThr=1e-12, numItermax=50_000,
        )  # fmt: skip
        ours = done.plan[k, 0]
        assert np.abs(ours[i][:, j].numpy() - theirs).max() < 1e-8
        assert ours.sum().item() == pytest.approx(ours[i][:, j].sum().item())
        paid = (c * ours.numpy()).sum()
        assert done.primal[k].item() == pytest.approx(paid, abs=1e-9)
        fee = reg * (ours * (ours / (a[:, None] * b)).clamp_min(1e-300).log())[i][:, j].sum()
        assert done.value[k].item() == pytest.approx(paid + fee.item(), abs=1e-7)


@pytest.mark.parametrize("cost", [L1, SQUARED], ids=["l1", "squared"])
@pytest.mark.parametrize("reg", [0.001, 0.01, 2.0])
def test_separable_kernel_is_the_dense_one_also_where_it_is_too_sharp(cost, reg):
    x, y = digits()
    options = {"tol": 1e-10, "max_iter": 20}  # later, over-relaxation amplifies rounding errors
    grid = ot.sinkhorn(x, y, cost, reg, **options)
    dense = ot.sinkhorn(flat(x), flat(y), cost.dense(4, 5), reg, **options)
    assert torch.equal(grid.iterations, dense.iterations)
    for name in ("primal", "dual", "value", "marginal_error"):
        assert torch.allclose(getattr(grid, name), getattr(dense, name), atol=1e-8), name
    assert torch.allclose(flat(grid.f), dense.f, atol=1e-8)
    assert torch.allclose(grid.plan[:, 0], dense.plan, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 10))
def test_it_converges_and_certifies_itself(seed, h, w, reg):
    x, y = noise(2, 1, h, w, seed=seed), noise(2, 1, h, w, seed=seed + 1)
    done = ot.sinkhorn(x, y, L1, reg, tol=1e-8)
    assert done.converged.all()
    a, b = flat(x / x.sum((2, 3), keepdim=True)), flat(y / y.sum((2, 3), keepdim=True))
    plan = done.plan[:, 0]
    assert ((plan.sum(2) - a).abs().sum(1) <= 1e-10).all()
    assert ((plan.sum(1) - b).abs().sum(1) <= 1e-8).all()
    assert torch.allclose(done.value, done.dual, atol=1e-6)
    assert (done.primal >= ot.exact(x, y, L1).primal - 1e-6).all()
    assert (done.value >= done.primal - 1e-9).all()


def test_value_tends_to_exact_and_to_the_product_plan():
    x, y = digits()
    a, b = flat(x / x.sum((2, 3), keepdim=True)), flat(y / y.sum((2, 3), keepdim=True))
    product = torch.einsum("bi,ij,bj->b", a, L2.dense(4, 5), b)
    assert torch.allclose(ot.sinkhorn(x, y, L2, 1e4).primal, product, rtol=1e-3)
    sharp = ot.sinkhorn(x, y, L2, 0.02, max_iter=50_000)
    assert torch.allclose(sharp.primal, ot.exact(x, y, L2).primal, atol=2e-3)


def test_a_batch_is_a_loop():
    x, y = digits(4)
    together = ot.sinkhorn(x, y, L1, 0.3)
    for k in range(4):
        alone = ot.sinkhorn(x[k : k + 1], y[k : k + 1], L1, 0.3)
        assert alone.iterations.item() == together.iterations[k].item()
        assert torch.allclose(alone.plan[0], together.plan[k], atol=1e-12)
    c = noise(4, 20, 20, seed=3)
    together = ot.sinkhorn(flat(x), flat(y), c, 0.3)  # a cost of its own for each pair
    for k in range(4):
        alone = ot.sinkhorn(flat(x)[k : k + 1], flat(y)[k : k + 1], c[k], 0.3)
        assert torch.allclose(alone.plan[0], together.plan[k], atol=1e-12)


def test_colours_add_up():
    x, y = (v / v.sum((2, 3), keepdim=True) for v in digits(2))
    colour = [torch.cat([v[:1], 2 * v[1:], 0 * v[:1]], 1) / 2 for v in (x, y)]
    grey, both = ot.sinkhorn(x, y, L1, 0.3, tol=1e-9), ot.sinkhorn(*colour, L1, 0.3, tol=1e-9)
    for name in ("primal", "value", "dual"):
        one, two = getattr(grey, name)
        assert getattr(both, name).item() == pytest.approx(((one + 2 * two) / 3).item())
    assert both.plan.shape == (1, 3, 20, 20) and both.plan.sum().item() == pytest.approx(1)


def test_dtype_and_order_of_the_output_follow_the_input():
    x, y = (v.float() for v in digits())
    done = ot.sinkhorn(x, y, L1, 0.3)
    tensors = (done.primal, done.dual, done.value, done.f, done.g, done.plan)
    assert {t.dtype for t in tensors} == {torch.float32}
    assert done.f.shape == x.shape and done.converged.all()
    assert "plan" not in repr(done.iterations) and done.plan is done.plan


@pytest.mark.parametrize(
    ("tau", "marginals"), [(None, "kl"), (0.4, "kl"), (3.0, "kl"), (0.4, "l2"), (3.0, "l2")]
)
def test_gradients_are_exact_at_the_optimum(tau, marginals):
    a, b = noise(2, 4, seed=1), noise(2, 5, seed=2)
    c = noise(2, 4, 5, seed=3)

    def value(a, b, c):
        if tau is None:
            return ot.sinkhorn(a, b, c, 0.2, tol=1e-13).value
        return ot.unbalanced_sinkhorn(a, b, c, 0.2, tau, marginals=marginals, tol=1e-13).value

    inputs = [v.requires_grad_() for v in (a, b, c)]
    assert torch.autograd.gradcheck(value, inputs)
    images = [noise(1, 1, 2, 3, seed=k).requires_grad_() for k in (4, 5)]
    assert torch.autograd.gradcheck(lambda x, y: value(x, y, L1), images)


@pytest.mark.parametrize("marginals", ["kl", "l2"])
@pytest.mark.parametrize("tau", [0.3, 4.0])
def test_unbalanced_against_a_convex_solver(marginals, tau):
    a, b, c, reg = noise(1, 3, seed=1) * 2, noise(1, 4, seed=2), noise(3, 4, seed=3) * 3, 0.3
    done = ot.unbalanced_sinkhorn(a, b, c, reg, tau, marginals=marginals, tol=1e-12)
    p = cp.Variable((3, 4), nonneg=True)
    p0, q0 = a[0].numpy(), b[0].numpy()
    fee = cp.sum(cp.kl_div(p, np.outer(p0, q0)))
    if marginals == "kl":
        penalty = cp.sum(cp.kl_div(cp.sum(p, 1), p0)) + cp.sum(cp.kl_div(cp.sum(p, 0), q0))
    else:
        penalty = (cp.sum_squares(cp.sum(p, 1) - p0) + cp.sum_squares(cp.sum(p, 0) - q0)) / 2
    linear = cp.sum(cp.multiply(c.numpy(), p))
    problem = cp.Problem(cp.Minimize(linear + reg * fee + tau * penalty))
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert done.converged.all()
    assert done.value.item() == pytest.approx(problem.value, abs=1e-6)
    assert done.dual.item() == pytest.approx(problem.value, abs=1e-6)
    assert np.abs(done.plan[0].numpy() - p.value).max() < 1e-4
    assert done.primal.item() == pytest.approx((linear + tau * penalty).value, abs=1e-4)


@pytest.mark.parametrize("marginals", ["kl", "l2"])
def test_unbalanced_limits(marginals):
    x, y = digits(2)
    y = y * (x.sum((2, 3), keepdim=True) / y.sum((2, 3), keepdim=True))
    x, y = x / 10, y / 10
    solve = lambda tau: ot.unbalanced_sinkhorn(  # noqa: E731
        x, y, L1, 0.5, tau, marginals=marginals, tol=1e-9, max_iter=100_000
    )
    total = x.sum((1, 2, 3)).view(-1, 1, 1)
    balanced = ot.sinkhorn(x, y, L1, 0.5, tol=1e-10).plan[:, 0] * total
    assert torch.allclose(solve(1e6).plan[:, 0], balanced, atol=1e-4)
    free = flat(x)[:, :, None] * flat(y)[:, None] * (-L1.dense(4, 5) / 0.5).exp()
    assert torch.allclose(solve(1e-6).plan[:, 0], free, rtol=1e-3, atol=1e-9)


def test_unbalanced_mass_travels_only_where_that_is_cheaper():
    x, y = torch.zeros(1, 1, 1, 9).double(), torch.zeros(1, 1, 1, 9).double()
    x[..., 2], y[..., 5] = 1, 1
    for tau in (0.5, 1.0, 4.0):
        carried = ot.unbalanced_sinkhorn(x, y, L1, 1e-4, tau).plan.sum().item()
        assert carried == pytest.approx(np.exp(-3 / (2 * tau)), rel=1e-3)


@pytest.mark.parametrize("marginals", ["kl", "l2"])
def test_unbalanced_channel_that_is_black_on_one_side_costs_its_mass(marginals):
    x, y = digits(1)
    x2, y2 = torch.cat([x, 0 * x], 1), torch.cat([y, y], 1)
    one, two = (
        ot.unbalanced_sinkhorn(u, v, L1, 0.5, 2.0, marginals=marginals)
        for u, v in ((x, y), (x2, y2))
    )
    lost = 2.0 * y.sum() if marginals == "kl" else y.square().sum()
    assert two.value.item() == pytest.approx((one.value + lost).item())
    assert two.plan[0, 1].sum() == 0
    y2[0, 1, 0, 0] = 0  # an empty pixel among those whose mass is lost
    done = ot.unbalanced_sinkhorn(x2, y2.requires_grad_(), L1, 0.5, 2.0, marginals=marginals)
    (slope,) = torch.autograd.grad(done.value.sum(), y2)
    expected = torch.full_like(y[0, 0], 2.0) if marginals == "kl" else 2.0 * y2[0, 1].detach()
    assert torch.allclose(slope[0, 1], expected)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 10.0]))
def test_divergence_is_zero_at_equal_images_and_positive_elsewhere(seed, reg):
    x, y = noise(1, 1, 3, 3, seed=seed), noise(1, 1, 3, 3, seed=seed + 1)
    s = lambda u, v: ot.sinkhorn_divergence(u, v, L2, reg, tol=1e-9).item()  # noqa: E731
    assert s(x, x) == pytest.approx(0, abs=1e-8)
    assert s(x, y) > 1e-7
    assert s(x, y) == pytest.approx(s(y, x), abs=1e-8)


def test_divergence_gradient_and_three_matrices():
    x, y = noise(1, 1, 2, 3, seed=1), noise(1, 1, 2, 3, seed=2)
    value = lambda u, v: ot.sinkhorn_divergence(u, v, L1, 0.3, tol=1e-13)  # noqa: E731
    assert torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()))
    same = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(value(same, same.detach()), same)
    assert slope.abs().max() < 1e-6  # its minimum
    p, q = noise(4, 2, seed=3), noise(5, 2, seed=4)
    costs = tuple(torch.cdist(u, v) for u, v in ((p, q), (p, p), (q, q)))
    a, b = torch.ones(1, 4).double(), torch.ones(1, 5).double()
    far = ot.sinkhorn_divergence(a, b, costs, 1e4)
    energy = costs[0].mean() - (costs[1].mean() + costs[2].mean()) / 2
    assert far.item() == pytest.approx(energy.item(), rel=1e-2)
    with pytest.raises(ValueError, match="square"):
        ot.sinkhorn_divergence(a, b, costs[0], 1.0)
    with pytest.raises(ValueError, match="three"):
        ot.sinkhorn_divergence(a, b, costs[:2], 1.0)


@pytest.mark.parametrize("reg", [1e-6, 1e3])
@pytest.mark.parametrize("tau", [None, 1e-6, 1e3])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_give_no_nan(reg, tau, shape, dtype):
    x, y = (noise(2, 2, *shape, seed=k).to(dtype) for k in (1, 2))
    x[0, 0], y[0, 0] = 1e-30, 1e-30
    y = y * (x.sum((2, 3), keepdim=True) / y.sum((2, 3), keepdim=True))
    y = y / y.max()
    x = x / x.sum((1, 2, 3), keepdim=True)
    y = y / y.sum((1, 2, 3), keepdim=True)
    kinds = [None] if tau is None else ["kl", "l2"]
    for kind in kinds:
        if tau is None:
            done = ot.sinkhorn(x, y, L1, reg, max_iter=30)
        else:
            done = ot.unbalanced_sinkhorn(x, y, L1, reg, tau, marginals=kind, max_iter=30)
        for name in ("primal", "dual", "value", "f", "g", "plan", "marginal_error"):
            assert getattr(done, name).isfinite().all(), (name, kind)


def test_large_images_and_single_iterations_run():
    x = noise(1, 1, 64, 64)
    assert ot.sinkhorn(x, x.flip(3), L1, 1.0).converged.all()
    stopped = ot.sinkhorn(x, x.flip(3), L1, 1.0, max_iter=1)
    assert not stopped.converged.any() and stopped.iterations.item() == 1


def test_wright_omega_over_its_whole_range():
    z = np.concatenate([np.linspace(-800, 800, 4001), np.geomspace(1e3, 1e6, 50)])
    ours = ot.wright_omega(torch.from_numpy(z)).numpy()
    assert np.allclose(ours, wrightomega(z).real, rtol=1e-14, atol=0)
    single = ot.wright_omega(torch.from_numpy(z).float()).numpy()
    moderate = z > -80
    assert np.allclose(single[moderate], wrightomega(z[moderate].astype("f4")), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"reg": 0}, "reg must"),
        ({"reg": -1.0}, "reg must"),
        ({"reg": float("nan")}, "reg must"),
        ({"tol": 0}, "tol must"),
        ({"max_iter": 0}, "max_iter must"),
        ({"max_iter": 2.5}, "max_iter must"),
        ({"tau": 0.0}, "tau must"),
        ({"tau": float("inf")}, "tau must"),
        ({"marginals": "l1"}, "marginals must"),
    ],
)
def test_bad_numbers_are_named(change, named):
    x, y = digits()
    options = {"reg": 0.5, "tau": 1.0} | change
    with pytest.raises(ValueError, match=named):
        ot.unbalanced_sinkhorn(x, y, L1, options.pop("reg"), options.pop("tau"), **options)


@pytest.mark.parametrize("tau", [5.0, 3000.0])
@pytest.mark.parametrize("marginals", ["kl", "l2"])
def test_unbalanced_with_black_pixels_against_a_convex_solver(tau, marginals):
    a = torch.tensor([[0.9, 0.0, 0.4, 0.0, 0.0]]).double()
    b = torch.tensor([[0.0, 0.7, 0.0, 0.5, 0.0]]).double()
    c, reg = (torch.arange(5.0)[:, None] - torch.arange(5.0)).abs().double(), 0.05
    a.requires_grad_()
    done = ot.unbalanced_sinkhorn(a, b, c, reg, tau, marginals=marginals, tol=1e-10)
    i, j = [0, 2], [1, 3]  # a plan moves nothing from or to pixels that hold nothing
    p0, q0 = a.detach()[0, i].numpy(), b[0, j].numpy()
    p = cp.Variable((2, 2), nonneg=True)
    fee = cp.sum(cp.kl_div(p, np.outer(p0, q0)))
    sums = ((cp.sum(p, 1), p0), (cp.sum(p, 0), q0))
    if marginals == "kl":
        penalty = sum(cp.sum(cp.kl_div(m, h)) for m, h in sums)
    else:
        penalty = sum(cp.sum_squares(m - h) for m, h in sums) / 2
    linear = cp.sum(cp.multiply(c.numpy()[np.ix_(i, j)], p))
    problem = cp.Problem(cp.Minimize(linear + reg * fee + tau * penalty))
    problem.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert done.converged.all()
    assert done.value.item() == pytest.approx(problem.value, rel=1e-6)
    assert done.dual.item() == pytest.approx(problem.value, rel=1e-6)
    assert np.abs(done.plan[0][i][:, j].detach().numpy() - p.value).max() < 1e-5
    assert done.plan.sum().item() == pytest.approx(p.value.sum(), abs=1e-5)
    (slope,) = torch.autograd.grad(done.value.sum(), a)
    assert slope.isfinite().all()


@pytest.mark.parametrize("marginals", ["kl", "l2"])
@pytest.mark.parametrize("tau", [1e-3, 500.0, 1e6])
def test_unbalanced_images_with_black_pixels_have_a_value(marginals, tau):
    x, y = digits(2)
    done = ot.unbalanced_sinkhorn(x, y, L2, 0.05, tau, marginals=marginals)
    assert done.converged.all() and torch.allclose(done.value, done.dual, rtol=1e-3)
    for name in ("value", "primal", "f", "g", "plan", "marginal_error"):
        assert getattr(done, name).isfinite().all(), name


def test_nan_is_never_called_converged(monkeypatch):
    x, y = digits(2)
    whole = Kernel.apply

    def broken(self, h, back=False):
        out = whole(self, h, back)
        out[0] = torch.nan
        return out

    monkeypatch.setattr(Kernel, "apply", broken)
    for done in (
        ot.sinkhorn(x, y, L1, 0.5, max_iter=20),
        ot.unbalanced_sinkhorn(x, y, L1, 0.5, 1.0, marginals="l2", max_iter=20),
    ):
        assert not done.converged[0] and done.marginal_error[0] == torch.inf
    with pytest.warns(UserWarning, match="did not converge"):
        ot.sinkhorn_divergence(x, y, L1, 0.5, max_iter=20)


@pytest.mark.parametrize("tau", [None, 0.5])
def test_dual_bounds_the_optimum_from_below_also_before_it_has_converged(tau):
    x, y = digits()
    solve = lambda n: (  # noqa: E731
        ot.sinkhorn(x, y, L2, 0.05, max_iter=n)
        if tau is None
        else ot.unbalanced_sinkhorn(x, y, L2, 0.05, tau, max_iter=n)
    )
    best = solve(20_000)
    assert best.converged.all()
    for early in (solve(1), solve(5), solve(20)):
        assert not early.converged.any()
        assert (early.dual <= best.value + 1e-9).all()


def test_a_divergence_that_has_not_converged_says_so():
    x, y = digits()
    with pytest.warns(UserWarning, match="3 of 3 problems did not converge in 3 iterations"):
        ot.sinkhorn_divergence(x, y, L2, 0.01, max_iter=3)
    flat_, other = torch.ones_like(x), torch.ones_like(x)
    flat_[0], other[0] = x[0], y[0]
    with pytest.warns(UserWarning, match="1 of 3 problems"):  # constant images are done at once
        ot.sinkhorn_divergence(flat_, other, GroundCost(None, 1, 2), 0.05, max_iter=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ot.sinkhorn_divergence(x, y, L2, 0.5)


@pytest.mark.parametrize("p", [0.5, 14, 20])
@pytest.mark.parametrize("norm", [1, 2])
def test_any_power_gives_no_nan(p, norm):
    x, y = (v.float() for v in digits(2, 16, 16))
    for reg in (0.1, 10.0**p):
        done = ot.sinkhorn(x, y, GroundCost(None, p, norm), reg, max_iter=20)
        for name in ("value", "primal", "dual", "f", "g"):
            assert not getattr(done, name).isnan().any(), name
