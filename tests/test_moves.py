"""Moves agree with plans on the whole grid; repair makes any plan feasible and the cost less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab import GroundCost, TransportPlan, WassersteinBall, certify
from wotlab.plans import Moves, repair

SHAPES = [(1, 6, 5), (3, 4, 4), (1, 1, 7)]


def some(seed, shape, share=0.5, batch=3):
    """Images with black pixels, their moves, and random shares."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.double)
    x = x * (torch.rand(x.shape, generator=generator) < share)
    x[:, 0, 0, 0] = 0.5
    moves = Moves(x, GroundCost())
    scores = 3 * torch.randn(moves.outside.shape, generator=generator, dtype=torch.double)
    return x, moves, scores.masked_fill(moves.outside, -torch.inf).softmax(0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES))
def test_moves_are_the_plan_without_its_zeros(seed, shape):
    x, moves, shares = some(seed, shape)
    plan = moves.plan(shares)
    assert torch.allclose(plan.source(), x)
    assert torch.allclose(plan.image(), moves.push_forward(shares))
    assert torch.allclose(plan.cost(), moves.cost(shares))
    assert torch.allclose(moves.shares(plan), shares)
    image = torch.rand_like(x)
    read = (moves.gather(image) * shares * moves.pixels).sum()
    assert torch.allclose(read, (image * moves.push_forward(shares)).sum())  # adjoint


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES))
def test_select_is_the_same_as_fewer_images(seed, shape):
    x, moves, shares = some(seed, shape)
    keep = torch.tensor([True, False, True])
    few, columns = moves.select(keep), keep[moves.image_index]
    again = Moves(x[keep], GroundCost())
    assert torch.equal(few.push_forward(shares[:, columns]), again.push_forward(shares[:, columns]))
    assert torch.equal(few.gather(x[keep]), again.gather(x[keep]))
    assert torch.equal(few.outside, again.outside) and torch.equal(
        few.image_index, again.image_index
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from(SHAPES),
    eps=st.sampled_from([0.0, 1e-6, 0.1, 0.7, 10.0]),
    share=st.sampled_from([0.3, 0.9, 1.0]),
)
def test_repair(seed, shape, eps, share):
    x, moves, shares = some(seed, shape, share)
    x = (x * 1.8).clamp(max=1)  # full pixels
    moves = Moves(x, GroundCost())
    fixed, image = repair(moves, shares, eps)
    assert torch.allclose(fixed.sum(0), torch.ones(()).double())
    assert float(fixed.min()) >= -1e-15
    assert bool((moves.cost(fixed) <= torch.clamp(moves.cost(shares), max=eps) + 1e-12).all())
    assert torch.allclose(moves.push_forward(fixed), image, atol=1e-12)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert bool(certify(x, image, WassersteinBall(eps)).inside.all())


def test_repair_leaves_a_feasible_plan_alone():
    _, moves, shares = some(0, (1, 6, 5), share=0.2)
    shares = 0.2 * shares + 0.8 * moves.identity()
    fixed, image = repair(moves, shares, 10.0)
    assert torch.allclose(fixed, shares) and torch.allclose(image, moves.push_forward(shares))


def test_repair_spends_the_budget_where_no_pixel_is_full():
    x, _, shares = some(1, (1, 6, 5))
    moves = Moves(x / 100, GroundCost())
    fixed, _ = repair(moves, shares, 0.3)
    assert torch.allclose(moves.cost(fixed), torch.full((3,), 0.3).double())


def test_ball_repairs_and_projects():
    x, moves, shares = some(2, (1, 6, 5), share=1.0)
    ball = WassersteinBall(0.2)
    plan = ball.repair(x, moves.plan(shares))
    assert torch.allclose(plan.source(), x)
    assert bool(certify(x, plan, ball, exact=False).inside.all())
    w = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    z = ball.project(x, w)
    assert bool(ball.contains(x, z).all())
    assert bool(((z - w).square().sum((1, 2, 3)) < (x - w).square().sum((1, 2, 3))).all())
    with pytest.raises(ValueError, match="plan must have the ball's cost"):
        WassersteinBall(0.2, GroundCost(3)).repair(x, moves.plan(shares))
    with pytest.raises(ValueError, match="plan must be one of images"):
        ball.repair(x[:1], moves.plan(shares))


def test_a_pixel_that_must_give_back_twice():
    """A chain: 1 -> 2 -> 3 with every pixel full; what 3 returns overfills 2, and so on."""
    x = torch.ones(1, 1, 1, 4).double()
    x[..., 3] = 0.9
    cost = GroundCost(window=3)
    moves = Moves(x, cost)
    shares = moves.identity()
    right = int((cost.offsets(1, 4) == torch.tensor([0, 1])).all(1).nonzero())
    for pixel in range(3):
        shares[moves.stay, pixel], shares[right, pixel] = 0.5, 0.5
    assert float(moves.push_forward(shares).max()) > 1
    fixed, image = repair(moves, shares, 10.0)
    assert float(image.max()) <= 1
    assert torch.allclose(image.sum(), x.sum())
    plan = moves.plan(fixed)
    assert isinstance(plan, TransportPlan) and torch.allclose(plan.source(), x)


def test_rounding_above_a_white_pixel_does_not_cost_the_budget():
    # a white pixel receives mass within rounding: an image that is as good as full
    x = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    moves = Moves(x, GroundCost(window=3))
    shares = moves.identity()
    white, grey = 0, 1
    left, right = moves.stay - 1, moves.stay + 1
    shares[left, grey], shares[right, grey], shares[moves.stay, grey] = 6e-7, 0.4, 0.6 - 6e-7
    before = moves.cost(shares)
    assert float(moves.push_forward(shares).max()) > 1 and shares[moves.stay, white] == 1
    after, z = repair(moves, shares, 1.0)
    assert torch.allclose(moves.cost(after), before, rtol=1e-5)
    assert float(z.max()) <= 1 and torch.allclose(z.sum(), x.sum(), rtol=1e-6)


def test_a_black_image_has_no_moves_and_costs_nothing():
    x, _, _ = some(0, (2, 4, 5))
    x[1] = 0
    moves = Moves(x, GroundCost())
    assert not (moves.image_index == 1).any()
    shares = torch.rand(moves.outside.shape, generator=torch.Generator().manual_seed(0)).double()
    shares = shares.masked_fill(moves.outside, 0) / shares.masked_fill(moves.outside, 0).sum(0)
    assert moves.total(torch.ones_like(moves.mass))[1] == 0
    assert torch.allclose(moves.total(moves.mass), torch.tensor([1.0, 0, 1]).double())
    assert moves.cost(shares)[1] == 0 and (moves.cost(shares)[[0, 2]] > 0).all()
    for eps in (0.0, 0.3):
        fixed, image = repair(moves, shares, eps)
        assert fixed.isfinite().all() and image.isfinite().all() and (image[1] == 0).all()
        assert (moves.cost(fixed) <= eps + 1e-12).all()
        assert certify(x, moves.plan(fixed), WassersteinBall(eps), exact=False).inside.all()
        assert certify(x, image, WassersteinBall(eps)).inside.all()
    dark = Moves(torch.zeros(2, 1, 3, 3), GroundCost())  # nothing but black
    _, image = repair(dark, dark.identity(), 0.1)
    assert (image == 0).all() and dark.cost(dark.identity()).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.5, 14, 20])
def test_costs_of_any_power_can_be_reckoned_with(p, dtype):
    """Their squares are summed by attacks; a step too dear for that leaves the set of moves."""
    x = torch.zeros(1, 1, 28, 28, dtype=dtype)
    x[..., 10:20, 10:20] = 0.5
    x[..., ::27, ::27] = 0.5  # from the corners every step is taken
    moves = Moves(x, GroundCost(None, p))
    assert moves.costs.square().sum().isfinite()
    cost = moves.ground_cost.costs(28, 28, dtype=torch.float64)
    kept = ~moves.outside.all(1)
    assert torch.allclose(moves.costs[kept, 0].double(), cost[kept])
    assert cost[kept].max() >= min(cost.max(), 1e14)
    shares = torch.full_like(moves.outside, 1.0, dtype=dtype).masked_fill(moves.outside, 0)
    shares = shares / shares.sum(0)
    assert torch.allclose(moves.plan(shares).cost(), moves.cost(shares), rtol=1e-3)
    fixed, image = repair(moves, shares, 0.1)
    assert image.isfinite().all() and float(moves.plan(fixed).cost()) <= 0.1 * (1 + 1e-4)
