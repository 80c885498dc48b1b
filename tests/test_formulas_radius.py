"""The smallest breaking budget: near a linear program's, and its rule step by step."""

import pytest
import torch
from known import Linear, linear_optimum
from torch import nn

import wotlab
from wotlab import GroundCost, L2Ball, LinfBall, WassersteinBall, attacks, certify
from wotlab.attacks import Mirror
from wotlab.attacks._growing import Bounded, Closest, Growing, Search

NEAR, NEARER = 1.05, 1.02  # of the least budget, by default and with patience
W = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)


class Counted(nn.Module):
    """A model, and how often it was asked for a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.gradients = model, 0

    def forward(self, z):
        self.gradients += z.requires_grad
        return self.model(z)


@pytest.fixture(scope="module")
def images():
    return wotlab.data.load("digits", "test").tensors(slice(0, 4))[0].double()


def label(x):
    return torch.zeros(len(x), dtype=torch.long)


@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_it_is_near_the_linear_programs(eps, images, single_thread):
    """A linear model breaks where <w, z> reaches its lead: the largest value within eps."""
    for x in images[:2]:
        lead = linear_optimum(x, W, eps, GroundCost(9))
        found = attacks.radius(Linear(W, lead), x[None], label(x[None]))
        assert eps * (1 - 1e-3) <= found.eps.item() < NEAR * eps
        patient = attacks.radius(Linear(W, lead), x[None], label(x[None]), patience=60)
        assert eps * (1 - 1e-3) <= patient.eps.item() < NEARER * eps
        seen = certify(x[None], found.x_adv, WassersteinBall(found.eps.item()))
        assert bool(seen.inside) and Linear(W, lead)(found.x_adv).argmax().item() == 1


@pytest.mark.parametrize(
    "ball, dual", [(L2Ball(9.0), 2.0), (LinfBall(0.9), 1.0)], ids=["l2", "l-infinity"]
)
def test_in_other_balls_it_is_near_the_closed_form(ball, dual, images):
    """A linear model of a grey image: the least eps is its lead over the dual norm of w."""
    x = 0.5 + 0 * images
    eps = 0.04 * float(ball.eps)
    lead = float((x[0] * W).sum() + eps * W.abs().pow(dual).sum() ** (1 / dual))
    found = attacks.radius(Linear(W, lead), x, label(x), ball)
    assert bool((found.eps >= eps * (1 - 1e-6)).all()) and bool((found.eps <= 1.02 * eps).all())
    assert torch.allclose(ball.distance(x, found.x_adv), found.eps)


@pytest.mark.parametrize("patience", [1, 3, 8])
def test_it_stops_when_patience_steps_have_not_helped(patience, images, single_thread):
    x = images[:1]
    lead = linear_optimum(x[0], W, 0.1, GroundCost(9))
    model = Counted(Linear(W, lead))
    found = attacks.radius(model, x, label(x), WassersteinBall(0.4), patience=patience, restarts=0)
    assert model.gradients == 1 + found.steps.item() + patience + 1  # the first is a look
    assert found.eps.item() < 0.4


def test_an_image_that_never_breaks_takes_no_more_steps_than_doublings(images):
    model = Counted(Linear(W, 1e3))
    found = attacks.radius(model, images[:2], label(images[:2]), patience=5)
    assert model.gradients == 1 + 15 + 1 and found.eps.tolist() == [torch.inf, torch.inf]
    model = Counted(Linear(W, 1e3))
    attacks.radius(model, images[:2], label(images[:2]), steps=3)
    assert model.gradients == 1 + 3


def growing(budget, growth=1.0, momentum=0.75, forget=0.0):
    mirror = Mirror(WassersteinBall(1.0), 1.0, momentum, forget)
    return Growing(mirror, torch.tensor([budget], dtype=torch.double), growth)


def test_budgets_grow_by_a_factor_and_shrink_from_what_was_spent(images):
    """Half the change at each turn; the rule alone, told when the image is broken."""
    x = images[:1]
    rule = growing(0.01)
    rule.start(x)
    nothing = x.new_zeros(1)
    budget, rate, was, spent = 0.01, 1.0, False, None
    for t, broken in enumerate([False, False, False, True, True, False, False, True, False]):
        _, paid = rule.step(x, W[None], nothing, torch.tensor([broken]), t)
        if t > 0:
            rate = rate / 2 if broken != was else rate
            budget = spent * (1 - rate) if broken else budget * (1 + rate)
        was, spent = broken, paid.item()
        assert rule.budget.item() == pytest.approx(budget)
        assert spent <= budget * (1 + 1e-9)


def test_shrinking_starts_from_what_the_plan_costs_not_from_its_budget(images):
    x, nothing = images[:1], images.new_zeros(1)
    rule = growing(3.0, momentum=0.0)
    rule.start(x)
    _, paid = rule.step(x, 0 * x, nothing, torch.tensor([False]), 0)  # flat: a plan by entropy
    assert paid.item() < 0.9 * 3.0
    rule.step(x, 0 * x, nothing, torch.tensor([True]), 1)
    assert rule.budget.item() == pytest.approx(0.5 * paid.item())


@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(0.1)], ids=["l-infinity", "l2"])
def test_a_bounded_step_is_a_fifth_of_the_budget(ball):
    """Along the gradients with momentum, each of length 1: 1, then 0.75 - 1, of both its sign."""
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.double)
    up = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=torch.double).expand_as(x)
    way = up.sign() if isinstance(ball, LinfBall) else up / 5
    rule, nothing = Bounded(ball, 0.75), x.new_zeros(1)
    z, _ = rule.start(x)
    for t, (gradient, steps) in enumerate([(up, 1), (7 * up, 2), (-9 * up, 3), (-up, 2)]):
        z, spent = rule.step(z, gradient, nothing, nothing.bool(), t)
        assert torch.allclose(z, x + 0.02 * steps * way), t
        assert spent.item() == pytest.approx(0.02 * steps)


def test_the_search_forgets_three_per_cent_a_step_and_starts_anew_from_three_steps_of_noise():
    search = Search(WassersteinBall(0.1), 5, 0.5, 0.75, 3, 15, 5, None)
    first, again = search.rule(False), search.rule(True)
    assert (first.forget, first.noise) == (0.03, 0.0) and again.noise == 3.0 * 0.5
    assert first.ball.ground_cost.window == 5 and first.momentum == 0.75


def test_the_cheapest_breaking_image_and_the_best_within_the_goal_are_kept():
    found = Closest(torch.full((2, 1, 1, 1), 0.5), goal=0.3, patience=3)
    at, seen = torch.tensor([0, 1]), []
    offers = [(False, 0.1), (True, 0.5), (False, 0.2), (True, 0.4)]  # of the first image;
    offers += [(True, 0.45), (True, 0.399), (True, 0.6)]  # the second one is never broken
    for t, (broken, cost) in enumerate(offers):
        z, loss = torch.full((2, 1, 1, 1), cost), torch.tensor([cost, -cost])
        go_on = found.offer(at, z, torch.tensor([broken, False]), torch.tensor([cost, cost]),
                            loss, t)  # fmt: skip
        seen.append(go_on.tolist())
    assert found.least.tolist() == pytest.approx([0.4, torch.inf])  # 0.399 is no one per cent less
    assert found.nearest.flatten().tolist() == pytest.approx([0.4, 0.5])
    assert found.found.tolist() == [3, 0] and found.steps.tolist() == [6, 6]
    # within 0.3 nothing breaks: there the largest loss counts
    assert found.broken.tolist() == [False, False]
    assert found.x_adv.flatten().tolist() == pytest.approx([0.2, 0.1])
    assert seen == [[True, True]] * 6 + [[False, True]]  # the second one's budget still doubles
    late = found.offer(at[1:], z[1:], torch.tensor([False]), z[1:, 0, 0, 0], loss[1:], 15)
    assert late.tolist() == [False]
    better = Closest(torch.full((1, 1, 1, 1), 0.5), goal=0.3, patience=3)
    one = torch.tensor([0])
    z, cost = torch.full((1, 1, 1, 1), 0.25), torch.tensor([0.25])
    assert better.offer(one, z, torch.tensor([True]), cost, 0 * cost, 4).tolist() == [False]
    found.add(one, better)
    assert found.broken.tolist() == [True, False] and found.least[0] == 0.25
    assert found.found.tolist() == [6 + 4, 0] and found.steps.tolist() == [6 + 4, 15]
    assert found.x_adv[0] == found.nearest[0] == 0.25


def test_images_that_are_wrong_already_have_radius_zero_and_the_others_go_on(images):
    x, y = images, torch.tensor([0, 1, 0, 1])
    lead = linear_optimum(x[2], W, 0.05, GroundCost())
    lead = max(lead, linear_optimum(x[0], W, 0.05, GroundCost()))
    model = Linear(W, lead)
    y = torch.where(torch.tensor([False, True, False, True]), 1 - model(x).argmax(1), y)
    found = attacks.radius(model, x, y, restarts=0)
    assert found.eps[[1, 3]].tolist() == [0, 0] and torch.equal(found.x_adv[1::2], x[1::2])
    counted = Counted(model)
    attacks.radius(counted, x[1::2], y[1::2])
    assert counted.gradients == 2  # one look, and one gradient that says so
    alone = attacks.radius(model, x[::2], y[::2], restarts=0)
    assert torch.allclose(found.eps[::2], alone.eps) and float(alone.eps.min()) >= 0.05 * 0.99
