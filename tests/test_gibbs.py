"""Chains on a box: which of them have the Gibbs law, checked against its closed form."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab.gibbs import Chain, fold, sample, soft_maximum

EPS = 0.3


def grid_mean(loss, lam, power=1):
    """E[z^power] under exp(lam loss) on [-EPS, EPS], on a fine grid."""
    z = torch.linspace(-EPS, EPS, 20001, dtype=torch.double)[:, None]
    weight = (lam * loss(z)).softmax(0)
    return float((weight * z[:, 0] ** power).sum())


def run(chain, loss, steps=200, count=4000, dim=1):
    walls = torch.full((count, dim), EPS, dtype=torch.double)
    draw = torch.Generator().manual_seed(0)
    return sample(loss, torch.zeros_like(walls), -walls, walls, chain, steps, generator=draw)


def slope(z):
    return 0.5 * z.sum(1)


def hill(z):
    return -5 * z.square().sum(1)


@pytest.mark.parametrize("loss", [slope, hill])
@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_mala_has_the_gibbs_law_at_any_step(loss, sigma):
    lam = 10.0
    z = run(Chain("mala", lam=lam, sigma=sigma), loss)
    for power in (1, 2):
        seen = (z**power).mean()
        error = 5 * float((z**power).std()) / math.sqrt(len(z))
        assert abs(float(seen) - grid_mean(loss, lam, power)) < error


@pytest.mark.parametrize("loss", [slope, hill])
def test_reflected_chain_tends_to_the_gibbs_law(loss):
    lam, gaps = 10.0, []
    for sigma in (0.3, 0.03):
        z = run(Chain("reflected", lam=lam, sigma=sigma), loss, steps=400)
        gaps.append(abs(float((z**2).mean()) - grid_mean(loss, lam, 2)))
    assert gaps[1] < 0.0015


def test_the_printed_chain_has_another_law():
    # errata f2: the sign of the gradient, and mass on the walls
    lam = 2 * 0.2 / 0.2**2  # the paper's lambda = 2 eta / sigma^2
    z = run(Chain("sign", lam=lam, sigma=0.2, eta=0.2), slope)
    wall = float((z.abs() >= EPS - 1e-12).double().mean())
    assert grid_mean(slope, lam) == pytest.approx(0.131, abs=0.001)
    assert float(z.mean()) == pytest.approx(0.276, abs=0.01) and wall == pytest.approx(
        0.81, abs=0.03
    )
    small = run(Chain("sign", lam=lam, sigma=0.02, eta=0.002), slope, steps=1500)
    assert abs(float(small.mean()) - grid_mean(slope, lam)) > 0.05


def test_mala_in_many_dimensions():
    lam = 10.0
    z = run(Chain("mala", lam=lam, sigma=0.1), slope, steps=300, count=500, dim=20)
    assert float(z.mean()) == pytest.approx(grid_mean(slope, lam), abs=0.01)


def test_the_sign_chain_without_noise_climbs_to_the_corner():
    """On a linear loss the largest value on the box is at x + eps sign(w), clamped to [0, 1]."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(5, 12, generator=draw).double()
    x = torch.rand(5, 12, generator=draw).double()
    lo, hi = (x - EPS).clamp_min(0), (x + EPS).clamp_max(1)
    chain = Chain("sign", sigma=1e-12, eta=0.05)
    out = sample(lambda z: (w * z).sum(1), x, lo, hi, chain, 7)
    assert torch.allclose(out, torch.where(w > 0, hi, lo), atol=1e-10)
    once = sample(lambda z: (w * z).sum(1), x, lo, hi, chain, 1)
    assert torch.allclose(once, (x + 0.05 * w.sign()).clamp(0, 1), atol=1e-10)


def test_a_step_by_hand():
    z, g = torch.tensor([[0.5, 0.1, 0.9]]).double(), torch.tensor([[0.4, -2.0, 3.0]]).double()
    lo, hi = torch.zeros(1, 3).double(), torch.ones(1, 3).double()
    for rule in ("projected", "reflected", "mala"):  # lam sigma^2 / 2 = 7 * 0.09 / 2
        drift = Chain(rule, lam=7.0, sigma=0.3, eta=0.9).drift(z, g)
        assert torch.allclose(drift, z + 0.315 * g)
    chain = Chain("sign", lam=7.0, sigma=0.3, eta=0.9)
    assert torch.allclose(chain.drift(z, g), z + 0.9 * g.sign())
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    far = z + 0.315 * g + 0.3 * noise
    assert bool((far < 0).any()) and bool((far > 1).any())
    mirrored = 1 - (1 - far.remainder(2)).abs()
    for rule, lands in (("projected", far.clamp(0, 1)), ("reflected", mirrored)):
        made = Chain(rule, lam=7.0, sigma=0.3).move(z, g, lo, hi, torch.Generator().manual_seed(1))
        assert torch.allclose(made, lands)


@pytest.mark.parametrize(
    ("z", "then", "lo", "hi"),
    [(0.1, 0.25, -50.0, 50.0), (0.25, 0.1, -50.0, 50.0),  # no wall in reach
     (0.05, 0.28, 0.0, 0.3), (0.28, 0.05, 0.0, 0.3), (0.02, 0.01, 0.0, 0.3)],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["mala", "reflected"])
def test_acceptance_is_that_of_metropolis_and_hastings(rule, z, then, lo, hi):
    """min(1, p(z') q(z | z') / p(z) q(z' | z)), q the Gaussian step folded at the walls."""
    lam, sigma, count = 6.0, 0.2, 40_000
    loss = lambda z: -4 * (z - 0.2) ** 2 + z  # noqa: E731
    slope = lambda z: -8 * (z - 0.2) + 1  # noqa: E731

    def step(start, end):
        mean = start + lam * sigma**2 / 2 * slope(start)
        images = [t for k in range(-9, 10) for t in (end + 2 * k * (hi - lo),
                                                     2 * lo - end + 2 * k * (hi - lo))]  # fmt: skip
        return sum(math.exp(-((t - mean) ** 2) / (2 * sigma**2)) for t in images)

    ratio = math.exp(lam * (loss(then) - loss(z))) * step(then, z) / step(z, then)
    expected = min(1, ratio) if rule == "mala" else 1
    now, new = (
        tuple(
            torch.full(s, v).double()
            for s, v in (((count, 1), a), ((count, 1), slope(a)), ((count,), loss(a)))
        )
        for a in (z, then)
    )
    walls = torch.full((count, 1), lo).double(), torch.full((count, 1), hi).double()
    chain = Chain(rule, lam=lam, sigma=sigma)
    went = chain.accept(now, new, *walls, torch.Generator().manual_seed(0)).double().mean()
    assert float(went) == pytest.approx(expected, abs=0.012)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5), st.floats(-1, 1), st.floats(0, 2))
def test_folded_points_lie_inside_and_keep_their_distance_to_the_walls(z, lo, width):
    z, lo = torch.tensor([z]).double(), torch.tensor([lo]).double()
    hi = lo + width
    inside = fold(z, lo, hi)
    assert bool((inside >= lo).all()) and bool((inside <= hi).all())
    if bool(((z >= lo) & (z <= hi)).all()):
        assert torch.allclose(inside, z)
    if width:
        assert torch.allclose(fold(z + 2 * width, lo, hi), inside)
        assert torch.allclose(fold(2 * lo - z, lo, hi), inside)


def test_a_flat_box_stays_where_it_is():
    z = torch.tensor([[0.4, 0.1]])
    walls = torch.tensor([[0.4, 0.0]]), torch.tensor([[0.4, 1.0]])
    for rule in ("sign", "projected", "reflected", "mala"):
        out = sample(slope, z, *walls, Chain(rule), 20)
        assert float(out[0, 0]) == pytest.approx(0.4) and bool(torch.isfinite(out).all())


def test_soft_maximum_lies_between_mean_and_maximum():
    losses = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)).double()
    values = [soft_maximum(losses, lam) for lam in (1e-6, 1.0, 10.0, 1e6)]
    assert torch.allclose(values[0], losses.mean(0), atol=1e-5)
    assert torch.allclose(values[-1], losses.amax(0), atol=1e-5)
    assert all(bool((a <= b + 1e-12).all()) for a, b in itertools.pairwise(values))
    assert torch.allclose(soft_maximum(losses[:1], 3.0), losses[0])


def test_the_entropic_adversary_is_the_gibbs_law():
    # the largest of E_p[loss] + H(p) / lam is (1 / lam) log of the integral of exp(lam loss)
    lam = 10.0
    z = torch.linspace(-EPS, EPS, 5001, dtype=torch.double)[:, None]
    cell, loss = 2 * EPS / 5000, slope(z)
    best = float((torch.logsumexp(lam * loss, 0) + math.log(cell)) / lam)
    draw = torch.Generator().manual_seed(0)
    for p in [(lam * loss).softmax(0), *torch.rand(20, 5001, generator=draw).double().softmax(1)]:
        value = float((p * loss).sum() - (p * (p / cell).log()).sum() / lam)
        assert value <= best + 1e-9
    gibbs = (lam * loss).softmax(0)
    reached = float((gibbs * loss).sum() - (gibbs * (gibbs / cell).log()).sum() / lam)
    assert reached == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"rule": "ula"}, "rule"), ({"lam": 0.0}, "lam"), ({"sigma": -1.0}, "sigma"),
     ({"eta": math.nan}, "eta")],
)  # fmt: skip
def test_bad_input(change, named):
    with pytest.raises(ValueError, match=named):
        Chain(**change)
    walls = torch.zeros(1, 1), torch.ones(1, 1)
    with pytest.raises(ValueError, match="steps"):
        sample(slope, walls[0], *walls, Chain(), 0)
    with pytest.raises(ValueError, match="lo must"):
        sample(slope, walls[0], walls[1], walls[0], Chain(), 1)
