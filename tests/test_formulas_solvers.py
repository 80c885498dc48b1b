"""Solvers inside: how near they come, in how many steps, and where they refuse."""

import pytest
import torch

from wotlab import GroundCost, PatchCost, iwd, ot
from wotlab.attacks import _pyramid as pyramid
from wotlab.attacks._frank_wolfe import bisected_multipliers, plan_at
from wotlab.iwd.game import PatchCritics
from wotlab.ot._entropic import _relaxation
from wotlab.plans import Moves
from wotlab.projections import constrained_sinkhorn, dual_projection
from wotlab.projections._ascent import multiplier
from wotlab.training._generative import Generator


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# The price of Frank-Wolfe's oracle, by bisection


@pytest.fixture
def counted(monkeypatch):
    """The prices that a bisection looks at."""
    seen, real = [], plan_at

    def looked(psi, scores, moves):
        seen.append(psi.clone())
        return real(psi, scores, moves)

    monkeypatch.setitem(bisected_multipliers.__globals__, "plan_at", looked)
    return seen


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e4])
def test_a_bisection_closes_in_on_the_price_from_anywhere(start, counted):
    """Costs fall with the price: too dear at `low`, within eps at `high`, 1e-4 apart."""
    x = random(4, 1, 4, 4)
    moves = Moves(x, GroundCost(3))
    scores = (5 * random(*moves.outside.shape, seed=1)).masked_fill(moves.outside, -torch.inf)
    eps = torch.tensor([0.01, 0.05, 0.2, 0.4], dtype=torch.double)
    low, high = bisected_multipliers(scores, moves, eps, torch.full_like(eps, start))
    assert (moves.cost(plan_at(high, scores, moves)) <= eps).all()
    assert (moves.cost(plan_at(low, scores, moves)) > eps).all()
    assert (high - low <= 1e-4 * high).all() and (high > low).all()
    # prices lie between 1 and 16: it doubles until there, and halves what is left down to 1e-4
    assert (high > 1).all() and (high < 16).all()
    assert len(counted) <= 50


def test_a_bisection_does_not_look_beyond_a_price_that_will_do(counted):
    x = random(2, 1, 4, 4)
    moves = Moves(x, GroundCost(3))
    scores = torch.zeros_like(moves.outside, dtype=torch.double)
    scores = scores.masked_fill(moves.outside, -torch.inf)
    eps = torch.full((2,), 0.1, dtype=torch.double)
    bisected_multipliers(scores, moves, eps, torch.full_like(eps, 8.0))
    assert torch.cat(counted).max() == 8


def test_a_bisection_gives_up_where_no_price_is_high_enough(counted):
    """Nothing costs nothing here, so that the plan costs more than eps at every price."""
    x = random(1, 1, 4, 4)
    moves = Moves(x, GroundCost(3))
    scores = torch.full_like(moves.outside, 1e30, dtype=torch.double)
    scores[moves.stay] = -1e30
    scores = scores.masked_fill(moves.outside, -torch.inf)
    eps = torch.tensor([1e-3], dtype=torch.double)
    bisected_multipliers(scores, moves, eps, torch.ones_like(eps))
    assert len(counted) < 200


# Sinkhorn's iterations


def spread(seed=0, n=12):
    """Two laws on a line, far apart compared with reg."""
    a, b = random(1, n, seed=seed), random(1, n, seed=seed + 1)
    place = torch.arange(n, dtype=torch.double)
    return a / a.sum(), b / b.sum(), (place[:, None] - place).abs()


def test_over_relaxation_saves_most_of_the_iterations():
    """Beside the plain loop, written out; both to the same error."""
    a, b, cost = spread(5)
    reg, tol = 0.3, 1e-8
    k, u, v = (-cost / reg).exp(), torch.ones_like(a[0]), torch.ones_like(b[0])
    plain, error = 0, 1.0
    while error > tol:
        u = a[0] / (k @ v)
        v = b[0] / (k.mT @ u)
        plan = u[:, None] * k * v
        plain, error = plain + 1, float((plan.sum(1) - a[0]).abs().sum())
    found = ot.sinkhorn(a, b, cost, reg, tol=tol)
    assert found.converged.all()
    assert float(found.primal) == pytest.approx(float((plan * cost).sum()), rel=1e-5)
    assert plain > 500 and int(found.iterations) < plain / 4


def test_the_relaxation_is_youngs():
    """From the rate of a plain iteration, theta: 2 / (1 + sqrt(1 - theta)); above 1: none."""
    one = torch.ones(3, 1, 1, dtype=torch.double)
    rate = torch.tensor([0.0, 0.75, 0.96], dtype=torch.double)
    best = _relaxation(one, rate).flatten()
    assert torch.allclose(best, torch.tensor([1, 4 / 3, 5 / 3], dtype=torch.double))
    # at the best factor the error falls by omega - 1, and the factor stays
    assert torch.allclose(_relaxation(best.view(3, 1, 1), best - 1).flatten()[1:], best[1:])
    # beyond it the rate says nothing of theta, and the factor is lowered
    assert torch.allclose(_relaxation(1.8 * one, 0.0 * rate + 0.7), 1.76 * one)
    wild = _relaxation(1.5 * one, torch.tensor([1.0, 1.2, 7.0], dtype=torch.double))
    assert (wild == 1).all()
    assert _relaxation(one, torch.full((3,), 1 - 1e-12, dtype=torch.double)).max() == 1.98


def test_the_error_is_looked_at_every_tenth_iteration():
    a, b, cost = spread()
    told = [int(ot.sinkhorn(a, b, cost, 2.0, tol=tol).iterations) for tol in (0.5, 1e-2, 1e-8)]
    assert told[0] == 10 and all(count % 10 == 0 for count in told) and told[2] > told[0]
    assert any(count % 20 for count in told)


def test_a_divergence_of_a_batch_is_that_of_each(recwarn):
    """The law that is hard for itself does not stop early because the others are done."""
    reg, tol = 0.02, 1e-9
    easy = torch.zeros(1, 12, dtype=torch.double)
    easy[0, 4] = 1  # done at once: all its mass stays where it is
    hard, other, cost = spread(3)
    hard = hard**6 / (hard**6).sum()
    a, b = torch.cat([easy, hard]), torch.cat([other, other])
    both = ot.sinkhorn_divergence(a, b, cost, reg, tol=tol)
    for k in range(2):
        one = ot.sinkhorn_divergence(a[k : k + 1], b[k : k + 1], cost, reg, tol=tol)
        assert float(one) == pytest.approx(float(both[k]), rel=1e-7)
    assert not recwarn  # that some did not converge
    alike = ot.sinkhorn_divergence(a, a.flip(0), cost, reg, tol=tol)
    assert float(alike[0]) == pytest.approx(float(alike[1]), rel=1e-6)


# Patches


def test_more_patches_than_can_be_matched_are_refused_at_once():
    """148 x 148 patches are 21,904; 141 x 141 would be 19,881."""
    x = torch.full((1, 1, 150, 150), 0.5)
    for ask in (iwd.exact, iwd.matching):
        with pytest.raises(ValueError, match="21904 patches are too many"):
            ask(x, x + 0.1)
    with pytest.raises(ValueError, match="tile must be smaller"):
        iwd.matching(x, x, PatchCost(), tile=150)


@pytest.mark.parametrize("cost", [PatchCost(3, 1, 1), PatchCost(3, 1, 2)], ids=["l1", "l2"])
def test_an_internal_projection_spends_its_budget(cost):
    """All but the millionth part: patches here differ by more than they are moved."""
    x = 0.1 + 0.8 * random(3, 1, 5, 5, seed=4)
    w = x + 0.05 * (random(3, 1, 5, 5, seed=5) - 0.5).sign()
    far = iwd.exact(x, w, cost)
    for share in (0.1, 0.5, 0.9):
        eps = share * float(far.min())
        z = iwd.project(x, w, eps, cost)
        spent = iwd.exact(x, z, cost)
        assert (spent <= eps * (1 + 1e-5)).all() and (spent >= eps * (1 - 1e-5)).all()


def test_a_change_is_a_twentieth_of_what_the_network_says():
    """Added to that of the scale below; the network sees the image, the image so far, noise."""
    x, coarse = random(2, 1, 8, 8).float(), random(3, 2, 1, 8, 8, seed=1).float()
    seen = []

    def net(given):
        seen.append(given)
        return torch.full_like(coarse, 2.0)

    found = pyramid.changed(net, x, coarse, torch.Generator().manual_seed(0))
    assert torch.allclose(found, coarse + 0.1)
    image, so_far, noise = seen[0].unbind(2)
    assert torch.equal(image, x[None, :, 0].expand(3, -1, -1, -1))
    assert torch.equal(so_far, (x + coarse).clamp(0, 1)[:, :, 0])
    assert 0.7 < noise.std() < 1.3 and noise.mean().abs() < 0.3


def test_generators_begin_with_hes_weights_and_a_last_layer_of_zero():
    """Deviation sqrt(2 / (n 9)) from n channels: what goes in comes out as large."""
    net = pyramid.Generators(20, 3, like=torch.zeros(1), generator=torch.Generator().manual_seed(0))
    for k, n in enumerate((9, 32, 32)):
        weight = getattr(net, f"weight{k}")
        assert float(weight.detach().std()) == pytest.approx((2 / (9 * n)) ** 0.5, rel=0.02)
    assert (net.weight3 == 0).all()
    assert all((getattr(net, f"bias{k}") == 0).all() for k in range(4))


def test_a_generator_bends_between_its_layers_and_not_after_them():
    """One channel passed on by the mean of 3 x 3 pixels: a leak of 0.2 at three of four layers."""
    net = pyramid.Generators(2, 1, like=torch.zeros(1))
    with torch.no_grad():
        for k in range(4):
            weight = getattr(net, f"weight{k}").zero_()
            weight[:, 0, 0] = 1 / 9
        net.weight3[1] *= -1
    for value in (2.0, -2.0):
        given = torch.zeros(1, 2, 3, 5, 5)
        given[:, :, 0] = value
        expected = value * (1 if value > 0 else 0.2**3) * torch.tensor([1.0, -1.0])
        made = net(given)
        assert torch.allclose(made, expected[None, :, None, None, None].expand_as(made))


def test_the_one_generator_adds_a_twentieth_and_stays_in_range():
    """x at first, whatever the noise; then x + 0.05 of the last layer, between 0 and 1."""
    net = Generator(1, like=torch.zeros(1))
    x, noise = random(2, 1, 5, 5).float(), random(2, 1, 5, 5, seed=1).float()
    assert torch.equal(net(x, noise), x)
    with torch.no_grad():
        net.bias3.fill_(3.0)
    assert torch.allclose(net(x, noise), (x + 0.15).clamp(max=1))
    assert (x + 0.15).max() > 1


def test_critics_begin_with_hes_weights():
    net = PatchCritics(20, 27, like=torch.zeros(1), generator=torch.Generator().manual_seed(0))
    for k, n in enumerate((27, 64, 64)):
        weight = getattr(net, f"weight{k}")
        assert float(weight.detach().std()) == pytest.approx((2 / n) ** 0.5, rel=0.05)
        assert (getattr(net, f"bias{k}") == 0).all()


@pytest.mark.parametrize("project", [constrained_sinkhorn, dual_projection])
def test_the_search_for_the_multiplier_is_told_the_right_slope(project, monkeypatch):
    """Newton's method needs the cost's derivative in psi; a wrong one only makes it slow."""
    checked, real = [], multiplier

    def seen(spent, eps, psi, slack):
        near = psi + 0.1 + torch.linspace(0, 1, len(psi), dtype=torch.double)
        _, slope, *_ = spent(near)
        h = 1e-6
        rise = (spent(near + h)[0] - spent(near - h)[0]) / (2 * h)
        checked.append(torch.allclose(slope, rise, rtol=1e-3, atol=1e-5))
        return real(spent, eps, psi, slack)

    module = "_dual" if project is dual_projection else "_sinkhorn"
    monkeypatch.setattr(f"wotlab.projections.{module}.multiplier", seen)
    x = random(3, 1, 4, 4)
    w = x + 2 * (random(3, 1, 4, 4, seed=1) - 0.5)
    w = 20 * w if project is dual_projection else w
    project(x, w, 0.1, GroundCost(3), max_iter=4)
    assert len(checked) >= 4 and all(checked)


def test_exact_costs_warn_only_where_they_could_not_be_solved(recwarn):
    a, b, cost = spread()
    assert ot.exact(a, b, cost).converged.all() and not recwarn
    x = random(2, 1, 3, 3)
    ot.wasserstein_distance(x, x.flip(3))
    assert not recwarn


def test_no_assignment_is_solved_where_the_nearest_patches_all_differ(monkeypatch):
    """The nearest ones are then the best matching; where two share one, it has to be solved."""

    def solve(block):
        assert len(block) == 0, "solved"
        return []

    monkeypatch.setitem(iwd.matching.__globals__, "solve", solve)
    x = 0.1 + 0.8 * random(2, 1, 6, 6)
    z = x + 0.001 * (random(2, 1, 6, 6, seed=1) - 0.5)
    alike = (x - z).unfold(2, 3, 1).unfold(3, 3, 1).abs().sum((4, 5)).mean((1, 2, 3))
    assert torch.allclose(iwd.exact(x, z), alike)
    with pytest.raises(AssertionError, match="solved"):
        iwd.exact(x, torch.full_like(x, 0.5))
