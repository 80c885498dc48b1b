"""The semi-dual: a lower bound for every potential, tight at the best one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab import GroundCost, ot

L1 = GroundCost(None, 1, 1)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 0.05, 1.0]), st.floats(0, 5))
def test_every_potential_gives_a_lower_bound(seed, reg, size):
    x, y, z = noise(3, 1, 3, 4, seed=seed).split(1)
    g, h = size * (z - 0.5), size * (z.flip(3) - 0.5)
    best = ot.exact(x, y, L1).primal if reg == 0 else ot.sinkhorn(x, y, L1, reg, tol=1e-9).value
    low, high = (ot.semi_dual(v, x, y, L1, reg) for v in (g, h))
    assert low.item() <= best.item() + 1e-7
    assert ot.semi_dual((g + h) / 2, x, y, L1, reg).item() >= (low + high).item() / 2 - 1e-9


@pytest.mark.parametrize("reg", [0, 0.3])
@pytest.mark.parametrize("images", [True, False])
def test_the_solved_potential_attains_the_optimum(reg, images):
    x, y = noise(3, 1, 3, 4, seed=1), noise(3, 1, 3, 4, seed=2)
    y[0, 0, 1] = 0
    a, b, cost = (x, y, L1) if images else (x.flatten(1), y.flatten(1), noise(3, 12, 12, seed=3))
    if reg == 0:
        done = ot.exact(a, b, cost)
        best = done.primal
    else:
        done = ot.sinkhorn(a, b, cost, reg, tol=1e-12)
        best = done.value
    assert torch.allclose(ot.semi_dual(done.g, a, b, cost, reg), best)
    partner = ot.c_transform(done.g, b, cost, reg)
    assert torch.allclose(partner, done.f) or reg == 0


def test_gradient_is_the_mass_that_the_plan_lacks():
    x, y, g = (noise(1, 1, 3, 3, seed=k) for k in range(3))
    g.requires_grad_()
    (slope,) = torch.autograd.grad(ot.semi_dual(g, x, y, L1, 0.3).sum(), g)
    f = ot.c_transform(g, y, L1, 0.3).detach().flatten()
    a, b = (x / x.sum()).flatten(), (y / y.sum()).flatten()
    plan = a[:, None] * b * ((f[:, None] + g.flatten().detach() - L1.dense(3, 3)) / 0.3).exp()
    assert torch.allclose(plan.sum(1), a)
    assert torch.allclose(slope.flatten(), b - plan.sum(0))
    assert torch.autograd.gradcheck(lambda g: ot.semi_dual(g, x, y, L1, 0.3), (g,))


@pytest.mark.parametrize("cost", [L1, GroundCost(None, 1, 2)], ids=["separable", "dense"])
def test_hard_transform_is_the_largest_feasible_partner_and_stable(cost):
    b, g = noise(2, 2, 3, 4, seed=1), noise(2, 2, 3, 4, seed=2)
    f = ot.c_transform(g, b, cost)
    slack = cost.dense(3, 4) - f.reshape(2, 2, 12, 1) - g.reshape(2, 2, 1, 12)
    assert slack.min() > -1e-12
    assert slack.amin(3).abs().max() < 1e-12  # tight somewhere for every i
    again = ot.c_transform(ot.c_transform(f, b, cost), b, cost)
    assert torch.allclose(again, f)


def test_bad_input_is_named():
    x = noise(1, 1, 3, 3)
    with pytest.raises(ValueError, match="reg must"):
        ot.semi_dual(x, x, x, L1, -1.0)
    with pytest.raises(ValueError, match="g must"):
        ot.semi_dual(x[..., :2], x, x, L1)
    with pytest.raises(ValueError, match="g must be finite"):
        ot.c_transform(x / 0, x, L1)
