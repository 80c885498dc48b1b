"""Smoothing by noise on flows: what the noise is, what it proves; no attack disproves it."""

from functools import partial

import numpy as np
import pytest
import torch
from known import random
from scipy import stats
from scipy.optimize import linprog
from torch import nn

from wotlab import GroundCost, WassersteinBall, attacks, data, models, smoothing, training
from wotlab import wasserstein_distance as distance
from wotlab._base import draws
from wotlab.smoothing._sampling import lower_share

L1 = GroundCost(None, norm=1)
ROOT = 2**0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Step(nn.Module):
    """Class 1 where the left one of two pixels is brighter than the right one by more than `at`."""

    def __init__(self, at=0.0):
        super().__init__()
        self.at = at

    def forward(self, z):
        lead = z[:, 0, 0, 0] - z[:, 0, 0, 1] - self.at
        return torch.stack([-lead, lead], 1)


def shortest(x, z):
    """The least l1 norm of flows that make z of x, by a linear program, channel by channel."""
    total = 0.0
    for a, b in zip(x[0], z[0], strict=True):
        down, right = a[1:].numel(), a[:, 1:].numel()
        each = torch.eye(down + right, dtype=torch.double)
        unit = smoothing.flow(
            torch.zeros(len(each), 1, *a.shape).double(),
            each[:, :down].reshape(len(each), 1, *a[1:].shape),
            each[:, down:].reshape(len(each), 1, *a[:, 1:].shape),
        )
        unit = unit.flatten(1).T.numpy()
        solved = linprog(
            np.ones(2 * len(each)), A_eq=np.hstack([unit, -unit]),
            b_eq=(b - a).flatten().numpy(), method="highs",
        )  # fmt: skip
        assert solved.status == 0
        total += solved.fun
    return total


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 5), (1, 1, 7), (1, 6, 1)])
@pytest.mark.parametrize("black", [0.0, 0.6])
def test_the_l1_distance_is_the_shortest_flow(shape, black):
    for seed in range(4):
        x, z = (random(1, *shape, seed=2 * seed + k) for k in (0, 1))
        x = x * (random(1, *shape, seed=seed + 50) >= black) / 4
        x[..., 0, 0] = 0.1
        z = z / z.sum((2, 3), keepdim=True) * x.sum((2, 3), keepdim=True)
        found = float(distance(x, z, L1) * x.sum())
        assert found == pytest.approx(shortest(x, z), rel=1e-6)


def test_flows_are_differentiable_and_keep_the_mass_of_each_channel():
    x, down, right = random(2, 3, 4, 5), random(2, 3, 3, 5), random(2, 3, 4, 4)
    z = smoothing.flow(x, down, right)
    assert torch.allclose(z.sum((2, 3)), x.sum((2, 3)), atol=1e-12)
    inner = x[0, 0, 1, 1] + down[0, 0, 0, 1] - down[0, 0, 1, 1] + right[0, 0, 1, 0]
    assert float(z[0, 0, 1, 1]) == pytest.approx(float(inner - right[0, 0, 1, 1]))
    parts = [part.requires_grad_() for part in (x, down, right)]
    assert torch.autograd.gradcheck(smoothing.flow, parts)


def test_a_laplace_draw_is_one():
    drawn = draws.laplace(torch.empty(200_000, dtype=torch.float), seeded())
    assert stats.kstest(drawn.double().numpy(), stats.laplace().cdf).pvalue > 0.01
    many = draws.laplace(torch.empty(10**7), seeded(1))
    assert bool(torch.isfinite(many).all()) and float(many.abs().max()) > 12
    assert torch.equal(drawn, draws.laplace(torch.empty(200_000), seeded()))


def test_noise_is_laplace_on_each_flow_of_each_image():
    """On a line the flows can be read off the noisy image."""
    sigma, x = 0.02, random(2, 1, 1, 30).repeat(2000, 1, 1, 1)
    z = smoothing.noisy(x, sigma, generator=seeded())
    flows = (x - z).cumsum(3)[..., :-1] / x.sum(3, keepdim=True)
    law = stats.laplace(scale=sigma / ROOT)
    for part in (flows[::2], flows[1::2]):  # images of different mass
        assert stats.kstest(part.flatten().numpy(), law.cdf).pvalue > 0.01
    assert float(flows.std()) == pytest.approx(sigma, rel=0.02)
    assert abs(float(torch.corrcoef(flows[:, 0, 0, :2].T)[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(flows[:, 0, 0, 0].reshape(-1, 2).T)[0, 1])) < 0.1


def test_noise_has_the_covariance_of_differences_and_keeps_mass():
    sigma, count = 0.01, 40_000
    x = random(1, 2, 4, 4)
    z = smoothing.noisy(x.expand(count, -1, -1, -1), sigma, generator=seeded())
    assert torch.allclose(z.sum((2, 3)), x.sum((2, 3)).expand(count, -1), atol=1e-10)
    noise = (z - x) / (sigma * x.sum())
    square = noise.square().mean(0)
    wanted = torch.tensor([2.0, 3, 3, 2, 3, 4, 4, 3, 3, 4, 4, 3, 2, 3, 3, 2]).reshape(4, 4)
    assert torch.allclose(square, wanted.double().expand(2, -1, -1), rtol=0.06)
    near = (noise[:, :, 1:] * noise[:, :, :-1]).mean(0)
    assert torch.allclose(near, -torch.ones_like(near), atol=0.1)
    assert float((noise[:, :, 2:] * noise[:, :, :-2]).mean(0).abs().max()) < 0.1


def test_a_black_image_stays_black():
    x = torch.zeros(1, 1, 4, 4)
    assert torch.equal(smoothing.noisy(x, 1.0), x)


@pytest.mark.parametrize("share", [0.55, 0.8, 0.99, 0.9999])
def test_the_radius_is_that_of_neyman_and_pearson_in_one_dimension(share):
    """The set of that probability that a shift by r makes least likely, on a fine grid."""
    step, b = 2e-4, 1 / ROOT
    t = np.arange(-18, 18, step)
    density = stats.laplace(scale=b).pdf

    def left(shift):
        order = np.argsort(density(t - shift) / density(t), kind="stable")
        mass = np.cumsum(density(t)[order]) * step
        taken = order[: np.searchsorted(mass, share)]
        return (density(t - shift)[taken] * step).sum()

    radius = smoothing.laplace_radius(share, 1.0)
    assert left(0.99 * radius) > 0.5 > left(1.01 * radius)
    assert radius >= b / 2 * np.log(share / (1 - share))  # as published


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.5, 0.5), (0.9, 0.1)])
def test_no_set_of_the_plane_loses_more(shift):
    """Shifts in several directions, with the worst set for each: least where one axis has all."""
    step, b, share = 0.02, 1.0, 0.9
    t = np.arange(-9, 9, step)
    radius = smoothing.laplace_radius(share, ROOT * b)
    law = stats.laplace(scale=b).pdf
    here = np.outer(law(t), law(t)).ravel() * step**2
    there = np.outer(*(law(t - radius * part) for part in shift)).ravel() * step**2
    order = np.argsort(there / here, kind="stable")
    taken = order[: np.searchsorted(np.cumsum(here[order]), share)]
    assert there[taken].sum() > 0.5 - 5e-3


def test_shares_of_one_half_and_of_one():
    assert smoothing.laplace_radius(0.5, 1.0) == smoothing.laplace_radius(0.2, 1.0) == 0
    assert smoothing.laplace_radius(1.0, 1.0) == float("inf")


COSTS = [GroundCost(), L1, GroundCost(p=2), GroundCost(None, 2, 1), GroundCost(3, p=0.5),
         GroundCost(None, 0.5, 1), GroundCost(None, p=1.3)]  # fmt: skip


@pytest.mark.parametrize("cost", COSTS, ids=str)
@pytest.mark.parametrize("size", [(4, 5), (1, 6), (2, 2), (1, 1)])
def test_a_step_has_the_least_price_per_length(cost, size):
    whole, steps = (GroundCost(None, c.p, c.norm).dense(*size) for c in (cost, L1))
    apart = steps > 0
    least = float((whole[apart] / steps[apart]).min()) if bool(apart.any()) else 1.0
    assert smoothing.flow_rate(cost, *size) == pytest.approx(least)


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_a_ball_of_the_cost_lies_in_a_ball_of_flows(cost):
    rate = smoothing.flow_rate(cost, 4, 5)
    for seed in range(5):
        x, z = (random(1, 1, 4, 5, seed=seed + k).pow(3) for k in (0, 100))
        z = z * x.sum() / z.sum()
        x, z = x / 2, z / 2
        assert float(distance(x, z, cost)) >= rate * float(distance(x, z, L1)) - 1e-9


def test_published_units():
    """The l2 cost takes the root of 2 of the radius, as in the authors' code."""
    assert smoothing.flow_rate(GroundCost(), 28, 28) == pytest.approx(1 / ROOT)
    assert smoothing.flow_rate(GroundCost(norm=1), 28, 28) == 1
    assert smoothing.flow_rate(GroundCost(p=2), 28, 28) == 1


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("total", [20, 300])
def test_the_lower_share_is_too_large_as_seldom_as_it_says(total, alpha):
    """Counted over all outcomes; the formula is that of the beta distribution."""
    low = np.array([lower_share(k, total, alpha) for k in range(total + 1)])
    k = np.arange(1, total + 1)
    assert np.allclose(low[1:], stats.beta.ppf(alpha, k, total - k + 1)) and low[0] == 0
    for share in (0.3, 0.5, 0.9, 0.97, 0.999):
        wrong = stats.binom.pmf(np.arange(total + 1), total, share)[low > share].sum()
        assert wrong <= alpha
    typical = stats.binom.pmf(np.arange(total + 1), total, 0.5)[low > 0.5].sum()
    assert typical > alpha / 10


def exact(x, at, sigma):
    """Share of class 1 of `Step`, and the distance to the images where it has one half."""
    mass = float(x.sum())
    far = (float(x[0, 0, 0, 0] - x[0, 0, 0, 1]) - at) / 2 / mass  # a flow of that much evens it
    return stats.laplace(scale=sigma / ROOT).cdf(far), far


def test_the_radius_is_the_distance_to_the_boundary_where_the_classifier_is_a_step():
    x, sigma = torch.tensor([[[[0.9, 0.1]]]]).double(), 0.1
    share, far = exact(x, 0.4, sigma)
    found = smoothing.certify(
        Step(0.4), x, sigma=sigma, samples=(50, 60_000), ground_cost=L1, generator=seeded()
    )
    assert smoothing.laplace_radius(share, sigma) == pytest.approx(far)
    assert int(found.prediction) == 1 and 0.95 * far < float(found.radius) < far
    brighter = torch.tensor([[[[0.45, 0.05]]]]).double()  # the same shares of half the mass
    again = smoothing.certify(
        Step(0.2), brighter, sigma=sigma, samples=(50, 60_000), ground_cost=L1,
        generator=seeded(),
    )  # fmt: skip
    assert torch.allclose(again.radius, found.radius)


def test_radii_are_too_large_as_seldom_as_alpha_says():
    x, sigma, alpha = torch.tensor([[[[0.9, 0.1]]]]).double().repeat(200, 1, 1, 1), 0.1, 0.2
    _, far = exact(x[:1], 0.6, sigma)
    found = smoothing.certify(
        Step(0.6), x, sigma=sigma, samples=(20, 40), alpha=alpha, ground_cost=L1,
        generator=seeded(),
    )  # fmt: skip
    wrong = int((found.radius > far).sum())
    assert 0 < wrong <= stats.binom(200, alpha).ppf(0.999)


def test_it_abstains_where_no_class_has_the_majority():
    x = torch.tensor([[[[0.6, 0.4]]], [[[0.9, 0.1]]]]).double()
    options = {"sigma": 0.2, "generator": seeded()}
    found = smoothing.certify(Step(0.2), x, samples=(50, 500), **options)
    assert found.abstained.tolist() == [True, False] and found.prediction.tolist() == [-1, 1]
    assert float(found.radius[0]) == 0 < float(found.radius[1])
    assert smoothing.predict(Step(0.2), x, samples=500, **options).tolist() == [-1, 1]


def test_predictions_are_wrong_as_seldom_as_alpha_says():
    """A share of 0.47 for class 1: whatever is said against 0 is a mistake."""
    x = torch.tensor([[[[0.6, 0.4]]]]).double().repeat(300, 1, 1, 1)
    at = 0.2 - 2 * 0.1 / ROOT * np.log(2 * 0.47)  # so far above the boundary
    share, _ = exact(x[:1], at, 0.1)
    assert share == pytest.approx(0.47, abs=0.002)
    said = smoothing.predict(Step(at), x, sigma=0.1, samples=100, alpha=0.3, generator=seeded())
    assert set(said.tolist()) == {-1, 0, 1}
    assert int((said == 1).sum()) <= stats.binom(300, 0.15).ppf(0.999)
    assert int((said == 0).sum()) > int((said == 1).sum())


def test_batches_and_modes_change_nothing():
    model, x = models.load("digits-standard").train(), data.load("digits").tensors(slice(3))[0]
    for size in (7, 50):
        before = {name: w.clone() for name, w in model.state_dict().items()}
        found = [
            smoothing.certify(
                model, x, sigma=0.01, samples=(20, 100), batch_size=size, generator=seeded(k)
            ) for k in (0, 0, 1)
        ]  # fmt: skip
        assert torch.equal(found[0].radius, found[1].radius)
        assert not torch.equal(found[0].radius, found[2].radius)
        after = model.state_dict()
        assert model.training and all(torch.equal(before[name], after[name]) for name in before)


class Average(nn.Module):
    """The mean probabilities under some fixed noise, as logits: what an attack can climb."""

    def __init__(self, model, sigma, samples):
        super().__init__()
        self.model, self.sigma, self.samples = model, sigma, samples

    def forward(self, z):
        noise = seeded(5)
        scale, total = self.sigma / ROOT * z.sum((1, 2, 3), keepdim=True), 0
        for _ in range(self.samples):
            down, right = (scale * draws.laplace(p[:1], noise) for p in (z[:, :, 1:], z[..., 1:]))
            total = total + self.model(smoothing.flow(z, down, right)).softmax(1)
        return (total / self.samples).log()


def attacked(model, x, found, sigma, factor, steps, samples=8):
    """Each image attacked in a ball of `factor` times its own radius; what is then predicted."""
    soft, said, costs = Average(model, sigma, samples), [], []
    for one, c, radius in zip(x.split(1), found.prediction, found.radius, strict=True):
        ball = WassersteinBall(factor * float(radius))
        done = attacks.transport(
            soft, one, c[None], ball, steps=steps, restarts=0, generator=seeded()
        )
        said.append(smoothing.predict(model, done.x_adv, sigma=sigma, generator=seeded()))
        costs.append(done.cost)
    return torch.cat(said), torch.cat(costs)


@pytest.mark.usefixtures("one_thread")
def test_no_attack_breaks_a_digit_inside_its_radius_and_some_do_outside(fitted):
    sigma = 0.02
    x = data.load("digits", "test").tensors(slice(24))[0].double()
    model = fitted.double()
    found = smoothing.certify(model, x, sigma=sigma, samples=(50, 1000), generator=seeded())
    sure = found.radius > 0
    assert int(sure.sum()) > 15
    kept = smoothing.Smoothed(found.prediction[sure], found.radius[sure])
    said, costs = attacked(model, x[sure], kept, sigma, 0.999, 20)
    assert bool((costs <= kept.radius).all())
    assert bool(((said == kept.prediction) | (said == -1)).all())
    said, _ = attacked(model, x[sure], kept, sigma, 40.0, 20)
    changed = said != kept.prediction  # the attack comes back to the boundary, where none wins
    assert int(changed.sum()) > 5 and int((changed & (said != -1)).sum()) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_no_attack_breaks_a_real_digit_inside_its_radius():
    sigma, model = 0.002, models.load("mnist-standard")
    x = data.load("mnist-5k").tensors(slice(200))[0]
    found = smoothing.certify(model, x, sigma=sigma, samples=(100, 1000), generator=seeded())
    sure = found.radius > 0
    assert int(sure.sum()) > 150
    kept = smoothing.Smoothed(found.prediction[sure], found.radius[sure])
    said, costs = attacked(model, x[sure], kept, sigma, 0.999, 20, samples=4)
    assert bool((costs <= kept.radius).all())
    assert bool(((said == kept.prediction) | (said == -1)).all())


BAD = {
    "x": (torch.full((1, 1, 2, 2), 2.0), "x must lie in"),
    "sigma": (0.0, "sigma must be a finite number above 0"),
    "alpha": (1.0, "alpha must lie in"),
    "batch_size": (0, "batch_size must be a positive integer"),
    "generator": (3, "generator must be a Generator; got 3"),
    "model": (nn.Flatten(0), "model must return logits"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [smoothing.certify, smoothing.predict])
def test_bad_input_is_named(name, function):
    value, says = BAD[name]
    right = {"model": Step(), "x": random(1, 1, 1, 2), "sigma": 0.1} | {name: value}
    with pytest.raises(ValueError, match=says):
        function(**right)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: smoothing.certify(Step(), x, sigma=1.0, samples=100), "samples must be two"),
        (lambda x: smoothing.certify(Step(), x, sigma=1.0, samples=(1, 0)), "samples must be a"),
        (lambda x: smoothing.predict(Step(), x, sigma=1.0, samples=0), "samples must be a"),
        (lambda x: smoothing.certify(Step(), x, sigma=1.0, ground_cost=1), "ground_cost must be"),
        (lambda x: smoothing.predict("net", x, sigma=1.0), "model must be a torch.nn.Module"),
        (lambda x: smoothing.predict(nn.Flatten(), x[..., :1], sigma=1.0), "two classes or more"),
        (lambda x: smoothing.noisy(x, -1.0), "sigma must be"),
        (lambda x: smoothing.noisy(x[0], 1.0), "x must have shape"),
        (lambda x: smoothing.flow(x, x, x[..., 1:]), "down must have the shape of the neighb"),
        (lambda x: smoothing.flow(x, x[:, :, 1:], 3), "right must be a Tensor; got 3"),
        (lambda x: smoothing.laplace_radius(1.2, 1.0), "share must lie in"),
        (lambda x: smoothing.laplace_radius(0.9, 0.0), "sigma must be"),
        (lambda x: smoothing.flow_rate("l1", 2, 2), "ground_cost must be a GroundCost"),
        (lambda x: smoothing.flow_rate(L1, 0, 2), "height must be a positive integer"),
        (lambda x: training.NoiseAugmentation(0.1), "noise must be a function"),
    ],
)
def test_bad_input_of_the_others_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(random(1, 1, 1, 2))


@pytest.mark.usefixtures("one_thread")
def test_training_on_the_noise_raises_the_radii(fitted):
    sigma = 0.03
    train = data.load("digits", "train").tensors()
    learned = models.build("digits-small", seed=0)
    defense = training.NoiseAugmentation(partial(smoothing.noisy, sigma=sigma))
    training.fit(learned, train, defense, epochs=6, lr=0.05, progress=False)
    x, y = data.load("digits", "test").tensors(slice(60))
    radii = []
    for model in (learned, fitted.float()):
        found = smoothing.certify(model, x, sigma=sigma, samples=(30, 300), generator=seeded())
        radii.append(float((found.radius * (found.prediction == y)).mean()))
    assert radii[0] > 1.3 * radii[1]
