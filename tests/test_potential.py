"""Plans of one potential: their window sums are the plan's own, their multipliers its optimum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab import GroundCost, WassersteinBall, certify
from wotlab.plans import Moves, PotentialPlans, TransportPlan, repair

SHAPES = [(1, 1, 1), (1, 1, 7), (1, 6, 1), (3, 5, 4), (1, 8, 8)]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def problem(shape, seed=0, light=1.0, span=6.0):
    """Images, some pixels black, and a potential, multipliers of distance and of full pixels."""
    x = light * random(2, *shape, seed=seed) * (random(2, *shape, seed=seed + 1) > 0.3)
    G = span * (random(2, *shape, seed=seed + 2) - 0.5)
    return x, G, random(2, *shape, seed=seed + 3), 0.5 + random(2, seed=seed + 4)


COSTS = [GroundCost(3), GroundCost(5), GroundCost(9), GroundCost(None), GroundCost(5, 2, 2),
         GroundCost(5, 1, 1), GroundCost(1)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_the_image_and_the_cost_are_the_plans(shape, cost):
    """In light images with a large budget nothing has to be repaired."""
    x, G, phi, psi = problem(shape, light=0.02)
    plans = PotentialPlans(x, cost)
    z, paid = plans.feasible(G, phi, psi, torch.full_like(psi, 1e3))
    plan = plans.plan(G, phi, psi)
    assert torch.allclose(plan.source(), x)
    assert torch.allclose(z, plan.image(), atol=1e-12)
    assert torch.allclose(paid, plan.cost(), atol=1e-12)


def test_the_plan_is_the_softmax_of_the_potential_where_mass_arrives():
    """Entry by entry, from the formula."""
    x, G, phi, psi = problem((1, 3, 4))
    plan = PotentialPlans(x, GroundCost(None)).plan(G, phi, psi).mass
    steps = GroundCost(None).offsets(3, 4).tolist()
    for i in range(3):
        for j in range(4):
            scores = {}
            for k, (down, right) in enumerate(steps):
                if 0 <= i + down < 3 and 0 <= j + right < 4:
                    worth = (G - phi)[0, 0, i + down, j + right]
                    scores[k] = worth - psi[0] * (down**2 + right**2) ** 0.5
            share = torch.stack(list(scores.values())).softmax(0)
            expected = torch.zeros(len(steps)).double()
            expected[list(scores)] = x[0, 0, i, j] * share
            assert torch.allclose(plan[0, 0, :, i, j], expected)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("light, eps", [(1.0, 0.05), (1.0, 0.4), (1.0, 9.0), (0.3, 0.2)])
def test_what_it_makes_feasible_is_what_repair_makes_of_its_plan(shape, light, eps):
    x, G, phi, psi = problem(shape, light=light)
    cost, budget = GroundCost(5), torch.full_like(psi, eps)
    x = x.float()  # both leave what float32 rounds
    plans, moves = PotentialPlans(x, cost), Moves(x, cost)
    z, paid = plans.feasible(G, phi, psi, budget)
    plan = plans.plan(G, phi, psi)
    shares = moves.shares(TransportPlan(plan.mass.float(), cost))
    shares, image = repair(moves, shares, budget.float())
    assert torch.allclose(z.float(), image, atol=1e-5)
    assert torch.allclose(paid.float(), moves.cost(shares), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_sweeps_end_in_the_best_plan_of_the_ball(shape, eps):
    """Where they do not change any more: cost eps, no pixel above 1, phi only on full ones.

    These are the conditions of the maximum of <q, G> plus entropy, a concave problem.
    """
    x, G, phi, psi = problem(shape)
    plans, budget = PotentialPlans(x, GroundCost(3)), torch.full_like(psi, eps)
    phi = 0 * phi
    for _ in range(4000):
        phi, psi = plans.sweep(G, phi, psi, budget)
    plan = plans.plan(G, phi, psi)
    z, paid = plan.image(), plan.cost()
    assert bool((paid <= budget * (1 + 1e-4)).all()) and bool((psi >= 0).all())
    spends = psi > 1e-6
    assert torch.allclose(paid[spends], budget[spends], rtol=1e-4)
    assert bool((z <= 1 + 1e-4).all())
    assert bool((z[phi > 1e-6] >= 1 - 1e-4).all())


def test_one_sweep_by_hand():
    """Two pixels, one unit apart: psi by Newton's step on log cost, phi by log z."""
    x = torch.tensor([[[[0.8, 0.4]]]]).double()
    G = torch.tensor([[[[0.0, 1.0]]]]).double()
    phi, psi, eps = torch.zeros_like(G), torch.ones(1).double(), torch.tensor([0.1]).double()
    go, back = (torch.sigmoid(torch.tensor(v)).double() for v in (1.0 - 1.0, -1.0 - 1.0))
    cost = (0.8 * go + 0.4 * back) / 1.2
    slope = (0.8 * go * (1 - go) + 0.4 * back * (1 - back)) / 1.2
    z = torch.stack([0.8 * (1 - go) + 0.4 * back, 0.4 * (1 - back) + 0.8 * go])
    found, multiplier = PotentialPlans(x, GroundCost(3)).sweep(G, phi, psi, eps)
    newton = 1 + (cost / 0.1).log() * cost / slope
    assert float(newton) > 1.5 + 0.5  # too far: no more than half as much again and a half
    assert multiplier.item() == pytest.approx(2.0)
    assert torch.allclose(found.flatten(), z.log().clamp_min(0))
    _, near = PotentialPlans(x, GroundCost(3)).sweep(G, phi, psi, cost[None] / 1.1)
    assert near.item() == pytest.approx(float(1 + torch.tensor(1.1).log() * cost / slope))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    eps=st.floats(1e-6, 100.0),
    window=st.sampled_from([1, 3, 5, 9, 13]),
    p=st.sampled_from([1, 2]),
    sparse=st.floats(0.0, 1.0),
    span=st.sampled_from([1.0, 30.0, 2000.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_potential_the_image_lies_in_the_ball(
    shape, eps, window, p, sparse, span, dtype, seed
):
    """By the plan's cost, an upper bound of the distance; exactly, where that is quick."""
    x = random(2, *shape, seed=seed).to(dtype)
    x[random(2, *shape, seed=seed + 1) < sparse] = 0
    x[random(2, *shape, seed=seed + 2) < 0.2] = 1
    G = span * (random(2, *shape, seed=seed + 3) - 0.5)
    cost = GroundCost(window, p)
    plans, budget = PotentialPlans(x, cost), torch.full((2,), eps, dtype=torch.double)
    phi, psi = torch.zeros_like(G), torch.ones(2).double()
    for _ in range(3):
        phi, psi = plans.sweep(G, phi, psi, budget)
    z, paid = plans.feasible(G, phi, psi, budget)
    assert bool(z.isfinite().all() & paid.isfinite().all() & psi.isfinite().all())
    assert bool((paid <= eps * (1 + 1e-9)).all())
    assert bool((z >= 0).all() & (z <= 1).all())
    assert torch.allclose(z.sum((2, 3)), x.double().sum((2, 3)), rtol=1e-5, atol=1e-9)
    if x[0].numel() <= 150:
        seen = certify(x.double(), z, WassersteinBall(eps, cost))
        assert bool(seen.inside.all()) and bool((seen.cost <= paid + 1e-6).all())


def test_a_selection_is_what_the_images_alone_would_be():
    x, G, phi, psi = problem((3, 5, 4))
    keep, eps = torch.tensor([False, True]), torch.full((1,), 0.1).double()
    some, alone = (
        PotentialPlans(x, GroundCost(5)).select(keep),
        PotentialPlans(x[1:], GroundCost(5)),
    )
    for left, right in zip(
        some.feasible(G[1:], phi[1:], psi[1:], eps), alone.feasible(G[1:], phi[1:], psi[1:], eps),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(left, right)


@pytest.mark.parametrize("eps", [1e-6, 1e-4, 1e-2])
def test_what_a_tiny_budget_moves_is_not_lost_at_full_pixels(eps):
    """What a pixel holds above 1 is cut off: next to nothing of the mass that the budget moves."""
    x = random(20, 1, 1, 9).clone()
    x[random(20, 1, 1, 9, seed=1) < 0.5] = 1
    plans, budget = PotentialPlans(x, GroundCost(None)), x.new_full((20,), eps)
    G, phi, psi = 5 * random(20, 1, 1, 9, seed=2), torch.zeros_like(x), x.new_ones(20)
    for _ in range(4):
        phi, psi, z, _ = plans.step(G, phi, psi, budget)
        lost = (z.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).abs()
        assert float(lost.max()) <= 1e-5 * eps
        assert bool(certify(x, z, WassersteinBall(eps)).inside.all())
