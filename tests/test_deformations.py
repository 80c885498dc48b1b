"""Warps, and the attacks that bend images or train for random transformations."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab import InternalWassersteinBall, LinfBall, WassersteinBall, attacks, training
from wotlab.attacks._adam_rows import keep_rows
from wotlab.attacks._adef import Deform, Nearest
from wotlab.attacks._eot import Expected
from wotlab.attacks._objective import Objective
from wotlab.attacks._stadv import Bend, search, value
from wotlab.transformations import Transformations, compose, roughness, warp

ANY = InternalWassersteinBall(9.0)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def hill(size=12):
    """A smooth image."""
    t = torch.linspace(-2, 2, size).double()
    return (-(t[:, None] ** 2 + t**2) / 2).exp()[None, None]


@pytest.fixture(scope="module")
def trained(digits):
    """A small network for digits, its images and its labels, all read rightly."""
    x, y = digits
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    training.fit(
        model, digits, training.Standard(), epochs=60, batch_size=20, lr=0.1, progress=False
    )
    model.eval()
    right = model(x).argmax(1) == y
    return model, x[right], y[right]


def test_warp_by_whole_pixels_is_a_shift():
    x = random(2, 3, 6, 7)
    flow = torch.zeros(2, 2, 6, 7).double()
    assert torch.allclose(warp(x, flow), x)
    flow[:, 0], flow[:, 1] = 2, -1
    assert torch.allclose(warp(x, flow)[:, :, :4, 1:], x[:, :, 2:, :-1])
    assert torch.allclose(warp(x, flow)[:, :, 5, 1:], x[:, :, 5, :-1])  # the border goes on


def test_warp_by_part_of_a_pixel_is_linear_in_between():
    x = torch.arange(6.0).double().expand(1, 1, 5, 6) / 6
    flow = torch.zeros(1, 2, 5, 6).double()
    flow[:, 1] = 0.25
    assert torch.allclose(warp(x, flow)[..., :-1], (x + 0.25 / 6)[..., :-1])


def test_warp_has_the_right_gradient():
    x, flow = random(1, 2, 4, 5).requires_grad_(), (random(1, 2, 4, 5, seed=1) * 0.8 + 0.1)
    assert torch.autograd.gradcheck(warp, (x, flow.requires_grad_()))


def test_composed_flows_are_one_warp():
    """On an image that is linear, where sampling twice loses nothing."""
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(8.0), indexing="ij")
    x = (rows + 2 * columns).double()[None, None]
    first, then = (random(1, 2, 9, 8, seed=k) - 0.5 for k in (0, 1))
    twice, once = warp(warp(x, first), then), warp(x, compose(first, then))
    assert torch.allclose(twice[:, :, 2:-2, 2:-2], once[:, :, 2:-2, 2:-2], atol=1e-10)


def test_roughness_in_closed_form():
    flow = torch.zeros(2, 2, 5, 6).double()
    flow[0] = 3.0
    flow[1, 0] = 0.5 * torch.arange(5.0)[:, None]  # stretched downwards: 4 x 6 pairs of 0.5
    assert roughness(flow).tolist() == pytest.approx([0, 12], abs=1e-3)
    still = torch.zeros(1, 2, 4, 4).double().requires_grad_()
    roughness(still).backward()
    assert torch.isfinite(still.grad).all()


@pytest.mark.parametrize("attack", [attacks.stadv, attacks.adef])
def test_what_breaks_is_the_image_bent(attack, trained):
    """No new brightness, and far in l-infinity, near in pixels moved."""
    model, x, y = trained
    done = attack(model, x, y, ANY)
    assert done.success.double().mean() > 0.9
    assert (model(done.x_adv[done.success]).argmax(1) != y[done.success]).all()
    low, high = (getattr(x.flatten(1), what)(1)[:, None, None, None] for what in ("amin", "amax"))
    assert (done.x_adv >= low - 1e-6).all() and (done.x_adv <= high + 1e-6).all()
    assert torch.allclose(done.cost, ANY.distance(x, done.x_adv))


@pytest.mark.parametrize(("rule", "other"), [(Bend, (0.05, 0.05)), (Deform, (0.5, 1.2))])
def test_the_flow_gives_the_image_and_is_short(rule, other, trained):
    model, x, y = trained
    bend, objective = rule(*other), Objective(model, y, False, "margin")
    bend.start(x)
    z = x
    for t in range(5):
        gradient, loss, broken = objective.gradient(z)
        with torch.no_grad():
            z, _ = bend.step(z, gradient, loss, broken, t)
    assert torch.allclose(warp(x, bend.flow.detach()), z, atol=1e-6)
    assert 0 < bend.flow.norm(dim=1).max() < 3
    assert objective.value(z)[0].mean() > objective.value(x)[0].mean()


def test_what_lbfgs_minimises_is_the_formula_of_the_paper(trained):
    """max(logit of the label - best other, 0) + tau roughness; and its slope."""
    model, x, y = copy.deepcopy(trained[0]).double(), trained[1][:4].double(), trained[2][:4]
    objective = Objective(model, y, False, "margin")
    flow = 0.2 + 0.6 * random(4, 2, 8, 8)
    z, total, broken = value(objective, x, flow, 0.3)
    logits = model(z)
    own, others = logits.gather(1, y[:, None])[:, 0], logits.scatter(1, y[:, None], -math.inf)
    assert torch.allclose(z, warp(x, flow))
    assert torch.allclose(total, (own - others.amax(1)).clamp_min(0) + 0.3 * roughness(flow))
    assert torch.equal(broken, logits.argmax(1) != y)
    assert torch.autograd.gradcheck(
        lambda flow: value(objective, x, flow, 0.3)[1], (flow.requires_grad_(),)
    )


def test_lbfgs_lowers_it_and_trades_it_against_roughness(trained):
    model, x, y = trained
    objective, still = Objective(model, y, False, "margin"), torch.zeros(len(x), 2, 8, 8)
    start = value(objective, x, still, 0.05)[1]
    # at the kinks of bilinear interpolation a line search can end where it began
    free, cheap, usual = (search(objective, x, tau, 200, False, False) for tau in (0.0, 0.01, 0.05))
    assert free.broken.double().mean() > 0.9 and (free.loss[free.broken] == 0).all()
    assert (-usual.loss < 0.5 * start).double().mean() > 0.9
    assert (-cheap.loss < -usual.loss).double().mean() > 0.8


def test_lbfgs_stops_at_the_first_image_that_breaks_or_goes_on_to_the_smoothest(trained):
    model, x, y = trained
    first = attacks.stadv(model, x, y, ANY)
    smooth = attacks.stadv(model, x, y, ANY, early_stop=False)
    both = first.success & smooth.success
    assert both.double().mean() > 0.9
    objective = Objective(model, y, False, "margin")
    # the smoothest lies at the boundary, the first somewhere beyond it
    assert (
        objective.value(smooth.x_adv)[0][both].mean() < objective.value(first.x_adv)[0][both].mean()
    )
    with pytest.raises(ValueError, match="optimizer must be one of lbfgs, adam"):
        attacks.stadv(model, x, y, ANY, optimizer="sgd")


def test_a_larger_tau_gives_a_smoother_flow(trained):
    model, x, y = trained
    rough = []
    for tau in (0.0, 0.05, 5.0):
        bend, objective, z = Bend(tau, 0.05), Objective(model, y, False, "margin"), x
        bend.start(x)
        for t in range(10):
            gradient, loss, broken = objective.gradient(z)
            with torch.no_grad():
                z, _ = bend.step(z, gradient, loss, broken, t)
        rough.append(roughness(bend.flow.detach()).mean().item())
    assert rough[0] > rough[1] > 2 * rough[2]


def test_adef_closes_the_margin_as_far_as_it_is_linear():
    """A linear margin on a smooth image: one small step changes it as predicted."""
    x, weight = 0.1 + 0.8 * hill(), random(144, seed=1) - 0.5
    margin = -0.01
    gradient = weight.reshape(1, 1, 12, 12)
    step = Deform(1.0, 1.2)
    step.start(x)
    z, _ = step.step(x, gradient, torch.tensor([margin]).double(), torch.tensor([False]), 0)
    assert ((z - x) * gradient).sum().item() == pytest.approx(-1.2 * margin, rel=0.05)


def test_adef_goes_to_the_class_of_the_least_field():
    """Linear logits: the nearer of two classes is not the one of the larger logit."""
    x = 0.1 + 0.8 * hill()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3, bias=True)).double()
    weight = random(144, seed=1) - 0.5
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([0 * weight, 0.1 * weight, weight]))
        model[1].bias.copy_(-model[1].weight @ x.flatten() - torch.tensor([0.0, 0.01, 0.02]))
    y = torch.tensor([0])
    one, two = (
        Nearest(model, y, False, "margin", candidates=k, sigma=0.5).gradient(x) for k in (1, 2)
    )
    assert one[1].item() == pytest.approx(-0.01)
    gradient, margin, broken = two
    assert margin.item() == pytest.approx(-0.02) and not broken.any()
    assert torch.allclose(gradient, weight.reshape(1, 1, 12, 12))
    done = attacks.adef(model, x, y, ANY)
    assert done.success.all() and model(done.x_adv).argmax(1).item() == 2


def test_adef_stays_where_moving_changes_nothing():
    """A flat margin, far from 0: the least field would be infinitely long."""
    x = 0.1 + 0.8 * hill().float()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([50.0, -50.0]))
    done = attacks.adef(model, x, torch.tensor([0]), ANY, steps=3)
    assert torch.equal(done.x_adv, x) and not done.success.any()


def test_adef_sigma_smooths(trained):
    model, x, y = trained
    rough = []
    for sigma in (0.0, 2.0):
        step = Deform(sigma, 1.2)
        step.start(x)
        gradient, loss, broken = Objective(model, y, False, "margin").gradient(x)
        step.step(x, gradient, loss, broken, 0)
        rough.append((roughness(step.flow) / step.flow.norm(dim=1).sum((1, 2))).mean().item())
    assert rough[1] < 0.5 * rough[0]


class OneOfTwo:
    """The image, or its mirror image, by a coin a batch."""

    def __call__(self, z, generator=None):
        return z if torch.rand(1, generator=generator).item() < 0.5 else z.flip(3)


def test_eot_estimates_the_mean_gradient_without_bias(trained):
    model, x, y = trained
    inner = Objective(model, y, False, "ce")
    plain, mirrored = inner.gradient(x)[0], inner.gradient(x.flip(3))[0].flip(3)
    exact = (plain + mirrored) / 2
    many = 400

    def expected(samples, seed):
        draw = torch.Generator().manual_seed(seed)
        options = {"transform": OneOfTwo(), "samples": samples, "generator": draw}
        return Expected(model, y, False, "ce", **options)

    error = (expected(many, 0).gradient(x)[0] - exact).norm() / (plain - mirrored).norm()
    assert error < 3 * 0.5 / math.sqrt(many)
    few = [expected(1, k).gradient(x)[0] for k in range(many)]
    mean = (torch.stack(few).mean(0) - exact).norm() / (plain - mirrored).norm()
    assert mean < 3 * 0.5 / math.sqrt(many)  # one draw at a time has the same mean


def test_eot_without_a_transformation_is_pgd(trained):
    model, x, y = trained
    done = attacks.eot(model, x, y, LinfBall(0.1), transform=lambda z, generator: z, samples=2)
    plain = attacks.pgd(model, x, y, LinfBall(0.1))
    assert torch.equal(done.success, plain.success)
    assert torch.allclose(done.x_adv, plain.x_adv, atol=1e-6)


def test_eot_fools_under_transformations_more_often_than_pgd(trained):
    model, x, y = trained
    turn, ball = Transformations(rotation=30, translation=0.1, noise=0), LinfBall(0.2)

    def under(z):
        draw = torch.Generator().manual_seed(1)
        return sum((model(turn(z, draw)).argmax(1) != y).double().mean() for _ in range(40)) / 40

    seed = torch.Generator().manual_seed(0)
    options = {"steps": 20, "early_stop": False}
    plain = attacks.pgd(model, x, y, ball, **options)
    done = attacks.eot(model, x, y, ball, transform=turn, generator=seed, **options)
    assert under(done.x_adv) > under(plain.x_adv) + 0.02


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_transformations(seed):
    z = hill(16).repeat(3, 1, 1, 1)
    assert torch.allclose(Transformations(0, 0, 0, 0)(z), z, atol=1e-6)
    made = Transformations()(z, torch.Generator().manual_seed(seed))
    assert torch.equal(made, Transformations()(z, torch.Generator().manual_seed(seed)))
    assert made.min() >= 0 and made.max() <= 1 and not torch.equal(made[0], made[1])
    turned = Transformations(180, 0, 0, 0)(z, torch.Generator().manual_seed(seed))
    inside = (slice(None), slice(None), slice(4, 12), slice(4, 12))
    assert torch.allclose(turned[inside], z[inside], atol=0.03)  # the hill is round


def test_rows_that_stay_go_on_as_if_alone():
    def run(start, drop_at):
        rows = torch.nn.Parameter(start.clone())
        adam, places = torch.optim.Adam([rows], 0.1), torch.arange(len(start))
        for t in range(6):
            if t == drop_at:
                keep_rows(adam, torch.tensor([False, True, True]))
                places = places[1:]
            rows.grad = (places[:, None] + 1) * rows.detach()
            adam.step()
        return rows.detach()

    start = random(3, 4)
    assert torch.allclose(run(start, 3), run(start, 99)[1:])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m, x, y: attacks.stadv(m, x, y, WassersteinBall(0.1)), "must not be a Wasser"),
        (lambda m, x, y: attacks.adef(m, x, y, WassersteinBall(0.1)), "must not be a Wasser"),
        (lambda m, x, y: attacks.stadv(m, x, y, ANY, tau=-1.0), "tau must be"),
        (lambda m, x, y: attacks.adef(m, x, y, ANY, sigma=-1.0), "sigma must be"),
        (lambda m, x, y: attacks.adef(m, x, y, ANY, candidates=0), "candidates must be"),
        (lambda m, x, y: attacks.adef(m, x[..., :1], y, ANY), "x must have 2x2 pixels"),
        (lambda m, x, y: attacks.adef(m, x, y, ANY, overshoot=0.5), "overshoot must be"),
        (lambda m, x, y: attacks.eot(m, x, y, LinfBall(0.1), samples=0), "samples must be"),
        (lambda m, x, y: Transformations(rotation=-1.0), "rotation must be"),
        (lambda m, x, y: Transformations(scaling=1.0), "scaling below 1"),
        (lambda m, x, y: warp(x, torch.zeros(1, 2, 3, 3)), "flow must be"),
    ],
)
def test_bad_input(make, match, trained):
    with pytest.raises(ValueError, match=match):
        make(*trained)
