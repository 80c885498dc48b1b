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
from wotlab import GroundCost, L2Ball, LinfBall, WassersteinBall, attacks, certify, models
from wotlab.attacks.pgd import hu_step

ON_PLANS = [attacks.mirror_ascent, attacks.frank_wolfe, attacks.transport]
ALL = [*ON_PLANS, attacks.pgd, attacks.fgsm]


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
        (attacks.frank_wolfe, {"steps": 50, "gamma": 1e-5}, 0.02),
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
    best = x.new_tensor([linear_optimum(a, w, eps, ball.cost) for a in x])
    assert bool((gained <= best + 1e-6).all())
    assert float(((best - gained) / (best - start)).max()) < 1e-3


def test_frank_wolfe_learns_the_price_of_full_pixels(digits, single_thread):
    # on bright digits most of the pixels that the gradient likes best are full
    x = digits[0][:4].double()
    w = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    ball, y = WassersteinBall(0.2), torch.zeros(4, dtype=torch.long)
    best = x.new_tensor([linear_optimum(a, w, ball.eps, ball.cost) for a in x])
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


def test_published_frank_wolfe_leaves_the_range_and_does_not_count(digits):
    x = digits[0][:2]
    w = torch.zeros(1, 8, 8)
    w[0, 4, 4] = 1  # all mass to one pixel
    model = Linear(w, lead=1.2)
    y = torch.zeros(2, dtype=torch.long)
    done = attacks.frank_wolfe(model, x, y, WassersteinBall(1.0), steps=20, repaired=False)
    assert float(done.box_error.max()) > 0.5
    assert not bool(done.success[done.box_error > 0.01].any())


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


@pytest.mark.parametrize("ball", [LinfBall(0.2), L2Ball(1.0)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_on_other_balls(ball, random_start, digits):
    x = digits[0].double()
    w = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    y = torch.zeros(len(x), dtype=torch.long)
    done = attacks.pgd(
        Linear(w), x, y, ball, loss="margin", steps=100, random_start=random_start,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert bool(ball.contains(x, done.x_adv).all())
    if isinstance(ball, LinfBall):  # closed form: every pixel goes as far as it may
        best = (x + ball.eps * w.sign()).clamp(0, 1)
        assert torch.allclose(done.x_adv, best, atol=1e-6)
    assert torch.equal(attacks.pgd(Linear(w), x, y, type(ball)(0.0)).x_adv, x)


def test_restarts_break_more_and_go_on_where_the_first_run_failed(network):
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 60))
    run = partial(attacks.pgd, network, x, y, LinfBall(0.1), steps=1, random_start=True)
    one, more = (run(restarts=k, generator=torch.Generator().manual_seed(0)) for k in (0, 8))
    assert bool((more.success | ~one.success).all())
    assert int(more.success.sum()) > int(one.success.sum())
    early = one.success  # what broke in the first run is left as it is
    assert torch.equal(more.x_adv[early], one.x_adv[early])
    late = more.success & ~one.success
    assert bool((more.steps[late] == 0).logical_not().all())
    with pytest.raises(ValueError, match="random_start=True"):
        attacks.pgd(network, x, y, LinfBall(0.05), restarts=1)


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


@pytest.mark.parametrize("rule", ["steepest", "sign", "low-pass"])
def test_pgd_step_rules(rule, digits, network):
    x, y = digits
    ball = WassersteinBall(0.5)
    done = attacks.pgd(network, x, y, ball, rule=rule, steps=20)
    assert bool(certify(x, done.x_adv, ball).inside.all()) and bool(done.success.any())


def test_a_step_may_depend_on_the_image_and_eps(digits, network):
    x, y = digits
    ball, options = WassersteinBall(0.1), {"steps": 5}
    given = attacks.pgd(network, x, y, ball, step_size=partial(hu_step, share=0.06), **options)
    assert torch.equal(given.x_adv, attacks.pgd(network, x, y, ball, **options).x_adv)
    # half of eps where that is less, of each image's own mass
    sizes = hu_step(x, 0.02, share=0.06)[:, 0, 0, 0]
    assert torch.allclose(sizes, 0.01 * x.sum((1, 2, 3)))


def test_pgd_schedule_gives_a_radius(digits, network):
    x, y = digits
    right = network.eval()(x).argmax(1) == y
    grow = lambda t: 0.05 * (t + 1)  # noqa: E731
    done = attacks.pgd(
        network, x, y, WassersteinBall(grow(30)), steps=30, schedule=grow, repaired=True
    )
    assert bool((done.cost <= 0.05 * done.steps + 1e-6).all())
    assert bool((done.steps[~right] == 0).all())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(2, 1, 8, 8)}, "x must have mass"),
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
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2).double()), "dtype and device"),
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
    from wotlab.attacks.objective import Objective

    x, y = digits
    model = models.build("digits-small", seed=2).double()
    x = x.double().requires_grad_()
    ours, _, _ = Objective(model, y, False, "ce").gradient(x)
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    cosine = nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
    assert torch.allclose(cosine, torch.ones_like(cosine))
