"""Internal Wasserstein distance: against POT, closed forms, and a quadratic program."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import cvxpy
import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import random
from scipy.optimize import linear_sum_assignment

import wotlab
from wotlab import InternalWassersteinBall, PatchCost, attacks, iwd
from wotlab.iwd._distance import assignment, reduce, take_minima
from wotlab.iwd.game import PatchCritics

COSTS = [PatchCost(3, stride, norm) for stride in (1, 2, 3) for norm in (1, 2)]
costs = pytest.mark.parametrize("cost", COSTS, ids=str)


def blocks_shuffled(x, size=3, seed=0):
    """The image with its blocks in another order."""
    cost = PatchCost(size, size)
    order = torch.randperm(cost.count(*x.shape[-2:]), generator=torch.Generator().manual_seed(seed))
    values, there = cost.join(cost.cut(x)[:, order], x.shape)
    return (values * there).sum(0)


@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_every_pixel_is_in_a_patch_and_finds_its_way_back(height, width, channels, stride):
    x, cost = random(2, channels, height, width), PatchCost(3, stride)
    patches = cost.cut(x)
    assert patches.shape == (2, cost.count(height, width), 9 * channels)
    values, there = cost.join(patches, x.shape)
    assert there.any(0).all()
    assert torch.equal(torch.where(there, values, x), x.expand_as(values))


def test_blocks_are_those_of_unfold():
    x = random(2, 3, 9, 12)
    for stride in (1, 3):
        ours = PatchCost(3, stride).cut(x)
        assert torch.equal(ours, torch.nn.functional.unfold(x, 3, stride=stride).mT)


@costs
def test_exact_is_pots(cost):
    x, z = random(2, 2, 7, 8), random(2, 2, 7, 8, seed=1)
    matrix = cost.between(cost.cut(x), cost.cut(z))
    expected = [pot.emd2(np.array([]), np.array([]), m.numpy()) for m in matrix]
    assert iwd.exact(x, z, cost).tolist() == pytest.approx(expected, rel=1e-9)


def test_closed_forms():
    dark, light = torch.full((1, 2, 6, 6), 0.2).double(), torch.full((1, 2, 6, 6), 0.7).double()
    assert iwd.exact(dark, light).item() == pytest.approx(2 * 9 * 0.5)
    assert iwd.exact(dark, light, PatchCost(norm=2)).item() == pytest.approx(18**0.5 * 0.5)
    dot = dark.clone()
    dot[0, 0, 3, 3] += 0.3  # in nine sliding patches of 16, in one block of 4
    assert iwd.exact(dark, dot).item() == pytest.approx(9 * 0.3 / 16)
    assert iwd.exact(dark, dot, PatchCost(3, 3)).item() == pytest.approx(0.3 / 4)
    one = PatchCost(6)  # a single patch
    assert iwd.exact(dark, light, one).item() == pytest.approx(72 * 0.5)


@costs
@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_a_pseudo_metric(cost, seed):
    x, y, z = random(3, 1, 1, 6, 7, seed=seed)
    xy, yz, xz = (iwd.exact(*pair, cost).item() for pair in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz + 1e-12
    assert iwd.exact(y, x, cost).item() == pytest.approx(xy, abs=1e-12)
    assert iwd.exact(x, x, cost).item() == 0


def test_blind_to_the_order_of_blocks_unless_it_slides():
    x = random(1, 1, 9, 9)
    z = blocks_shuffled(x)
    assert (z - x).abs().max() > 0.3
    assert iwd.exact(x, z, PatchCost(3, 3)).item() == 0
    assert iwd.exact(x, z).item() > 0.3


@costs
def test_gradient(cost):
    x, z = random(1, 1, 6, 6).requires_grad_(), random(1, 1, 6, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: iwd.exact(a, b, cost), (x, z))


@costs
def test_a_batch_equals_a_loop(cost):
    x, z = random(3, 1, 6, 6), random(3, 1, 6, 6, seed=1)
    loop = [iwd.exact(x[k : k + 1], z[k : k + 1], cost).item() for k in range(3)]
    assert iwd.exact(x, z, cost).tolist() == loop
    near = iwd.project(x, z, 0.4, cost)
    loop = [iwd.project(x[k : k + 1], z[k : k + 1], 0.4, cost) for k in range(3)]
    assert torch.allclose(near, torch.cat(loop), atol=1e-6)


@costs
def test_sliced_is_a_lower_bound_and_entropic_comes_near(cost):
    x, z = random(2, 1, 8, 8), random(2, 1, 8, 8, seed=1)
    exact = iwd.exact(x, z, cost)
    sliced = iwd.sliced(x, z, cost, generator=torch.Generator().manual_seed(0))
    assert (sliced > 0).all() and (sliced < exact).all()
    assert iwd.sliced(x, x, cost).abs().max() < 1e-12
    loose, near = (iwd.entropic(x, z, cost, reg=reg, max_iter=20_000) for reg in (1.0, 0.02))
    assert ((near - exact).abs() < 0.02 * exact).all()
    assert ((near - exact).abs() < (loose - exact).abs()).all()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("norm", [1, 2])
def test_sliced_in_closed_form(norm, channels):
    """Patches that all change by the same c (1, ..., 1): the mean of c |w_1 + ... + w_d|."""
    dark = torch.full((1, channels, 6, 6), 0.2).double()
    d = 9 * channels
    if norm == 1:  # of d signs, of which k are +1
        mean = sum(math.comb(d, k) * abs(2 * k - d) for k in range(d + 1)) / 2**d
    else:  # of a point on the sphere, times the length of (1, ..., 1)
        mean = math.sqrt(d / math.pi) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2))
    draw = torch.Generator().manual_seed(0)
    found = iwd.sliced(dark, dark + 0.5, PatchCost(norm=norm), directions=20_000, generator=draw)
    assert found.item() == pytest.approx(0.5 * mean, rel=0.02)


@costs
def test_sliced_is_the_mean_of_transport_on_lines(cost):
    x, z = random(2, 1, 7, 8), random(2, 1, 7, 8, seed=1)
    many = iwd.sliced(x, z, cost, directions=4000, generator=torch.Generator().manual_seed(0))
    w = torch.randn(9, 4000, generator=torch.Generator().manual_seed(1)).double()
    w = w.sign() if cost.norm == 1 else w / w.norm(dim=0)
    for k, value in enumerate(many):
        u, v = ((cost.cut(images)[k] @ w).numpy() for images in (x, z))
        assert value.item() == pytest.approx(pot.wasserstein_1d(u, v, p=1).mean(), rel=0.05)


def test_entropic_says_when_it_has_not_converged():
    x, z = random(2, 1, 6, 6), random(2, 1, 6, 6, seed=1)
    with pytest.warns(UserWarning, match="2 of 2 problems did not converge in 2 iterations"):
        iwd.entropic(x, z, reg=0.02, max_iter=2)


@costs
@given(st.sampled_from([2, 3, 5]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_tiles_bound_the_distance_from_above(cost, tile, seed):
    x, z = random(2, 1, 9, 8, seed=seed), random(2, 1, 9, 8, seed=seed + 1)
    exact, bound = iwd.exact(x, z, cost), iwd.tiled(x, z, cost, tile=tile)
    still = cost.along(cost.cut(x), cost.cut(z)).mean(1)
    assert (exact <= bound + 1e-12).all() and (bound <= still + 1e-12).all()
    assert torch.allclose(iwd.tiled(x, z, cost, tile=1), still)
    assert torch.equal(iwd.tiled(x, z, cost, tile=9), exact)
    ball = InternalWassersteinBall(0.4, cost, tile=tile)
    near = ball.project(x, z)
    assert ball.contains(x, near).all() and not wotlab.certify(x, near, ball).exact
    assert InternalWassersteinBall(0.4, cost).contains(x, near).all()


@pytest.mark.parametrize("tile", [1, 3, 4, 7])
def test_the_best_matching_that_changes_places_within_tiles_only(tile):
    """One assignment in which a place in another tile is too dear."""
    cost, x, z = PatchCost(), random(1, 2, 12, 10), random(1, 2, 12, 10, seed=1)
    number = torch.arange(80)
    tiles = torch.stack([number // 8 // tile, number % 8 // tile], 1)
    apart = (tiles[:, None] != tiles).any(2)
    costs = cost.between(cost.cut(z), cost.cut(x))[0] + 1e6 * apart
    best = linear_sum_assignment(costs.numpy())[1]
    pairs = iwd.matching(x, z, cost, tile=tile)[0]
    assert torch.equal(pairs, torch.from_numpy(best))
    bound = iwd.tiled(x, z, cost, tile=tile).item()
    assert bound == pytest.approx(costs[number, pairs].mean().item())


def test_a_photograph_too_large_to_be_matched_whole():
    x = random(1, 1, 160, 160)
    with pytest.raises(ValueError, match="tile must be given for images of 160x160"):
        iwd.exact(x, x)
    with pytest.raises(ValueError, match="tile must be smaller for images of 160x160"):
        iwd.tiled(x, x, tile=150)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(160**2, 2)).double()
    with pytest.raises(ValueError, match="tile must be given"):  # before it takes a step
        attacks.adef(model, x, torch.tensor([0]), InternalWassersteinBall(1.0))
    assert iwd.tiled(x, x.roll(1, 3)).item() > iwd.sliced(x, x.roll(1, 3)).item()


@costs
@given(st.floats(0, 2), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_projection_is_always_in_the_ball(cost, eps, seed):
    x, w = random(2, 1, 6, 7, seed=seed), 2 * random(2, 1, 6, 7, seed=seed + 1) - 0.5
    z, ball = iwd.project(x, w, eps, cost), InternalWassersteinBall(eps, cost)
    assert ball.contains(x, z).all()
    assert (iwd.exact(x, z, cost) <= eps * (1 + 2e-5) + 1e-12).all()
    assert ((z - w).norm() <= (x - w).norm() + 1e-9).all()
    assert torch.allclose(iwd.project(x, w, 100.0, cost), w.clamp(0, 1))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_projection_is_the_nearest_image_of_its_matching(stride):
    x, w, cost, eps = (
        random(1, 1, 6, 6),
        2 * random(1, 1, 6, 6, seed=1) - 0.5,
        PatchCost(3, stride),
        2.0,
    )
    u = cost.cut(x)[0][iwd.matching(x, w.clamp(0, 1), cost)[0]]
    places = cost.cut(torch.arange(36).reshape(1, 1, 6, 6))[0]
    z = cvxpy.Variable(36)
    paid = sum(cvxpy.norm1(z[p.numpy()] - v.numpy()) for p, v in zip(places, u, strict=True))
    constraints = [paid <= eps * len(u), z >= 0, z <= 1]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(z - w.flatten().numpy())), constraints)
    problem.solve(solver="CLARABEL")
    ours = iwd.project(x, w, eps, cost)
    assert (ours - w).square().sum().item() == pytest.approx(problem.value, rel=1e-5)


@costs
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_projection_in_single_precision_and_colour(cost, eps):
    x, w = random(4, 3, 8, 9).float(), 2 * random(4, 3, 8, 9, seed=1).float() - 0.5
    z = iwd.project(x, w, eps, cost)
    assert InternalWassersteinBall(eps, cost).contains(x, z).all()
    spent = iwd.exact(x, z, cost)
    assert (spent >= 0.5 * eps).all() and z.dtype == torch.float32
    assert (z - x).abs().max() < 1e-6 if eps == 0 else (z != x).any()


def test_equal_patches_cost_nothing_in_single_precision():
    x = (0.9 + 0.1 * random(1, 3, 12, 12)).float()
    for norm in (1, 2):
        cost = PatchCost(norm=norm)
        u = cost.cut(x)
        assert cost.between(u, u).diagonal(dim1=1, dim2=2).max() == 0
    with pytest.raises(ValueError, match=r"x must have shape \(B, C, H, W\)"):
        cost.cut(x[0])


def test_the_attack_reaches_what_a_linear_classifier_allows_without_reordering():
    """Blocks, each at its place: the budget buys |change|, best where the gradient is steep."""
    x, cost, eps = 0.3 + 0.4 * random(1, 1, 6, 6), PatchCost(3, 3), 0.8
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)).double()
    weight = random(36, seed=2) - 0.5
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-weight, weight]) / 2)
        model[1].bias.copy_(torch.tensor([50.0, -50.0]))
    room = torch.where(weight > 0, 1 - x.flatten(), x.flatten())
    left, best = eps * 4, 0.0
    for k in weight.abs().argsort(descending=True):
        spend = min(left, room[k].item())
        left, best = left - spend, best + spend * weight[k].abs().item()
    done = attacks.pgd(
        model, x, torch.tensor([0]), InternalWassersteinBall(eps, cost), steps=100, loss="margin"
    )
    assert ((done.x_adv - x).flatten() @ weight).item() > 0.98 * best
    assert done.cost.item() <= eps * (1 + 1e-4)


def test_certificate():
    x, z = random(1, 1, 6, 6), random(1, 1, 6, 6, seed=1)
    far = iwd.exact(x, z).item()
    for eps, inside in ((0.99 * far, False), (1.01 * far, True)):
        certificate = wotlab.certify(x, z, InternalWassersteinBall(eps))
        assert bool(certificate.inside) is inside and certificate.exact
        assert certificate.cost.item() == pytest.approx(far)
    assert not wotlab.certify(x, x + 1, InternalWassersteinBall(100.0)).inside
    black = torch.zeros(1, 1, 6, 6)
    assert wotlab.certify(black, black, InternalWassersteinBall(0.0)).inside


def test_theorem_1_is_false_in_l2():
    """Constant grey, 100 blocks, eps = 0.3: the l-infinity ball is the wider one."""
    x, cost = torch.full((1, 1, 30, 30), 0.5).double(), PatchCost(3, 3)
    # an image of IWD eps changes pixels by 100 eps in all; at most 0.5 each, so 60 of them
    up, down = x.clone().flatten(1), x.clone().flatten(1)
    up[0, :60], down[0, :60] = 1, 0
    up, down = up.view_as(x), down.view_as(x)
    assert iwd.exact(x, up, cost).item() == pytest.approx(0.3)
    assert (up - down).norm().item() == pytest.approx(60**0.5) == pytest.approx(7.746, abs=1e-3)
    assert (2 * 0.3 * torch.ones(900)).norm().item() == pytest.approx(18)


@pytest.mark.parametrize("norm", [1, 2])
def test_assignments_are_the_best_whatever_the_patches_do(norm):
    """Patches that are far apart, crowded, all changed alike, each in its own way; none at all."""
    u, noise = random(8, 5, 4), random(8, 5, 4, seed=1) - 0.5
    u[:2] *= 50  # the nearest patch of each is its own
    v = u + torch.tensor([0, 1, 0.1, 0.5, 0, 0, 3, 3])[:, None, None] * noise
    v[4:] += 2 * random(4, 1, 4, seed=2) - 1
    u[5] = u[5, :1]  # all patches alike
    cost = PatchCost(2, norm=norm)
    with ThreadPoolExecutor(2) as pool:
        best = assignment(v, u, cost, pool)
        assert assignment(v[:0], u[:0], cost, pool).shape == (0, 5)
    costs, orders = cost.between(v, u), torch.tensor(list(permutations(range(5))))
    least = costs[:, torch.arange(5), orders].sum(2).amin(1)
    assert torch.allclose(costs.gather(2, best[:, :, None]).sum((1, 2)), least)
    assert torch.equal(best.sort(1).values, torch.arange(5).expand(8, 5))


@given(st.integers(0, 10_000), st.sampled_from([1, 2]), st.floats(0, 2))
@settings(deadline=None, max_examples=30)
def test_reduced_costs_are_costs_less_two_potentials(seed, norm, shift):
    """Not negative, no larger sum than the best matching's cost, the same differences."""
    u, cost = random(2, 6, 4, seed=seed), PatchCost(2, norm=norm)
    v = u + shift * random(2, 1, 4, seed=seed + 1) + 0.1 * random(2, 6, 4, seed=seed + 2)
    costs = cost.between(v, u)
    left = costs.clone()
    reduce(left, v, u, cost)
    assert left.min() > -1e-12
    taken = costs - left  # f_j + g_i: every 2x2 minor is balanced
    minor = taken[:, 1:, 1:] - taken[:, :1, 1:] - taken[:, 1:, :1] + taken[:, :1, :1]
    assert minor.abs().max() < 1e-12
    plain = costs.clone()
    take_minima(plain)
    for k in range(2):
        i, j = linear_sum_assignment(costs[k].numpy())
        assert (left[k] - plain[k])[i, j].sum() <= 1e-12  # at least as much is taken
        a, b = linear_sum_assignment(left[k].numpy())
        assert costs[k][a, b].sum().item() == pytest.approx(costs[k][i, j].sum().item())


def test_slope_is_the_gradient_at_each_patch_and_so_is_its_own():
    critics = PatchCritics(2, 9, like=random(1), generator=torch.Generator().manual_seed(0))
    u = random(2, 5, 9).requires_grad_()
    (slope,) = torch.autograd.grad(critics(u).sum(), u, create_graph=True)
    assert torch.allclose(critics.slope(u), slope)
    weights = [critics.weight0, critics.weight1, critics.weight2]
    twice = torch.autograd.grad(slope.square().sum(), weights)
    once = torch.autograd.grad(critics.slope(u.detach()).square().sum(), weights)
    assert all(torch.allclose(a, b) for a, b in zip(once, twice, strict=True))


SMALL = random(1, 1, 5, 5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PatchCost(0), "size must be a positive integer"),
        (lambda: PatchCost(3, 0), "stride must be a positive integer"),
        (lambda: PatchCost(3, 4), "stride must be at most the size"),
        (lambda: PatchCost(norm=3), "norm must be 1 or 2"),
        (lambda: InternalWassersteinBall(-1.0), "eps must be a finite number"),
        (lambda: InternalWassersteinBall(1.0, tile=0), "tile must be a positive integer"),
        (lambda: iwd.tiled(SMALL, SMALL, tile=0), "tile must be a positive integer"),
        (lambda: InternalWassersteinBall(1.0, wotlab.GroundCost()), "cost must be a PatchCost"),
        (lambda: wotlab.certify(SMALL, SMALL, PatchCost()), "ball must be a Wasserstein"),
        (lambda: iwd.project(SMALL, SMALL, -1.0, PatchCost()), "eps must be"),
        (lambda: iwd.project(SMALL, random(1, 1, 5, 6), 1.0, PatchCost()), "w must have the"),
        (lambda: iwd.exact(SMALL, SMALL, PatchCost(6)), "do not fit"),
        (lambda: iwd.exact(SMALL, random(1, 1, 5, 6)), "z must have the shape"),
        (lambda: iwd.exact(SMALL, 2 * SMALL), "z must lie in"),
        (lambda: iwd.exact(SMALL[0, 0], SMALL[0, 0]), "x must have shape"),
        (lambda: iwd.sliced(SMALL, SMALL, directions=0), "directions must be"),
        (lambda: iwd.entropic(SMALL, SMALL, reg=0.0), "reg must be"),
        (lambda: iwd.critic(SMALL, SMALL, steps=0), "steps must be"),
    ],
)  # fmt: skip
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()
