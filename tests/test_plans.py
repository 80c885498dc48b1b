"""Plans, their images and prices; and certificates that cannot be fooled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wotlab
from wotlab import GroundCost, TransportPlan, WassersteinBall, certify, ot


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def random_plan(seed, window, h=4, w=5, channels=2):
    cost = GroundCost(window)
    shape = cost.gather(torch.zeros(2, channels, h, w)).shape
    return TransportPlan(noise(*shape, seed=seed) / 200 * cost.inside(h, w), cost)


@pytest.mark.parametrize("window", [1, 3, None])
def test_identity_moves_nothing(window):
    x = noise(2, 3, 4, 5)
    plan = TransportPlan.identity(x, GroundCost(window))
    assert torch.equal(plan.image(), x) and torch.equal(plan.source(), x)
    assert (plan.cost() == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, None]))
def test_price_bounds_the_exact_distance(seed, window):
    plan = random_plan(seed, window)
    x, y = plan.source(), plan.image()
    assert torch.allclose(x.sum((2, 3)), y.sum((2, 3)))
    ball = WassersteinBall(1.0, plan.cost_model)
    x, y = x / 20, y / 20
    plan = TransportPlan(plan.mass / 20, plan.cost_model)
    assert (certify(x, y, ball).cost <= plan.cost() + 1e-9).all()
    assert torch.equal(certify(x, plan, ball, exact=False).cost, plan.cost())


def test_exact_plan_in_local_form_keeps_image_and_price():
    x, y = noise(2, 1, 4, 5, seed=1), noise(2, 1, 4, 5, seed=2)
    done = ot.exact(x, y, GroundCost(None))
    plan = TransportPlan.from_matrix(done.plan, 4, 5, GroundCost(None))
    assert torch.allclose(plan.cost(), done.primal)
    assert torch.allclose(plan.image(), y / y.sum((2, 3), keepdim=True))
    assert torch.allclose(plan.source(), x / x.sum((2, 3), keepdim=True))
    with pytest.raises(ValueError, match="further than the window"):
        TransportPlan.from_matrix(done.plan, 4, 5, GroundCost(1))
    with pytest.raises(ValueError, match="matrix must be"):
        TransportPlan.from_matrix(done.plan, 3, 5, GroundCost(1))


@pytest.fixture
def pair():
    x = torch.nn.functional.pad(noise(2, 3, 4, 4), (3, 3, 3, 3))
    return x, x.roll(1, dims=3)


def test_budget_is_judged_on_both_sides_of_the_true_distance(pair):
    x, y = pair
    assert WassersteinBall(1.0).contains(x, y).all()
    assert not WassersteinBall(0.999).contains(x, y).any()
    assert torch.allclose(WassersteinBall(1.0).distance(x, y), torch.ones(2).double())
    assert certify(x, y, WassersteinBall(1.0)).exact
    assert WassersteinBall(0.0).contains(x, x).all()
    assert not WassersteinBall(0.0).contains(x, y).any()


def test_each_way_out_of_the_ball_is_seen(pair):
    x, y = pair
    ball = WassersteinBall(2.0)
    dimmed = certify(x, x / 30, ball)
    assert dimmed.cost.abs().max() < 1e-9 and dimmed.mass_error.min() > 0.2
    over = certify(x * 0.9, x * 0.9 + (x > 0) * 0.2, ball)
    bright = y.clone()
    bright[0, 0] *= 3
    below = x.clone()
    below[0, 0, 0, 0] = -0.1
    swapped = x.roll(1, dims=1)  # mass moved between channels, all in all the same
    gone = x.clone()
    gone[1, 2] = 0
    for name, z in {"bright": bright, "below": below, "swapped": swapped, "gone": gone}.items():
        verdict = certify(x, z, ball)
        assert not verdict.inside.all(), name
    assert not dimmed.inside.any() and not over.inside.any()
    assert certify(x, bright, ball).box_error[0] > 0
    assert certify(x, below, ball).box_error[0] == pytest.approx(0.1)
    assert certify(x, gone, ball).cost[1] == torch.inf and certify(x, gone, ball).inside[0]


def test_bad_input_is_named(pair):
    x, y = pair
    ball = WassersteinBall(1.0)
    with pytest.raises(ValueError, match="x_adv must be finite"):
        certify(x, y / 0, ball)
    with pytest.raises(ValueError, match="x_adv must have the shape"):
        certify(x, y[..., 1:], ball)
    with pytest.raises(ValueError, match="x must lie"):
        certify(x * 9, y, ball)
    with pytest.raises(ValueError, match="exact=False"):
        certify(x, y, ball, exact=False)
    with pytest.raises(ValueError, match="starts at x"):
        certify(x, TransportPlan.identity(y, GroundCost(3)), ball)
    for eps in (-0.1, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="eps must"):
            WassersteinBall(eps)


def test_public_names():
    for name in wotlab.__all__:
        assert getattr(wotlab, name) is not None


def test_certify_in_several_processes_gives_the_same():
    x = torch.rand(120, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = x.flip(-1)
    ball = WassersteinBall(0.5)
    one, two = certify(x, y, ball), certify(x, y, ball, processes=2)
    assert torch.equal(one.cost, two.cost) and torch.equal(one.inside, two.inside)
    with pytest.raises(ValueError, match="processes must be"):
        certify(x, y, ball, processes=0)
