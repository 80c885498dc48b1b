"""Attacks on the plan: they reach the optimum where it is known, and never leave the ball."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import PROJECTIONS, Linear, linear_optimum
from torch import nn

import wotlab
from wotlab import GroundCost, WassersteinBall, attacks, certify, models

ON_PLANS = [attacks.mirror_ascent, attacks.frank_wolfe, attacks.transport]
ALL = [*ON_PLANS, attacks.pgd, attacks.fgsm]


@pytest.mark.parametrize(
    "attack, options, light",
    [
        (attacks.mirror_ascent, {"steps": 300}, 1.0),
        # Frank-Wolfe learns the prices of full pixels slowly; here no pixel can fill up
        (attacks.frank_wolfe, {"steps": 50, "reg": 1e-5}, 0.02),
    ],
)
@pytest.mark.parametrize("eps", [0.02, 0.5])
def test_linear_optimum(attack, options, light, eps, unseen, single_thread):
    x = light * unseen[0][:4].double()
    w = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = torch.zeros(4, dtype=torch.long)
    ball = WassersteinBall(eps)
    z = attack(Linear(w), x, y, ball, loss="margin", **options).x_adv
    start, gained = (x * w).sum((1, 2, 3)), (z * w).sum((1, 2, 3))
    best = x.new_tensor([linear_optimum(a, w, eps, ball.ground_cost) for a in x])
    assert bool((gained <= best + 1e-6).all())
    assert float(((best - gained) / (best - start)).max()) < 1e-3


def test_frank_wolfe_learns_the_price_of_full_pixels(unseen, single_thread):
    # on bright digits most of the pixels that the gradient likes best are full
    x = unseen[0][:4].double()
    w = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    ball, y = WassersteinBall(0.2), torch.zeros(4, dtype=torch.long)
    best = x.new_tensor([linear_optimum(a, w, ball.eps, ball.ground_cost) for a in x])
    start, gaps = (x * w).sum((1, 2, 3)), []
    for steps in (10, 300):
        z = attacks.frank_wolfe(Linear(w), x, y, ball, loss="margin", steps=steps).x_adv
        gaps.append(float(((best - (z * w).sum((1, 2, 3))) / (best - start)).max()))
    assert gaps[1] < 0.01 < gaps[0]


@settings(max_examples=12, deadline=None)
@given(
    eps=st.sampled_from([1e-6, 1e-3, 0.05, 0.4, 3.0, 100.0]),
    attack=st.sampled_from(ON_PLANS),
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(1, 5, 7), (3, 4, 4), (1, 1, 6)]),
)
def test_always_in_the_ball(eps, attack, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, *shape, generator=generator)
    x[0, :, : shape[1] // 2] = 0
    model = Linear(torch.randn(shape, generator=generator), lead=0.0)
    y = model(x).argmax(1)
    ball = WassersteinBall(eps)
    done = attack(model, x, y, ball, steps=6)
    seen = certify(x, done.x_adv, ball)
    assert bool(seen.inside.all())
    assert bool((seen.cost <= done.cost + 1e-5).all())
    assert bool((done.success == (model(done.x_adv).argmax(1) != y)).all())


def test_published_frank_wolfe_is_two_steps_and_one_projection(fitted, unseen, single_thread):
    """Its plan by hand: oracle, 2 / (t + 2), no bound on the way, the projection at the end."""
    x, y = unseen[0][:3].double(), unseen[1][:3]
    model, ball, gamma = copy.deepcopy(fitted).double().eval(), WassersteinBall(0.3), 0.05
    done = attacks.frank_wolfe(model, x, y, ball, steps=2, reg=gamma, published=True)
    cost, inside = ball.ground_cost, ball.ground_cost.inside(8, 8)
    prices = cost.costs(8, 8, dtype=torch.double)[:, None, None]
    plan, seen = wotlab.TransportPlan.identity(x, cost).mass, x
    for t in range(2):
        z = seen.clamp(0, 1).requires_grad_()
        logits = model(z)
        others = logits.masked_fill(nn.functional.one_hot(y, 10).bool(), -math.inf)
        loss = others.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
        (g,) = torch.autograd.grad(loss.sum(), z)
        g = torch.where(seen > 1, 0, g)  # the clamp's slope
        g = g / g.abs().amax((1, 2, 3), keepdim=True)
        low, high = torch.zeros(3, dtype=torch.double), torch.full((3,), 1e3, dtype=torch.double)
        for _ in range(60):  # the price at which the oracle's plan costs eps
            psi = (low + high) / 2
            score = (cost.gather(g) - psi[:, None, None, None, None] * prices) / gamma
            best = score.masked_fill(~inside, -math.inf).softmax(2) * x[:, :, None]
            over = wotlab.TransportPlan(best, cost).cost() > ball.eps
            low, high = torch.where(over, psi, low), torch.where(over, high, psi)
        plan = plan + 2 / (t + 2) * (best - plan)
        seen = cost.scatter(plan)
    assert float(seen.max()) > 1.02  # it left the range
    by_hand = wotlab.projections.dual_projection(
        x, wotlab.TransportPlan(plan, cost), ball.eps, cost, max_iter=5000
    ).image
    assert torch.allclose(done.x_adv, by_hand, atol=1e-2)  # the bisection stops within 1e-4
    assert bool(certify(x, done.x_adv, ball).inside.all())


def test_published_frank_wolfes_one_projection_takes_5000_steps_at_most(unseen, monkeypatch):
    """As in the paper, on whose numbers strengths rest; it stops where it has converged."""
    x, y, asked = unseen[0][:2], torch.zeros(2, dtype=torch.long), []

    def projection(*given, max_iter):
        asked.append(max_iter)
        return wotlab.projections.dual_projection(*given, max_iter=5)

    monkeypatch.setitem(attacks.frank_wolfe.__globals__, "dual_projection", projection)
    w = torch.eye(8)[None]
    attacks.frank_wolfe(Linear(w), x, y, WassersteinBall(1.0), steps=3, published=True)
    assert asked == [5000]


def test_published_frank_wolfe_counts_its_last_image_alone(unseen):
    x, y = unseen[0][:2], torch.zeros(2, dtype=torch.long)
    w = torch.zeros(1, 8, 8)
    w[0, 4, 4] = 1  # all mass to one pixel, which overflows on the way
    loose = attacks.frank_wolfe(
        Linear(w, lead=1.2), x, y, WassersteinBall(1.0), steps=20, published=True
    )
    assert not bool(loose.success.any())  # no image in [0, 1] reaches that lead
    assert bool(certify(x, loose.x_adv, WassersteinBall(1.0)).inside.all())
    near = attacks.frank_wolfe(
        Linear(w, lead=0.99), x, y, WassersteinBall(1.0), steps=20, published=True
    )
    assert bool(near.success.all()) and bool((near.steps == 20).all())


def test_a_black_image_is_alone_in_its_ball(fitted, unseen):
    x, y = unseen[0].clone(), unseen[1]
    x[2] = 0
    with torch.no_grad():
        y[2] = fitted.eval()(x[2:3]).argmax(1)  # rightly read, so that attacks go on
    ball = WassersteinBall(0.3)
    runs = [partial(attack, steps=5) for attack in ON_PLANS]
    runs += [partial(attacks.pgd, steps=2, projection=p) for p in PROJECTIONS.values()]
    runs += [partial(attacks.frank_wolfe, steps=3, published=True)]
    for attack in runs:
        done = attack(fitted, x, y, ball)
        assert torch.equal(done.x_adv[2], x[2]) and not bool(done.success[2])
        assert bool(done.x_adv.isfinite().all()) and not torch.equal(done.x_adv, x)
    assert attacks.radius(fitted, x, y).eps[2] == math.inf


def test_a_wider_ball_breaks_no_less(unseen, fitted):
    x, y = unseen
    shares = [
        float(attacks.transport(fitted, x, y, WassersteinBall(e)).success.float().mean())
        for e in (0.0, 0.1, 0.4, 1.0)
    ]
    assert shares == sorted(shares)


def test_each_further_run_breaks_more_and_loses_nothing(fitted):
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 60))
    sharp, ball = copy.deepcopy(fitted).double(), WassersteinBall(0.1, GroundCost(3))
    run = partial(attacks.transport, sharp, x.double(), y, ball, patience=2)
    done = [
        run(restarts=n, generator=torch.Generator().manual_seed(0)).success for n in (0, 1, 2, 4)
    ]
    for less, more in pairwise(done):
        assert bool((more >= less).all())
    assert done[0].sum() < done[-1].sum() < len(x)  # or the lines above show nothing


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("name", ["digits-chain", "digits-pgd-at-6", "digits-pgd-10"])
def test_transport_breaks_more_than_runs_at_a_fixed_budget(eps, name):
    """Mirror ascent in the same window, and Frank-Wolfe, on networks that are the same anywhere."""
    network = models.load(name)
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 60))
    ball = WassersteinBall(eps, GroundCost(9))
    broken = attacks.transport(network, x, y, ball).success
    for rival in (partial(attacks.mirror_ascent, momentum=0.75), attacks.frank_wolfe):
        done = rival(network, x, y, ball, steps=300).success
        assert broken.sum() >= done.sum() and (done & ~broken).sum() <= 1


def test_the_window_is_the_searchs_own(fitted, unseen):
    """Whatever window the ball's cost has, transport moves mass as far as its own."""
    x, y = unseen
    near, far = (
        attacks.transport(fitted, x, y, WassersteinBall(0.3, GroundCost(w))).x_adv for w in (1, 5)
    )
    assert torch.equal(near, far)
    still = attacks.transport(fitted, x, y, WassersteinBall(0.3), window=1, restarts=0)
    assert torch.allclose(still.x_adv, x) and torch.equal(still.success, still.misread)


def test_targeted(unseen, fitted):
    x, y = unseen
    target = (y + 1) % 10
    done = attacks.transport(fitted, x, target, WassersteinBall(2.0), targeted=True)
    hit = fitted.eval()(done.x_adv).argmax(1) == target
    assert bool((done.success == hit).all()) and bool(hit.any())


@pytest.mark.parametrize("attack", ON_PLANS)
def test_a_batch_equals_a_loop(attack, unseen, fitted):
    # no pixel can fill up: where one is full to rounding, rounding decides how it is emptied
    x, y = 0.1 * unseen[0][:4].double(), unseen[1][:4]
    fitted = models.build("digits-small", seed=1).double()
    ball = WassersteinBall(0.1)
    once = {"restarts": 1} if attack is attacks.transport else {"early_stop": False}
    run = partial(attack, fitted, ball=ball, steps=5, **once)  # a second run from noise would draw
    whole = run(x=x, y=y)
    alone = [run(x=a[None], y=b[None]) for a, b in zip(x, y, strict=True)]
    assert torch.allclose(whole.x_adv, torch.cat([r.x_adv for r in alone]), atol=1e-6)
    parts = run(x=x, y=y, batch_size=3)
    assert torch.allclose(whole.x_adv, parts.x_adv, atol=1e-6)


def test_a_white_image_has_nowhere_to_go(fitted):
    x, y = torch.ones(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    done = attacks.transport(fitted, x, y, WassersteinBall(1.0), steps=5)
    assert torch.allclose(done.x_adv, x, atol=1e-6)


def test_restarts_from_noise_repeat_with_their_generator(unseen, fitted):
    x, y = unseen
    run = lambda: attacks.transport(  # noqa: E731
        fitted, x, (y + 5) % 10, WassersteinBall(0.15), targeted=True, steps=10, restarts=2,
        generator=torch.Generator().manual_seed(3),
    ).x_adv  # fmt: skip
    state = torch.random.get_rng_state()
    assert torch.equal(run(), run())
    assert torch.equal(state, torch.random.get_rng_state())


def test_window_of_the_whole_grid(unseen, fitted):
    x, y = unseen
    ball = WassersteinBall(0.5, GroundCost(window=None))
    done = attacks.transport(fitted, x, y, ball, steps=10, restarts=0)
    assert bool(certify(x, done.x_adv, ball).inside.all())


def test_radius_is_where_transport_breaks(unseen, fitted):
    x, y = unseen
    found = attacks.radius(fitted, x, y, restarts=0)
    right = fitted.eval()(x).argmax(1) == y
    assert bool((found.eps[~right] == 0).all()) and bool((found.eps[right] > 0).all())
    assert bool(torch.isfinite(found.eps).all())
    assert bool((fitted(found.x_adv).argmax(1) != y).all())
    ball = WassersteinBall(float(found.eps.max()))
    seen = certify(x, found.x_adv, ball)
    assert bool(seen.inside.all()) and bool((seen.cost <= found.eps + 1e-6).all())
    for image in range(4):  # a full run at half that budget does not break it
        if right[image]:
            less = WassersteinBall(0.5 * float(found.eps[image]), GroundCost(9))
            one = slice(image, image + 1)
            assert not bool(attacks.mirror_ascent(fitted, x[one], y[one], less).success)


def test_radius_of_an_image_that_never_breaks(unseen):
    x, y = unseen[0][:2], torch.zeros(2, dtype=torch.long)
    found = attacks.radius(Linear(torch.ones(1, 8, 8)), x, y, steps=20)
    assert bool((found.eps == math.inf).all()) and torch.equal(found.x_adv, x)
    with pytest.raises(ValueError, match="ball must be a WassersteinBall, L2Ball or LinfBall"):
        attacks.radius(Linear(torch.ones(1, 8, 8)), x, y, GroundCost())


def test_a_network_that_is_sure_of_itself_still_has_a_gradient(unseen, fitted):
    x, y = unseen
    sure = nn.Sequential(fitted, nn.Linear(10, 10, bias=False))
    sure[1].weight.data = 1e4 * torch.eye(10)
    ball = WassersteinBall(1.0)
    plain, scaled = (attacks.mirror_ascent(m, x, y, ball).success for m in (fitted, sure))
    assert bool(plain.all()) and bool(scaled.all())
