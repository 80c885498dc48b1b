"""Plans, their images and costs; and certificates that cannot be fooled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wotlab
from wotlab import GroundCost, L2Ball, LinfBall, TransportPlan, WassersteinBall, certify, iwd, ot
from wotlab.plans import Moves


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
def test_cost_bounds_the_exact_distance(seed, window):
    plan = random_plan(seed, window)
    x, y = plan.source(), plan.image()
    assert torch.allclose(x.sum((2, 3)), y.sum((2, 3)))
    ball = WassersteinBall(1.0, plan.ground_cost)
    x, y = x / 20, y / 20
    plan = TransportPlan(plan.mass / 20, plan.ground_cost)
    assert (certify(x, y, ball).cost <= plan.cost() + 1e-9).all()
    assert torch.equal(certify(x, plan, ball, exact=False).cost, plan.cost())


def test_exact_plan_in_local_form_keeps_image_and_cost():
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


@pytest.mark.slow
def test_certify_in_several_processes_gives_the_same():
    x = noise(120, 1, 5, 5)
    x[:110] = 0.5  # parts that differ: 50 and 50 images that do not move, and twenty that do
    ball = WassersteinBall(0.5)
    one, two = certify(x, x.flip(-1), ball), certify(x, x.flip(-1), ball, processes=2)
    assert torch.equal(one.cost, two.cost) and torch.equal(one.inside, two.inside)
    assert (one.cost[:110] == 0).all()
    alone = [ball.distance(x[k : k + 1], x[k : k + 1].flip(-1)).item() for k in range(110, 120)]
    assert two.cost[110:].tolist() == pytest.approx(alone) and min(alone) > 0
    with pytest.raises(ValueError, match="processes must be"):
        certify(x, x, ball, processes=0)


def test_the_budgets_tolerance_is_relative():
    """A thousandth of the mass moves by a pixel; then a budget of thousands of pixels^4."""
    x = torch.zeros(1, 1, 1, 9).double()
    x[..., 0], x[..., 1] = 0.999, 0.001
    z = x.clone()
    z[..., 1], z[..., 2] = 0, 0.001
    far = torch.zeros_like(x)
    far[..., 8] = 1.0
    for y, cost, way in ((z, GroundCost(), 1e-3), (far, GroundCost(None, 4), None)):
        way = way or float(WassersteinBall(1.0, cost).distance(x, y))
        for share, inside in ((0.99, False), (0.9995, False), (0.99995, True), (1.01, True)):
            ball = WassersteinBall(share * way, cost)
            assert bool(certify(x, y, ball).inside) is inside, (share, way)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hides_no_lost_mass_and_no_cost(dtype):
    x = torch.full((1, 1, 28, 28), 0.5).to(dtype)
    lost = x.clone()
    lost[..., 0, :2] = 0
    verdict = certify(x, lost, WassersteinBall(20.0))
    assert verdict.mass_error.item() == pytest.approx(2 / 784) and not verdict.inside
    x[..., 0, 0], x[..., 0, 1] = 1, 0
    moved = x.clone()
    moved[..., 0, 0], moved[..., 0, 1] = 0, 1
    way = 1 / x.float().sum().item()
    for share, inside in ((0.99, False), (1.01, True)):
        verdict = certify(x, moved, WassersteinBall(share * way))
        assert bool(verdict.inside) is inside and verdict.cost.item() == pytest.approx(way)
    plan = TransportPlan.identity(x, GroundCost())
    assert certify(x, plan, WassersteinBall(0.0), exact=False).inside.all()


def test_a_plan_is_charged_in_the_balls_cost_whatever_its_own():
    x = torch.zeros(1, 1, 1, 9).double()
    x[..., 2] = 1.0
    for of_plan in (GroundCost(None, 0.5), GroundCost(9, 1, 1), GroundCost(None, 3)):
        plan = TransportPlan.identity(x, of_plan)
        mass = plan.mass.roll(4, 2)  # four steps to the right
        plan = TransportPlan(mass, of_plan)
        assert plan.image()[..., 6] == 1
        for p, way in ((1, 4.0), (2, 16.0)):
            ball = WassersteinBall(1.01 * way, GroundCost(5, p))
            verdict = certify(x, plan, ball, exact=False)
            assert verdict.cost.item() == way == certify(x, plan, ball).cost.item()
            assert verdict.inside and not verdict.exact
            assert not certify(
                x, plan, WassersteinBall(0.99 * way, ball.ground_cost), exact=False
            ).inside


def test_a_plan_that_owes_mass_or_starts_elsewhere_proves_nothing():
    cost = GroundCost(3)
    x = torch.zeros(1, 1, 1, 5).double()
    x[..., 1], x[..., 3] = 0.5, 0.5
    mass = TransportPlan.identity(x, cost).mass
    right = int((cost.offsets(1, 5) == torch.tensor([0, 1])).all(1).nonzero())
    stay = int((cost.offsets(1, 5) == 0).all(1).nonzero())
    mass[0, 0, right, 0, 1] += 0.4  # one pixel pays forward what another sends to it unpaid
    mass[0, 0, stay, 0, 1] -= 0.4
    mass[0, 0, right, 0, 3] -= 0.4
    mass[0, 0, stay, 0, 3] += 0.4
    owing = TransportPlan(mass, cost)
    assert torch.allclose(owing.source(), x) and owing.cost().abs() < 1e-12  # looks free
    for exact in (False, True):
        with pytest.raises(ValueError, match="plan of mass of at least 0; its smallest entry is"):
            certify(x, owing, WassersteinBall(0.1), exact=exact)
    faint = x / 10_000  # every pixel is near every other, and yet it is another image
    with pytest.raises(ValueError, match="starts at x"):
        certify(faint, TransportPlan.identity(faint.roll(1, 3), cost), WassersteinBall(0.1))
    rounded = TransportPlan(TransportPlan.identity(x.float(), cost).mass - 1e-9, cost)
    assert certify(x.float(), rounded, WassersteinBall(0.1), exact=False).inside


@pytest.mark.parametrize("ball", [LinfBall, L2Ball])
def test_balls_without_mass_are_certified_by_their_distance(ball):
    x = noise(2, 1, 3, 3) / 2
    z = x.clone()
    z[0, 0, 0, 0] += 0.3
    z[1] = 0  # black: all the same here
    distance = ball(1.0).distance(x, z)
    for k in range(2):
        one = slice(k, k + 1)
        for share, inside in ((0.99, False), (1.01, True)):
            verdict = certify(x[one], z[one], ball(share * float(distance[k])))
            assert bool(verdict.inside) is inside and verdict.exact
            assert torch.equal(verdict.cost, distance[one])
    assert not certify(x, x + 1, ball(9.0)).inside.any()  # out of range
    black = torch.zeros_like(x)
    assert certify(black, black, ball(0.0)).inside.all()
    half = certify(x.bfloat16(), z.bfloat16(), ball(2.0))
    assert half.cost.dtype == torch.float32 and half.inside.all()
    for no_ball in (GroundCost(), 0.1, None):
        with pytest.raises(ValueError, match="ball must be a WassersteinBall"):
            certify(x, z, no_ball)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_black_image_is_alone_in_its_ball(dtype):
    x = torch.rand(4, 2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1:3] = 0
    z = x.clone()
    z[1, 0, 0, 0], z[2, 0, 0, 0], z[3] = 5e-5, 0.1, 0
    verdict = certify(x, z, WassersteinBall(100.0))
    assert verdict.inside.tolist() == [True, True, False, False]
    assert verdict.cost.tolist() == [0, 0, torch.inf, torch.inf]
    assert verdict.mass_error[:3].tolist() == [0, 0, torch.inf]
    plan = TransportPlan.identity(x, GroundCost())
    assert plan.cost().tolist() == [0] * 4
    for exact in (True, False):
        assert certify(x, plan, WassersteinBall(0.0), exact=exact).inside.all()


def test_no_power_makes_a_cost_of_nan():
    for dtype in (torch.float32, torch.float64):
        x = noise(1, 1, 28, 28).to(dtype)
        for p in (0.5, 14, 25):
            plan = TransportPlan.identity(x, GroundCost(None, p))
            assert plan.cost().item() == 0


def test_plans_refuse_what_is_no_ground_cost():
    x = torch.rand(1, 1, 4, 4)
    for make in (TransportPlan.identity, Moves, lambda x, cost: iwd.exact(x, x, cost)):
        with pytest.raises(ValueError, match="cost must be a"):
            make(x, 0.5)
