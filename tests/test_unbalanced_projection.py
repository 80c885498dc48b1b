"""Subramanyam's unbalanced projection against convex programs, and what is printed wrongly."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from known import digits, pair
from torch import nn

from wotlab import GroundCost
from wotlab.experiments import subramanyam
from wotlab.projections import unbalanced_sinkhorn

COST = GroundCost(5)

pytestmark = pytest.mark.usefixtures("one_thread")


def unbalanced_program(x, w, cost, gamma, eta, tau, l2):
    """The convex program by Clarabel, in exponential cones: its z, and its value."""
    n = x.numel()
    start, goal = x.flatten().numpy(), w.flatten().numpy()
    costs = cost.dense(*x.shape[-2:]).numpy()
    i, j = np.nonzero(np.isfinite(costs) & ((start > 0) | l2)[:, None])
    flow, z = cp.Variable(len(i)), cp.Variable(n, nonneg=True)
    rows, columns = np.zeros((n, len(i))), np.zeros((n, len(i)))
    rows[i, range(len(i))], columns[j, range(len(i))] = 1, 1

    def apart(a, b):
        return cp.sum_squares(a - b) / 2 if l2 else cp.sum(cp.kl_div(a, b))

    used = (start > 0) | l2
    loss = costs[i, j] @ flow - eta * (cp.sum(cp.entr(flow)) + cp.sum(flow))
    loss += tau * (apart((rows @ flow)[used], start[used]) + apart(columns @ flow, z))
    problem = cp.Problem(cp.Minimize(loss + gamma / 2 * cp.sum_squares(z - goal)))
    problem.solve(solver=cp.CLARABEL)
    return torch.tensor(z.value).reshape(x.shape), problem.value


@pytest.mark.parametrize("variant", ["corrected", "l2"])
@pytest.mark.parametrize("weights", [(0.5, 0.001, 0.01), (0.5, 0.05, 2.0), (0.02, 0.3, 0.5)])
def test_corrected_unbalanced_solves_its_problem(weights, variant):
    x, w = pair(1, 1, 8, 8, seed=13, step=0.3)
    gamma, eta, tau = weights
    cost = GroundCost(3)
    found = unbalanced_sinkhorn(x, w, cost, variant=variant, gamma=gamma, reg=eta, tau=tau)
    best, value = unbalanced_program(x, w, cost, *weights, variant == "l2")
    assert found.converged.all() and (found.image >= 0).all()
    assert (found.image - best).abs().max() < 1e-5
    assert float(found.value) == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_printed_update_is_brighter_by_tau_over_gamma():
    x, w = digits()
    bright = w > 0.3
    printed = unbalanced_sinkhorn(x, w, GroundCost(None), variant="printed").image
    corrected = unbalanced_sinkhorn(x, w, GroundCost(None)).image
    assert (printed - corrected)[bright].mean() == pytest.approx(0.02, rel=0.05)
    assert (corrected - w)[bright].abs().mean() < 0.002


@pytest.mark.parametrize("longest, most", [(1, 4e-6), (7 * 2**0.5, 4e-6), (64, 1e-2)])
@pytest.mark.parametrize("variant", ["printed", "corrected"])
def test_printed_parameters_move_next_to_no_mass(variant, longest, most):
    # C / longest with the printed weights is C with weights that are longest times as large
    x, w = digits()
    cost = GroundCost(None)
    weights = {"gamma": 0.5 * longest, "reg": 0.001 * longest, "tau": 0.01 * longest}
    plan = unbalanced_sinkhorn(x, w, cost, variant=variant, **weights).plan
    stays = (cost.offsets(8, 8) == 0).all(1)
    moved = plan.mass[:, :, ~stays].sum((1, 2, 3, 4)) / plan.mass.sum((1, 2, 3, 4))
    assert moved.max() < most


@pytest.mark.parametrize("variant", ["corrected", "printed", "l2"])
def test_unbalanced_batch_is_a_loop_and_finite(variant):
    x, w = pair(3, 2, 4, 5, seed=14, step=3.0)
    for dtype in (torch.float32, torch.float64):
        xs, ws = x.to(dtype), w.to(dtype)
        batch = unbalanced_sinkhorn(xs, ws, COST, variant=variant)
        assert batch.image.isfinite().all() and batch.plan.mass.isfinite().all()
        one = unbalanced_sinkhorn(xs[1:2], ws[1:2], COST, variant=variant)
        assert torch.allclose(one.image[0], batch.image[1], atol=1e-9)
        assert one.iterations[0] == batch.iterations[1]
        assert (batch.iterations == 10).all() == (variant == "printed")


def test_the_first_turn_of_the_variant_of_squares():
    """Rows meet x, then columns meet what is not dark of w, each by its own equation; then z."""
    x, w = pair(1, 1, 4, 5, seed=15, step=0.8)
    assert w.min() < -0.1 and w.max() > 1.1
    gamma, reg, tau = 0.5, 0.3, 0.7
    found = unbalanced_sinkhorn(
        x, w, COST, variant="l2", gamma=gamma, reg=reg, tau=tau, max_iter=1, tol=1e-300
    )
    costs = COST.dense(4, 5).double()
    alpha, beta = (found.duals[name].flatten() for name in ("alpha", "beta"))
    row = ((alpha[:, None] - costs) / reg).exp().sum(1)
    column = ((alpha[:, None] + beta - costs) / reg).exp().sum(0)
    assert torch.allclose(alpha, tau * (x.flatten() - row))
    assert torch.allclose(beta, tau * (w.flatten().clamp_min(0) - column))
    z = (tau * column + gamma * w.flatten()) / (tau + gamma)
    assert torch.allclose(found.image.flatten(), z.clamp_min(0)) and z.min() < 0


@pytest.mark.parametrize("variant", subramanyam.UPDATES)
def test_windows_of_one_pixel_of_five_and_the_full_matrix_give_one_image(variant):
    """At Subramanyam's weights no mass moves. On an image with wide black parts, as a digit has."""
    x = torch.zeros(2, 1, 9, 9)
    x[:, :, 1:4, 1:4] = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for size in (0.02, 0.2):  # one step, and ten
        w = x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
        ours = subramanyam.project(variant, x, w, subramanyam.BALL.ground_cost).image
        full = unbalanced_sinkhorn(x, w, GroundCost(None), variant=variant, max_iter=10)
        assert (ours - full.image).abs().max() < 1e-6
        assert (ours - x).abs().max() > 0.01
        five = unbalanced_sinkhorn(x, w, GroundCost(5), variant=variant, max_iter=10)
        near = nn.functional.max_pool2d(x, 5, 1, 2) > 0  # where mass is within the window
        assert (five.image - ours)[near].abs().max() < 1e-6


@pytest.mark.parametrize("variant", subramanyam.UPDATES)
def test_a_clamped_update_is_the_update_of_a_step_in_the_range(variant):
    x = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    w = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    cost = subramanyam.BALL.ground_cost
    clamped = subramanyam.project(variant + subramanyam.CLAMPED, x, w, cost).image
    plain = subramanyam.project(variant, x, w.clamp(0, 1), cost).image
    assert torch.equal(clamped, plain.clamp(0, 1))
    free = subramanyam.project(variant, x, w, cost).image
    assert clamped.min() >= 0 and not torch.equal(clamped, free.clamp(0, 1))
