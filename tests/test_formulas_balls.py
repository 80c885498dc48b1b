"""Balls, the judge of images and what is kept of them: by hand, on one to four pixels."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import Linear
from torch import nn

from wotlab import (
    InternalWassersteinBall,
    L2Ball,
    LinfBall,
    WassersteinBall,
    attacks,
    certify,
    evaluate,
)
from wotlab.attacks._result import Best
from wotlab.balls import TOLERANCE, Ball


def image(*values):
    """One image of one row."""
    return torch.tensor(values, dtype=torch.double)[None, None, None]


def test_walls_of_the_box_lie_within_the_range():
    low, high = LinfBall(0.2).walls(image(0.0, 0.1, 0.5, 0.9, 1.0))
    assert torch.allclose(low, image(0.0, 0.0, 0.3, 0.7, 0.8))
    assert torch.allclose(high, image(0.2, 0.3, 0.7, 1.0, 1.0))


def test_linf_projection_pixel_by_pixel():
    x, w = image(0.1, 0.5, 0.5, 0.5, 0.9), image(-1.0, 0.2, 0.55, 0.9, 3.0)
    assert torch.allclose(LinfBall(0.2).project(x, w), image(0.0, 0.3, 0.55, 0.7, 1.0))


def test_l2_projection_clamps_and_then_pulls():
    x, ball = image(0.9, 0.5), L2Ball(0.3)
    pulled = 0.3 / (0.1**2 + 0.4**2) ** 0.5  # of the change (0.1, 0.4) to the clamped (1, 0.9)
    found = ball.project(x, image(1.7, 0.9))
    assert torch.allclose(found, image(0.9 + 0.1 * pulled, 0.5 + 0.4 * pulled))
    assert torch.allclose(ball.project(x, image(1.7, 0.6)), image(1.0, 0.6))  # near enough
    assert torch.equal(ball.project(x, x), x)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.5, 3.0]))
def test_projections_reach_the_ball_and_stay_there(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 3, 4, generator=generator, dtype=torch.double)
    w = 2 * torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.double)
    for ball in (LinfBall(eps), L2Ball(eps)):
        z = ball.project(x, w)
        assert bool(ball.contains(x, z).all())
        assert torch.allclose(ball.project(x, z), z, atol=1e-12)
        low, high = (b.project(x, w) for b in (LinfBall(0.0), LinfBall(1.0)))
        assert torch.allclose(low, x) and torch.allclose(high, w.clamp(0, 1))


def test_distances_by_hand_and_contains_on_either_side():
    x, z = image(0.5, 0.5, 0.5), image(0.8, 0.5, 0.1)
    for kind, distance in ((LinfBall, 0.4), (L2Ball, 0.5)):
        assert kind(1.0).distance(x, z).item() == pytest.approx(distance)
        assert bool(kind(distance).contains(x, z))
        assert not bool(kind(0.999 * distance).contains(x, z))
        outside = image(0.5, 0.5, -2 * TOLERANCE), image(0.5, 0.5, 1 + 2 * TOLERANCE)
        assert not any(bool(kind(9.0).contains(x, w)) for w in outside)


def test_steps_have_the_ascents_direction_and_size():
    g = torch.tensor([[0.3, -0.4, 0.0], [6.0, 0.0, -8.0]]).double()[:, None, None]
    assert torch.allclose(LinfBall(9.0).step(g, 0.1), 0.1 * g.sign())
    lengths = torch.tensor([0.5, 10.0]).double()[:, None, None, None]
    assert torch.allclose(L2Ball(9.0).step(g, 0.1), 0.1 * g / lengths)
    largest = torch.tensor([0.4, 8.0]).double()[:, None, None, None]
    for ball in (WassersteinBall(9.0), InternalWassersteinBall(9.0)):
        assert torch.allclose(ball.step(g, 0.1), 0.1 * g / largest)
    for ball in (LinfBall(9.0), L2Ball(9.0), WassersteinBall(9.0), InternalWassersteinBall(9.0)):
        assert torch.equal(ball.step(0 * g, 0.1), 0 * g)  # a flat loss says nothing


class OnlyClean(nn.Module):
    """Reads the image x rightly, as class 0, and every other image wrongly."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, z):
        off = ((z - self.x) ** 2).flatten(1).sum(1)
        return torch.stack([torch.full_like(off, 1e-9), off], 1)


def judged(x, x_adv, ball, cost=0.0):
    """What an attack's images are worth, all of which break the model."""
    made = SimpleNamespace(
        x_adv=x_adv,
        cost=x.new_full((len(x),), cost),
        steps=torch.full((len(x),), 3),
        forward=0,
        backward=0,
    )
    y = torch.zeros(len(x), dtype=torch.long)
    model = OnlyClean(x)
    return attacks.transfer(model, x, y, ball, source=model, attack=lambda *_: made)


@pytest.fixture
def colours():
    """A colour image whose channels hold 1, 2 and 3 of 6."""
    x = torch.zeros(1, 3, 2, 2, dtype=torch.double)
    x[0, :, 0, 0] = torch.tensor([0.25, 0.5, 0.75])
    return x


def test_images_that_lose_mass_or_swap_it_between_channels_do_not_count(colours):
    ball = WassersteinBall(9.0)
    moved = judged(colours, colours.roll(1, 3), ball)
    assert bool(moved.success) and moved.mass_error.item() == 0 and moved.steps.item() == 3
    for x_adv, error in (
        (0.9 * colours, 0.1 * 0.75 / 1.5),  # the largest channel's loss, of the whole
        (1.1 * colours, 0.1 * 0.75 / 1.5),
        (colours.roll(1, 1), 0.5 / 1.5),  # blue's mass, now in red
        (colours.flip(1), 0.5 / 1.5),
    ):
        done = judged(colours, x_adv, ball)
        assert not bool(done.success)
        assert done.mass_error.item() == pytest.approx(error)
    grey = colours.mean(1, keepdim=True)
    assert not bool(judged(grey, 0.9 * grey, ball).success)
    assert judged(grey, 0.9 * grey, ball).mass_error.item() == pytest.approx(0.1)
    for free in (LinfBall(1.0), L2Ball(9.0), InternalWassersteinBall(9.0)):
        assert bool(judged(colours, 0.9 * colours, free).success)  # no mass to keep there


def test_images_beyond_the_budget_or_the_range_do_not_count(colours):
    near, moved = 1 + TOLERANCE / 2, colours.roll(1, 3)
    for ball in (WassersteinBall(0.5), LinfBall(0.5), L2Ball(0.5)):
        assert bool(judged(colours, moved, ball, 0.5 * near).success)
        assert not bool(judged(colours, moved, ball, 0.5 * (1 + 3 * TOLERANCE)).success)
        small = type(ball)(1e-3)  # rounding is relative to the budget
        assert not bool(judged(colours, moved, small, 1e-3 * 1.001).success)
        for value in (-0.01, 1.01):
            outside = moved.clone()
            outside[0, 0, 1, 1] = value
            done = judged(colours, outside, ball)
            assert not bool(done.success) and done.box_error.item() == pytest.approx(0.01)


def offered(*offers):
    """A `Best` of one image after offers of (value, broken, cost, loss)."""
    found = Best(image(0.5))
    for t, (value, broken, cost, loss) in enumerate(offers):
        go_on = found.offer(
            torch.tensor([0]), image(value), torch.tensor([broken]),
            torch.tensor([cost]).double(), torch.tensor([loss]).double(), t,
        )  # fmt: skip
        assert bool(go_on) != broken
    return found


def kept(found):
    return found.x_adv.item(), found.broken.item(), found.cost.item(), found.loss.item()


def test_a_broken_image_is_kept_and_else_the_larger_loss():
    clean, small, large = (0.5, False, 0.0, -3.0), (0.6, False, 0.1, 2.0), (0.7, False, 0.2, 4.0)
    broken, deeper = (0.1, True, 0.3, 1.0), (0.2, True, 0.4, 3.0)
    for offers, best in [
        ((clean, large, small), large),
        ((clean, small, large), large),
        ((clean, large, broken), broken),  # broken counts more than any loss
        ((clean, broken, large), broken),
        ((clean, broken, deeper, small), deeper),
        ((clean, deeper, broken), deeper),
    ]:
        values = tuple(pytest.approx(v) if isinstance(v, float) else v for v in best)
        assert kept(offered(*offers)) == values


def test_steps_count_until_the_image_is_broken():
    standing, broken = (0.5, False, 0.0, 1.0), (0.1, True, 0.3, 1.0)
    assert offered(standing, standing, standing).steps.item() == 2
    assert offered(standing, broken, broken, standing).steps.item() == 1
    assert offered(broken).steps.item() == 0


def test_what_another_run_found_takes_its_place_and_adds_its_steps():
    first, second = (Best(torch.full((n, 1, 1, 1), v)) for n, v in ((3, 0.5), (2, 0.2)))
    first.steps += 5
    second.steps += torch.tensor([2, 3])
    second.broken[:], second.cost[:], second.loss[:] = True, 0.7, 4.0
    first.take(torch.tensor([2, 0]), second, torch.tensor([0, 1]))
    assert first.steps.tolist() == [8, 5, 7]
    assert first.broken.tolist() == [True, False, True]
    assert first.x_adv.flatten().tolist() == pytest.approx([0.2, 0.5, 0.2])
    assert first.cost.tolist() == pytest.approx([0.7, 0, 0.7])
    assert first.loss.tolist() == [4.0, -torch.inf, 4.0]


def test_restarts_that_fail_replace_nothing():
    x, y = torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, dtype=torch.long)
    model = Linear(torch.ones(1, 3, 3))  # never broken; all starts differ in their loss

    def run(restarts):
        seed = torch.Generator().manual_seed(0)
        options = {"steps": 1, "step_size": 1e-3, "random_start": True, "generator": seed}
        return attacks.pgd(model, x, y, LinfBall(0.2), restarts=restarts, **options)

    assert torch.equal(run(6).x_adv, run(0).x_adv)
    assert run(6).steps.tolist() == [1, 1]


@pytest.mark.parametrize(
    "ball", [LinfBall(0.2), L2Ball(0.9), WassersteinBall(0.2), InternalWassersteinBall(0.4)]
)
def test_a_subclass_of_a_ball_behaves_like_its_parent(ball, unseen, fitted):
    """Steps, starts, repairs, verdicts and words, whatever the name of the class."""
    kind = type(ball)
    mine = type("Mine", (kind,), {})(ball.eps)
    (x, y), seed = unseen, lambda: torch.Generator().manual_seed(0)
    moved = (x + 0.05).clamp(0, 1)
    runs = [
        lambda b: attacks.pgd(fitted, x, y, b, steps=3, random_start=True, generator=seed()),
        lambda b: attacks.pgd(fitted, x, y, b, steps=3, early_stop=False),
        lambda b: attacks.fgsm(fitted, x, y, b),
        lambda b: attacks.transport(fitted, x, y, b, steps=3, generator=seed()),
        lambda b: attacks.stadv(fitted, x, y, b, steps=3, optimizer="adam"),
        lambda b: attacks.iwda(fitted, x, y, b, steps=2, generator=seed()),
        lambda b: attacks.langevin(fitted, x, y, b, steps=3, generator=seed()),
        lambda b: attacks.library(fitted, x, y, b, version="custom", attacks=["apgd-ce"]),
        lambda b: certify(x, moved, b),
    ]
    refused = 0
    for run in runs:
        try:
            theirs = run(ball)
        except ValueError as error:
            refused += 1
            with pytest.raises(ValueError) as again:
                run(mine)
            assert str(again.value) == str(error).replace(f"got {kind.__name__}", "got Mine")
            continue
        ours = run(mine)
        for name in ("x_adv", "success", "cost", "mass_error", "box_error", "inside"):
            if hasattr(theirs, name):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert 1 <= refused <= 4
    assert torch.equal(mine.contains(x, moved), ball.contains(x, moved))
    found = [evaluate.sanity(fitted, x, y, attacks.fgsm, b, generator=seed()) for b in (ball, mine)]
    assert found[0] == found[1]


def test_what_is_no_ball_is_named():
    with pytest.raises(ValueError, match=r"ball must be a LinfBall; got float"):
        LinfBall.require(0.1)
    with pytest.raises(ValueError, match=r"ball must be an InternalWassersteinBall; got L2Ball"):
        InternalWassersteinBall.require(L2Ball(0.1))
    ball = LinfBall(0.1)
    assert LinfBall.require(ball) is Ball.require(ball) is ball
