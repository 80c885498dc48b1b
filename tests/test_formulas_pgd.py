"""Projected gradients: their steps, starts and restarts, where every gradient is known."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from wotlab import InternalWassersteinBall, L2Ball, LinfBall, WassersteinBall, attacks
from wotlab.projections import constrained_sinkhorn


class Slope(nn.Module):
    """Class 0 always wins; both losses of an image labelled 0 have the gradient w."""

    def __init__(self, w):
        super().__init__()
        self.w, self.seen, self.gradients = nn.Parameter(w), [], 0

    def forward(self, z):
        self.seen.append(z.detach().clone())
        self.gradients += z.requires_grad
        score = (z * self.w).flatten(1).sum(1)
        return torch.stack([1e3 - score / 2, score / 2], 1)


def grey(*shape):
    return torch.full(shape, 0.5, dtype=torch.double)


def label(x):
    return torch.zeros(len(x), dtype=torch.long)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def projected(x, w, eps, seen):
    """A projection that remembers what it is asked for."""

    def project(x_, u, eps, ground_cost, warm=None):
        seen.append((u.clone(), eps))
        return constrained_sinkhorn(x_, u, eps, ground_cost, warm=warm)

    attacks.pgd(Slope(w), x, label(x), WassersteinBall(eps), projection=project, steps=1)


def test_a_step_is_a_quarter_of_eps_on_a_box_and_an_l2_ball():
    x, w = grey(2, 1, 4, 5), normal(1, 4, 5)
    run = lambda ball: attacks.pgd(Slope(w), x, label(x), ball, steps=1).x_adv - x  # noqa: E731
    assert torch.allclose(run(LinfBall(0.2)), (0.05 * w.sign()).expand_as(x))
    assert torch.allclose(run(L2Ball(0.2)), (0.05 * w / w.norm()).expand_as(x))


def test_a_step_on_an_internal_ball_is_a_fifth_of_brightness():
    x, w = grey(2, 1, 4, 5), normal(1, 4, 5)
    moved = attacks.pgd(Slope(w), x, label(x), InternalWassersteinBall(99.0), steps=1).x_adv - x
    assert torch.allclose(moved, (0.2 * w / w.abs().max()).expand_as(x))


@pytest.mark.parametrize(("eps", "share"), [(0.02, 0.01), (0.12, 0.06), (0.5, 0.06)])
def test_a_step_on_a_wasserstein_ball_is_a_share_of_the_mass(eps, share):
    x, w, seen = grey(2, 1, 4, 5), normal(1, 4, 5), []
    x[1] = 0.2
    projected(x, w, eps, seen)
    mass = torch.tensor([10.0, 4.0]).double()[:, None, None, None]
    assert torch.allclose(seen[0][0] - x, share * mass * w / w.abs().max())


def test_fgsm_is_one_step_to_the_wall():
    x, w = grey(2, 1, 4, 5), normal(1, 4, 5)
    run = lambda ball: attacks.fgsm(Slope(w), x, label(x), ball).x_adv - x  # noqa: E731
    assert torch.allclose(run(LinfBall(0.2)), (0.2 * w.sign()).expand_as(x))
    assert torch.allclose(run(L2Ball(0.2)), (0.2 * w / w.norm()).expand_as(x))
    for ball in (WassersteinBall(0.2), InternalWassersteinBall(0.9)):
        one = attacks.pgd(Slope(w), x, label(x), ball, steps=1)
        assert torch.equal(attacks.fgsm(Slope(w), x, label(x), ball).x_adv, one.x_adv)


@pytest.mark.parametrize("restarts", [0, 1, 4])
def test_every_run_takes_its_steps_and_there_is_one_more_than_restarts(restarts):
    model, x = Slope(normal(1, 4, 5)), grey(2, 1, 4, 5)
    done = attacks.pgd(
        model, x, label(x), LinfBall(0.1), steps=3, random_start=True, restarts=restarts
    )
    assert model.gradients == 1 + 3 * (1 + restarts)  # one look at what kind of model it is
    assert done.steps.tolist() == [3, 3]


def started(ball, x, seed=0):
    """The image at which a random start begins: a step of it is too small to be seen."""
    model = Slope(1e-9 * normal(*x.shape[1:], seed=7))
    attacks.pgd(
        model, x, label(x), ball, steps=2, step_size=1e-12, random_start=True,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    whole = (z for z in model.seen if z.shape == x.shape)  # the first look is at a few
    return next(z for z in whole if not torch.equal(z, x)) - x


def test_a_random_start_in_a_box_is_uniform_on_both_sides():
    change = started(LinfBall(0.2), grey(1, 1, 50, 50))
    assert -0.2 <= float(change.min()) < -0.199 and 0.199 < float(change.max()) <= 0.2
    assert float(change.mean()) == pytest.approx(0, abs=0.01)
    assert float(change.std()) == pytest.approx(0.4 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_random_start_in_an_l2_ball_has_about_its_radius(channels):
    """Over all channels together; about half are longer and are pulled onto the ball."""
    change = started(L2Ball(0.3), grey(200, channels, 9, 9))
    lengths = change.flatten(1).norm(dim=1)
    assert float(lengths.min()) > 0.2 and float(lengths.max()) <= 0.3 * (1 + 1e-6)
    assert 0.35 < float((lengths < 0.3 * (1 - 1e-6)).double().mean()) < 0.65
    deviation = 0.3 / math.sqrt(81 * channels)
    assert float(change.mean()) == pytest.approx(0, abs=4 * deviation / math.sqrt(change.numel()))


def test_a_random_start_in_an_internal_ball_has_a_deviation_of_a_tenth():
    change = started(InternalWassersteinBall(99.0), grey(1, 1, 20, 20))
    assert float(change.std()) == pytest.approx(0.1, rel=0.1)
    assert float(change.mean()) == pytest.approx(0, abs=0.02)


def test_step_rules_in_closed_form():
    """The gradient of one bright pixel: itself, its sign, or the Gaussian around it."""
    x, w = grey(1, 1, 9, 9), torch.zeros(1, 9, 9, dtype=torch.double)
    w[0, 4, 4] = -3.0
    rows, columns = torch.meshgrid(*2 * [torch.arange(9.0).double() - 4], indexing="ij")
    near = (rows.abs() <= 2) & (columns.abs() <= 2)
    hill = torch.where(near, (-(rows**2 + columns**2) / 2).exp(), 0)
    point = (hill == 1).double()

    def stepped(rule, slope=w):
        seen = []

        def project(x_, u, eps, ground_cost, warm=None):
            seen.append(u - x_)
            return constrained_sinkhorn(x_, u, eps, ground_cost, warm=warm)

        options = {"steps": 1, "rule": rule, "step_size": 0.1, "projection": project}
        attacks.pgd(Slope(slope), x, label(x), WassersteinBall(0.1), **options)
        return seen[0][0, 0]

    assert torch.allclose(stepped("steepest"), -0.1 * point)
    assert torch.allclose(stepped("sign"), -0.1 * point)
    assert torch.allclose(stepped("low-pass"), -0.1 * hill, atol=1e-7)
    many = normal(1, 9, 9)
    assert torch.allclose(stepped("sign", many), 0.1 * many[0].sign())
    assert torch.allclose(stepped("steepest", many), 0.1 * many[0] / many.abs().max())


def test_a_schedule_gives_each_step_its_own_ball():
    x, w, model = grey(2, 1, 4, 5), normal(1, 4, 5), Slope(normal(1, 4, 5))
    options = {"steps": 4, "step_size": 1.0, "early_stop": False}
    grow = (0.1, 0.3, 0.2, 0.4)
    attacks.pgd(model, x, label(x), LinfBall(0.4), schedule=lambda t: grow[t], **options)
    for t, eps in enumerate(grow):  # the look, the clean image, then where each step led
        assert torch.allclose(model.seen[2 + t], x + eps * w.sign())
    budgets = []

    def project(x_, u, eps, ground_cost, warm=None):
        budgets.append(eps)
        return constrained_sinkhorn(x_, u, eps, ground_cost, warm=warm)

    attacks.pgd(
        model, x, label(x), WassersteinBall(0.4), schedule=lambda t: grow[t], projection=project,
        **options,
    )  # fmt: skip
    assert budgets == list(grow)


def test_targeted_the_step_is_the_other_way():
    x, w = grey(2, 1, 4, 5), normal(1, 4, 5)
    run = partial(attacks.pgd, Slope(w), x, label(x) + 1, LinfBall(0.2), steps=1, targeted=True)
    for loss in ("ce", "margin"):  # towards class 1 is up, as away from class 0
        assert torch.allclose(run(loss=loss).x_adv - x, (0.05 * w.sign()).expand_as(x))
