"""Attacks: they reach the optimum where it is known, never leave the ball, leave no trace."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, vstack
from torch import nn

import wotlab
from wotlab import GroundCost, LinfBall, WassersteinBall, attacks, certify, models

ON_PLANS = [attacks.mirror_ascent, attacks.frank_wolfe, attacks.transport]
ALL = [*ON_PLANS, attacks.pgd, attacks.fgsm]


PROJECTIONS = (
    {  # at the published weights the unbalanced one moves no mass
        name: getattr(wotlab.projections, name) for name in wotlab.projections.__all__[1:]
    }
    | {"unbalanced_sinkhorn": partial(wotlab.projections.unbalanced_sinkhorn, reg=0.05, tau=2.0)}
)


class Linear(nn.Module):
    """Logits (-<w, z>, <w, z>) / 2, shifted so that class 0 always wins: a pure climb of <w, z>."""

    def __init__(self, w, lead=1e3):
        super().__init__()
        self.w, self.lead = nn.Parameter(w), lead

    def forward(self, z):
        score = (z * self.w).flatten(1).sum(1)
        return torch.stack([-score / 2 + self.lead, score / 2], 1)


@pytest.fixture(scope="module")
def digits():
    return wotlab.data.load("digits", "test").tensors(slice(0, 8))


@pytest.fixture(scope="module")
def network():
    model = models.build("digits-small", seed=0)
    wotlab.training.fit(
        model, wotlab.data.load("digits", "train").tensors(), epochs=6, lr=0.05, progress=False
    )
    return model


def linear_optimum(x, w, eps, cost):
    """max <w, z> over the ball around one image, as a linear program over window moves."""
    h, wd = x.shape[-2:]
    start, c = x.flatten().double().numpy(), cost.dense(h, wd).numpy()
    i, j = np.nonzero(np.isfinite(c) & (start[:, None] > 0))
    each = np.arange(len(i))
    leave = coo_matrix((np.ones(len(i)), (i, each)), (h * wd, len(i)))
    arrive = coo_matrix((np.ones(len(i)), (j, each)), (h * wd, len(i)))
    price = coo_matrix((c[i, j], (0 * each, each)), (1, len(i)))
    solved = linprog(
        -w.flatten().double().numpy()[j],
        A_ub=vstack([price, arrive]),
        b_ub=np.concatenate([[eps * start.sum()], np.ones(h * wd)]),
        A_eq=leave,
        b_eq=start,
        method="highs",
    )
    return -solved.fun


@pytest.mark.parametrize(
    "attack, options, light",
    [
        (attacks.mirror_ascent, {"steps": 300}, 1.0),
        (attacks.transport, {"steps": 200, "restarts": 0}, 1.0),
        # Frank-Wolfe learns the prices of full pixels slowly; here no pixel can fill up
        (attacks.frank_wolfe, {"steps": 50, "reg": 1e-5}, 0.02),
    ],
)
@pytest.mark.parametrize("eps", [0.02, 0.5])
def test_linear_optimum(attack, options, light, eps, digits, single_thread):
    x = light * digits[0][:4].double()
    w = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = torch.zeros(4, dtype=torch.long)
    ball = WassersteinBall(eps)
    z = attack(Linear(w), x, y, ball, loss="margin", **options).x_adv
    start, gained = (x * w).sum((1, 2, 3)), (z * w).sum((1, 2, 3))
    best = x.new_tensor([linear_optimum(a, w, eps, ball.ground_cost) for a in x])
    assert bool((gained <= best + 1e-6).all())
    assert float(((best - gained) / (best - start)).max()) < 1e-3


def test_frank_wolfe_learns_the_price_of_full_pixels(digits, single_thread):
    # on bright digits most of the pixels that the gradient likes best are full
    x = digits[0][:4].double()
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


@pytest.mark.parametrize("attack", ALL)
def test_succeeds_inside_the_ball_only(attack, digits, network):
    x, y = digits
    ball = WassersteinBall(0.5)
    done = attack(network, x, y, ball)
    assert bool(certify(x, done.x_adv, ball).inside.all())
    broken = network.eval()(done.x_adv).argmax(1) != y
    assert bool((done.success == broken).all())
    if attack is not attacks.fgsm:
        assert float(done.success.float().mean()) > 0.5


def test_published_frank_wolfe_is_two_steps_and_one_projection(network, digits, single_thread):
    """Its plan by hand: oracle, 2 / (t + 2), no bound on the way, the projection at the end."""
    x, y = digits[0][:3].double(), digits[1][:3]
    model, ball, gamma = copy.deepcopy(network).double().eval(), WassersteinBall(0.3), 0.05
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


def test_published_frank_wolfe_counts_its_last_image_alone(digits):
    x, y = digits[0][:2], torch.zeros(2, dtype=torch.long)
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


def test_a_black_image_is_alone_in_its_ball(network, digits):
    x, y = digits[0].clone(), digits[1]
    x[2] = 0
    with torch.no_grad():
        y[2] = network.eval()(x[2:3]).argmax(1)  # rightly read, so that attacks go on
    ball = WassersteinBall(0.3)
    runs = [partial(attack, steps=5) for attack in ON_PLANS]
    runs += [partial(attacks.pgd, steps=2, projection=p) for p in PROJECTIONS.values()]
    runs += [partial(attacks.frank_wolfe, steps=3, published=True)]
    for attack in runs:
        done = attack(network, x, y, ball)
        assert torch.equal(done.x_adv[2], x[2]) and not bool(done.success[2])
        assert bool(done.x_adv.isfinite().all()) and not torch.equal(done.x_adv, x)
    assert attacks.radius(network, x, y).eps[2] == math.inf


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_attacked_in_single(half, network, digits):
    """Mass cannot be kept in half precision: every image would seem to leave the ball."""
    x, y = digits
    ball, model = WassersteinBall(0.3), copy.deepcopy(network).to(half)
    single = attacks.mirror_ascent(network, x, y, ball, steps=20)
    done = attacks.mirror_ascent(model, x.to(half), y, ball, steps=20)
    assert done.x_adv.dtype == torch.float32
    assert float(done.mass_error.max()) < 1e-5
    assert bool((model(done.x_adv.to(half)).argmax(1) != y).eq(done.success).all())
    assert int(done.success.sum()) >= int(single.success.sum()) - 1 > 3


def test_a_model_that_returns_nan_on_an_attacked_image_is_no_success(digits):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, z):
            logits = self.layer(z.flatten(1))
            off_grid = (z * 16 - (z * 16).round()).abs().amax((1, 2, 3)) > 1e-3
            return logits.masked_fill(off_grid[:, None], math.nan)

    model = Fragile()
    x = digits[0]
    with pytest.raises(ValueError, match="NaN on an attacked image"):
        attacks.pgd(model, x, model(x).argmax(1), LinfBall(0.1))


@pytest.mark.parametrize("ball", [0.1, None, "linf"])
def test_what_is_no_ball_is_refused(ball, network, digits):
    for attack in (attacks.pgd, attacks.fgsm, attacks.eot, attacks.adef, attacks.stadv):
        with pytest.raises(ValueError, match="ball must be a threat model"):
            attack(network, *digits, ball)
    with pytest.raises(ValueError, match="cost must be a GroundCost"):
        WassersteinBall(0.2, None)


def test_results_say_what_was_misread_before(network, digits):
    x, y = digits
    y = torch.where(torch.arange(len(y)) < 3, (network.eval()(x).argmax(1) + 1) % 10, y)
    clean = network(x).argmax(1) != y
    runs = [
        partial(attacks.transport, ball=WassersteinBall(0.3)),
        partial(attacks.pgd, ball=LinfBall(0.1), random_start=True),
        partial(attacks.library, ball=LinfBall(0.1), version="custom", attacks=["apgd-ce"]),
        partial(attacks.transfer, ball=LinfBall(0.1), source=models.build("digits-small", seed=3)),
        partial(attacks.iwda, ball=wotlab.InternalWassersteinBall(9.0), steps=2),
        partial(attacks.stadv, ball=LinfBall(1.0), steps=2),
    ]
    for run in runs:
        done = run(network, x, y)
        assert torch.equal(done.misread, clean) and bool(done.success[clean].all())
    assert f"{int(clean.sum())} of them before the attack" in repr(done)


def test_attacks_in_inference_mode_say_so(network, digits):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        attacks.fgsm(network, *digits, LinfBall(0.1))


def test_a_wider_ball_breaks_no_less(digits, network):
    x, y = digits
    shares = [
        float(attacks.transport(network, x, y, WassersteinBall(e)).success.float().mean())
        for e in (0.0, 0.1, 0.4, 1.0)
    ]
    assert shares == sorted(shares)


def test_transport_breaks_what_its_parts_break(network):
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 40))
    sharp, ball = copy.deepcopy(network).double(), WassersteinBall(0.1)
    transport = partial(attacks.transport, sharp, x.double(), y, ball, steps=10)
    whole, mirror = transport(restarts=1).success, transport(restarts=0).success
    fw = attacks.frank_wolfe(sharp, x.double(), y, ball, steps=20).success
    assert bool((whole >= (mirror | fw)).all())
    assert bool((fw & ~mirror).any()) and not bool(whole.all())  # or the line above shows nothing


def test_targeted(digits, network):
    x, y = digits
    target = (y + 1) % 10
    done = attacks.transport(network, x, target, WassersteinBall(2.0), targeted=True)
    hit = network.eval()(done.x_adv).argmax(1) == target
    assert bool((done.success == hit).all()) and bool(hit.any())


@pytest.mark.parametrize("attack", ALL)
def test_no_budget_returns_the_image(attack, digits, network):
    x, y = digits
    done = attack(network, x, y, WassersteinBall(0.0))
    assert torch.equal(done.x_adv, x)
    assert float(done.cost.max()) == 0


@pytest.mark.parametrize("attack", ON_PLANS)
def test_a_batch_equals_a_loop(attack, digits, network):
    # no pixel can fill up: where one is full to rounding, rounding decides how it is emptied
    x, y = 0.1 * digits[0][:4].double(), digits[1][:4]
    network = models.build("digits-small", seed=1).double()
    ball = WassersteinBall(0.1)
    whole = attack(network, x, y, ball, steps=5, early_stop=False)
    alone = [attack(network, a[None], b[None], ball, steps=5, early_stop=False)
             for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert torch.allclose(whole.x_adv, torch.cat([r.x_adv for r in alone]), atol=1e-6)
    parts = attack(network, x, y, ball, steps=5, early_stop=False, batch_size=3)
    assert torch.allclose(whole.x_adv, parts.x_adv, atol=1e-6)


def test_the_model_is_left_as_it_was(digits):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model.train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = attacks.transport(model, *digits, WassersteinBall(0.2), steps=5)
    assert model.training and model[1].training and not model[2].training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not done.x_adv.requires_grad


def test_a_white_image_has_nowhere_to_go(network):
    x, y = torch.ones(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    done = attacks.transport(network, x, y, WassersteinBall(1.0), steps=5)
    assert torch.allclose(done.x_adv, x, atol=1e-6)


def test_restarts_from_noise_repeat_with_their_generator(digits, network):
    x, y = digits
    run = lambda: attacks.transport(  # noqa: E731
        network, x, (y + 5) % 10, WassersteinBall(0.15), targeted=True, steps=10, restarts=2,
        generator=torch.Generator().manual_seed(3),
    ).x_adv  # fmt: skip
    state = torch.random.get_rng_state()
    assert torch.equal(run(), run())
    assert torch.equal(state, torch.random.get_rng_state())


def test_transferred_images_are_the_sources_and_judged_by_the_model(network, digits):
    x, y = digits
    ball, other = LinfBall(0.2), models.build("digits-small", seed=5).eval()
    network.train()
    own = attacks.transfer(network, x, y, ball, source=network, steps=10)
    direct = attacks.pgd(network, x, y, ball, steps=10)
    assert network.training
    assert torch.equal(own.x_adv, direct.x_adv) and torch.equal(own.success, direct.success)
    moved = attacks.transfer(network, x, y, ball, source=other, attack=attacks.fgsm)
    assert torch.equal(moved.x_adv, attacks.fgsm(other, x, y, ball).x_adv)
    network.eval()
    wrong = (network(moved.x_adv).argmax(1) != y) | (network(x).argmax(1) != y)
    assert torch.equal(moved.success, wrong)
    assert bool(ball.contains(x, moved.x_adv).all())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.full((2, 1, 8, 8), 2.0)}, r"x must lie in \[0, 1\]"),
        ({"x": torch.full((2, 1, 8, 8), math.nan)}, "x must be finite"),
        ({"y": torch.tensor([0.0, 1.0])}, "y must be 2 class numbers"),
        ({"y": torch.tensor([0, 12])}, r"y must lie in 0..9"),
        ({"ball": LinfBall(0.1)}, "ball must be a WassersteinBall"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"loss": "dlr"}, "loss must be one of"),
        ({"step_size": -1.0}, "step_size must be"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"restarts": -1}, "restarts must be"),
    ],
)
def test_bad_input(change, match, network):
    given = {"x": torch.rand(2, 1, 8, 8), "y": torch.tensor([0, 1]), "ball": WassersteinBall(0.1)}
    given |= change
    with pytest.raises(ValueError, match=match):
        attacks.transport(network, given.pop("x"), given.pop("y"), given.pop("ball"), **given)


def test_models_that_hide_their_gradient_are_refused(digits, network):
    x, y = digits
    ball = WassersteinBall(0.1)
    with pytest.raises(ValueError, match="probabilities"):
        attacks.transport(nn.Sequential(network, nn.Softmax(1)), x, y, ball)
    with pytest.raises(ValueError, match="NaN"):
        attacks.transport(Linear(torch.full((1, 8, 8), math.nan)), x, y % 2, ball)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda z: z, "torch.nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "two classes"),
        (type("Pair", (nn.Module,), {"forward": lambda self, z: (z, z)})(), "tensor of logits"),
        (
            type("Cut", (nn.Module,), {"forward": lambda self, z: z.detach().flatten(1)})(),
            "differentiable",
        ),
    ],
)
def test_models_that_no_attack_can_climb_are_refused(model, match, digits):
    x, y = digits
    with pytest.raises(ValueError, match=match):
        attacks.transport(model, x, 0 * y, WassersteinBall(0.1))


def test_a_result_prints_in_one_line(digits, network):
    text = repr(attacks.fgsm(network, *digits, LinfBall(1.0)))
    assert text.startswith("AttackResult(") and "of 8 images broken" in text


def test_window_of_the_whole_grid(digits, network):
    x, y = digits
    ball = WassersteinBall(0.5, GroundCost(window=None))
    done = attacks.transport(network, x, y, ball, steps=10, restarts=0)
    assert bool(certify(x, done.x_adv, ball).inside.all())


def test_radius_is_where_transport_breaks(digits, network):
    x, y = digits
    found = attacks.radius(network, x, y)
    right = network.eval()(x).argmax(1) == y
    assert bool((found.eps[~right] == 0).all()) and bool((found.eps[right] > 0).all())
    assert bool(torch.isfinite(found.eps).all())
    assert bool((network(found.x_adv).argmax(1) != y).all())
    ball = WassersteinBall(float(found.eps.max()))
    seen = certify(x, found.x_adv, ball)
    assert bool(seen.inside.all()) and bool((seen.cost <= found.eps + 1e-6).all())
    for image in range(4):  # a full run at half that budget does not break it
        if right[image]:
            less = WassersteinBall(0.5 * float(found.eps[image]))
            one = slice(image, image + 1)
            assert not bool(attacks.transport(network, x[one], y[one], less).success)


def test_radius_of_an_image_that_never_breaks(digits):
    x, y = digits[0][:2], torch.zeros(2, dtype=torch.long)
    found = attacks.radius(Linear(torch.ones(1, 8, 8)), x, y, steps=20)
    assert bool((found.eps == math.inf).all()) and torch.equal(found.x_adv, x)
    with pytest.raises(ValueError, match="smallest must be below largest"):
        attacks.radius(Linear(torch.ones(1, 8, 8)), x, y, smallest=1.0, largest=0.5)


def test_a_network_that_is_sure_of_itself_still_has_a_gradient(digits, network):
    x, y = digits
    sure = nn.Sequential(network, nn.Linear(10, 10, bias=False))
    sure[1].weight.data = 1e4 * torch.eye(10)
    ball = WassersteinBall(1.0)
    plain, scaled = (attacks.mirror_ascent(m, x, y, ball).success for m in (network, sure))
    assert bool(plain.all()) and bool(scaled.all())


def test_cross_entropy_in_the_direction_of_its_gradient(digits):
    from wotlab.attacks._objective import Objective

    x, y = digits
    model = models.build("digits-small", seed=2).double()
    x = x.double().requires_grad_()
    ours, _, _ = Objective(model, y, False, "ce").gradient(x)
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    cosine = nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
    assert torch.allclose(cosine, torch.ones_like(cosine))
