"""The ranking of attacks: areas under curves, in closed form, and what counts as a distance."""

import math

import pytest
import ranking
import torch

import wotlab
from wotlab import WassersteinBall

BEST = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)  # one is misread as it is


def nothing(best: torch.Tensor) -> torch.Tensor:
    return torch.where(best > 0, torch.inf, 0.0)


def test_area_is_the_integral_of_the_curve():
    eps = (torch.arange(100_000, dtype=torch.float64) + 0.5) * 5 / 100_000
    curve = (BEST[:, None] > eps).double().mean(0)
    assert ranking.area(BEST, 5.0) == pytest.approx(float(curve.mean()) * 5, abs=1e-6)


def test_the_envelope_is_100_percent_and_finding_nothing_0():
    assert ranking.optimality(BEST, BEST, 4.0) == 1
    assert ranking.optimality(nothing(BEST), BEST, 4.0) == 0
    assert ranking.optimality(nothing(BEST), nothing(BEST), 4.0) == 1  # then it is the envelope


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_part_of_the_way_to_the_end_is_that_part(share):
    found = torch.where(BEST > 0, share * BEST + (1 - share) * 4, 0)
    assert ranking.optimality(found, BEST, 4.0) == pytest.approx(share)


def test_what_lies_beyond_the_end_is_found_by_nobody():
    assert ranking.optimality(BEST.where(BEST < 3, 7.0), BEST, 4.0) == pytest.approx(
        ranking.optimality(BEST.where(BEST < 3, math.inf), BEST, 4.0)
    )


def test_it_is_the_published_formula_by_trapezoids_on_fine_curves():
    """AttackBench's areas are of lines between the points of a curve; with many they agree."""
    best = torch.linspace(0, 4, 4001, dtype=torch.float64)
    found = (1.5 * best).clamp(max=4)
    areas = []
    for d in (found, best):
        distance, count = d.unique(return_counts=True)
        areas.append(float(torch.trapezoid(1 - count.cumsum(0) / len(d), distance)))
    clean = float((best > 0).double().mean())
    theirs = 1 - (areas[0] - areas[1]) / (clean * 4 - areas[1])
    assert ranking.optimality(found, best, 4.0) == pytest.approx(theirs, abs=1e-3)


def test_an_image_counts_at_the_least_budget_that_holds_one_that_breaks(fitted, unseen):
    """One that is wrong has 0, one that leaves the ball has none, and what fell is left alone."""
    x, y = unseen
    sizes = []

    def attack(model, a, b, ball, passes):
        sizes.append(len(a))
        return wotlab.attacks.mirror_ascent(model, a, b, ball, steps=20).x_adv

    budgets = [10.0, 30.0, 1600.0]
    found, spent = ranking.distances(attack, fitted, x, y, budgets, 41)
    misread = ranking.wrong(fitted, x, y)
    assert bool((found[misread] == 0).all()) and bool((found[~misread] > 0).all())
    assert spent["attacked"] == sum(sizes) and sizes == sorted(sizes, reverse=True)
    assert 0 < spent["backward"] <= spent["forward"] and sizes[0] == int((~misread).sum())
    assert sizes[-1] < sizes[0] and {*found.tolist()} <= {0.0, *budgets, math.inf}
    once, _ = ranking.distances(attack, fitted, x, y, budgets, 41, once=True)
    exact = 784 * wotlab.wasserstein_distance(
        x, wotlab.attacks.mirror_ascent(fitted, x, y, WassersteinBall(1600 / 784), steps=20).x_adv
    )
    inside = torch.isfinite(once) & ~misread
    assert bool(inside.any()) and sizes[-1] == sizes[0]
    for least, distance in zip(once[inside].tolist(), exact[inside].tolist(), strict=True):
        assert distance <= least * 1.0001
        assert least == budgets[0] or distance > budgets[budgets.index(least) - 1]
    cheat, _ = ranking.distances(
        lambda model, a, b, ball, passes: a.roll(3, dims=3), fitted, x, y, [1.0], 41
    )
    assert torch.equal(cheat, nothing((~misread).double()))


@pytest.mark.parametrize("name", [*ranking.AT_EACH, *ranking.AT_ONCE])
def test_no_attack_takes_more_propagations_than_it_is_given(name, fitted, unseen):
    x, y = unseen
    attack, passes = (ranking.AT_EACH | ranking.AT_ONCE)[name], 41
    _, spent = ranking.distances(attack, fitted, x, y, [0.1], passes)  # nothing breaks
    looks = len(x)  # once a call, whether the network can be attacked
    assert spent["attacked"] and (
        spent["forward"] + spent["backward"] <= passes * spent["attacked"] + looks
    )
    if name not in ("transport", "radius"):  # which let go of what is far from breaking
        assert spent["forward"] + spent["backward"] > (passes - 2) * spent["attacked"]


def test_a_ball_is_as_large_as_its_budget():
    seen = []

    def attack(model, a, b, ball, passes):
        seen.append(ball)
        return a

    model, x = wotlab.models.build("digits-small", seed=0), torch.rand(2, 1, 8, 8)
    y = model.eval()(x).argmax(1).detach()
    found, _ = ranking.distances(attack, model, x, y, [78.4, 784.0], 41)
    assert seen == [WassersteinBall(0.1), WassersteinBall(1.0)] and bool(found.isinf().all())
