"""Projected gradients: where their gradients are taken, their steps, starts and projections."""

from functools import partial

import pytest
import torch
from known import PROJECTIONS, Linear
from torch import nn

import wotlab
from wotlab import L2Ball, LinfBall, WassersteinBall, attacks, certify
from wotlab.balls import hu_step


class Curved(nn.Module):
    """Logits (lead, sum_i (z_i - a)^2 ): the slope changes its sign at a, so it tells where."""

    def __init__(self, a: float, lead: float = 1e3):
        super().__init__()
        self.a, self.lead = nn.Parameter(torch.tensor(a)), lead
        self.asked: list[torch.Tensor] = []

    def forward(self, z):
        if z.requires_grad:
            self.asked.append(z.detach().clone())
        score = ((z - self.a) ** 2).flatten(1).sum(1)
        return torch.stack([torch.full_like(score, self.lead), score], 1)


@pytest.mark.parametrize("early_stop", [True, False])
def test_the_first_gradient_is_taken_at_the_random_start(early_stop):
    x, y = torch.full((2, 1, 3, 4), 0.5), torch.zeros(2, dtype=torch.long)
    ball, model = LinfBall(0.2), Curved(0.5)
    seed = lambda: torch.Generator().manual_seed(4)  # noqa: E731
    start = ball.project(x, x + ball.noise(x, seed()))
    done = attacks.pgd(
        model, x, y, ball, steps=2, step_size=0.05, random_start=True, early_stop=early_stop,
        generator=seed(),
    )  # fmt: skip
    gradients = model.asked[1:]  # the first look asks what kind of model it is
    assert len(gradients) == 2 and torch.equal(gradients[0], start)
    # uphill from where it stands: away from 0.5, on whichever side the start lies
    first = (start + 0.05 * (start - 0.5).sign()).clamp(0.3, 0.7)
    assert torch.allclose(gradients[1], first)
    assert torch.allclose(done.x_adv, (first + 0.05 * (first - 0.5).sign()).clamp(0.3, 0.7))


def test_a_random_start_that_breaks_needs_no_step_and_has_its_cost():
    x, y = torch.full((6, 1, 3, 4), 0.5), torch.zeros(6, dtype=torch.long)
    for ball in (LinfBall(0.2), L2Ball(0.5), WassersteinBall(0.2)):
        model = Curved(0.5, lead=1e-4)  # any change breaks, the clean image does not
        done = attacks.pgd(model, x, y, ball, steps=3, random_start=True)
        assert bool(done.success.all()) and bool((done.steps == 0).all())
        assert not bool(done.misread.any()) and bool((done.cost > 0).all())
        assert bool(ball.contains(x, done.x_adv).all())


def test_the_clean_image_counts_with_a_random_start():
    x, y = torch.full((2, 1, 3, 4), 0.5), torch.tensor([0, 1])
    done = attacks.pgd(Curved(0.5), x, y, LinfBall(0.2), steps=3, random_start=True)
    assert done.misread.tolist() == [False, True] and done.success.tolist() == [False, True]
    assert torch.equal(done.x_adv[1], x[1]) and int(done.steps[1]) == 0


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("repaired", [True, False])
def test_pgd_takes_every_projection(name, repaired, fitted, unseen):
    x, y = unseen
    ball = WassersteinBall(0.3)
    done = attacks.pgd(
        fitted, x, y, ball, steps=3, projection=PROJECTIONS[name], repaired=repaired,
    )  # fmt: skip
    assert not torch.equal(done.x_adv, x)
    seen = certify(x, done.x_adv, ball)
    assert bool(seen.inside[done.success].all())
    if repaired:
        assert bool(seen.inside.all())


def test_duals_go_from_step_to_step_where_a_projection_takes_them(fitted, unseen):
    seen = []

    def project(x, w, eps, ground_cost, warm=None):
        seen.append((eps, warm))
        return wotlab.projections.constrained_sinkhorn(x, w, eps, ground_cost, warm=warm)

    attacks.pgd(fitted, *unseen, WassersteinBall(0.05), steps=3, projection=project)
    assert [eps for eps, _ in seen] == [0.05] * 3 and seen[0][1] is None
    assert all(set(warm) == {"beta", "phi", "psi"} for _, warm in seen[1:])


@pytest.mark.parametrize("ball", [LinfBall(0.2), L2Ball(1.0)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_on_other_balls(ball, random_start, unseen):
    x = unseen[0].double()
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


def test_restarts_break_more_and_go_on_where_the_first_run_failed(fitted):
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 60))
    run = partial(attacks.pgd, fitted, x, y, LinfBall(0.1), steps=1, random_start=True)
    one, more = (run(restarts=k, generator=torch.Generator().manual_seed(0)) for k in (0, 8))
    assert bool((more.success | ~one.success).all())
    assert int(more.success.sum()) > int(one.success.sum())
    early = one.success  # what broke in the first run is left as it is
    assert torch.equal(more.x_adv[early], one.x_adv[early])
    late = more.success & ~one.success
    assert bool((more.steps[late] == 0).logical_not().all())
    with pytest.raises(ValueError, match="random_start=True"):
        attacks.pgd(fitted, x, y, LinfBall(0.05), restarts=1)


@pytest.mark.parametrize("rule", ["steepest", "sign", "low-pass"])
def test_pgd_step_rules(rule, unseen, fitted):
    x, y = unseen
    ball = WassersteinBall(0.5)
    done = attacks.pgd(fitted, x, y, ball, rule=rule, steps=20)
    assert bool(certify(x, done.x_adv, ball).inside.all()) and bool(done.success.any())


def test_a_step_may_depend_on_the_image_and_eps(unseen, fitted):
    x, y = unseen
    ball, options = WassersteinBall(0.1), {"steps": 5}
    given = attacks.pgd(fitted, x, y, ball, step_size=partial(hu_step, share=0.06), **options)
    assert torch.equal(given.x_adv, attacks.pgd(fitted, x, y, ball, **options).x_adv)
    # half of eps where that is less, of each image's own mass
    sizes = hu_step(x, 0.02, share=0.06)[:, 0, 0, 0]
    assert torch.allclose(sizes, 0.01 * x.sum((1, 2, 3)))


def test_pgd_schedule_gives_a_radius(unseen, fitted):
    x, y = unseen
    right = fitted.eval()(x).argmax(1) == y
    grow = lambda t: 0.05 * (t + 1)  # noqa: E731
    done = attacks.pgd(
        fitted, x, y, WassersteinBall(grow(30)), steps=30, schedule=grow, repaired=True
    )
    assert bool((done.cost <= 0.05 * done.steps + 1e-6).all())
    assert bool((done.steps[~right] == 0).all())
