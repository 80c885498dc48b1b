"""Splitting noise and the way through l1: shares counted one by one, radii tried on every image."""

import itertools
from functools import partial

import pytest
import torch
from known import random
from torch import nn

from wotlab import GroundCost, WassersteinBall, attacks, data, models, smoothing, training
from wotlab import wasserstein_distance as distance

COSTS = [GroundCost(), GroundCost(None, norm=1), GroundCost(p=2), GroundCost(None, p=0.3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed, pixels=4, classes=3):
    """A small one whose classes change often between the images of a grid."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 16), nn.Tanh(), nn.Linear(16, classes)
    ).double()  # fmt: skip
    for weight in model.parameters():
        weight.data *= 4
    return model


@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_a_wasserstein_ball_lies_in_its_l1_ball_and_touches_it(cost):
    for seed in range(5):
        x, z = (random(1, 2, 3, 4, seed=seed + k) / 2 for k in (0, 100))
        z = z / z.sum((2, 3), keepdim=True) * x.sum((2, 3), keepdim=True)
        eps = distance(x, z, cost)
        assert float((x - z).abs().sum()) <= float(smoothing.l1_radius(eps, x)) * (1 + 1e-9)
    x = torch.zeros(1, 1, 3, 4).double()
    x[0, 0, 1, 1], x[0, 0, 2, 3] = 0.8, 0.2
    z = x.clone()
    z[0, 0, 1, 1], z[0, 0, 1, 2] = 0.5, 0.3
    assert torch.allclose(smoothing.l1_radius(distance(x, z, cost), x), (x - z).abs().sum())


def test_the_two_radii_are_inverse():
    x, radius = random(5, 3, 4, 4), random(5, seed=1)
    back = smoothing.l1_radius(smoothing.wasserstein_radius(radius, x), x)
    assert torch.allclose(back, radius)
    black = torch.zeros(1, 1, 2, 2)
    assert smoothing.wasserstein_radius(torch.ones(1), black) == torch.inf
    assert smoothing.l1_radius(torch.ones(1), black) == 0


def by_hand(value, t, lam, levels, offset):
    """One pixel split, as it is defined: its interval is found by looking at all thresholds."""
    width = 2 * lam
    start = (t + offset / levels) % width
    kept = ((int(t * levels) + 0.5 + offset) / levels) % width
    for k in range(-1, int(1 / width) + 2):
        if start + (k - 1) * width < value <= start + k * width:
            low, high = kept + (k - 1) * width, kept + k * width
            return (max(low, 0.0) + min(high, 1.0)) / 2
    raise AssertionError("no interval holds the pixel")


@pytest.mark.parametrize(("lam", "levels"), [(0.5, 4), (0.25, 8), (0.125, 8), (1.5, 5), (0.3, 10)])
def test_a_pixel_becomes_the_centre_of_its_interval(lam, levels):
    x = random(6, 2, 3, 3, seed=1)
    x[:2] = (x[:2] * levels).round() / levels
    place, count = random(6, seed=2), round(2 * lam * levels)
    place[:2] = (torch.tensor([0, count - 1]) + 0.5).double() / count
    z = smoothing.split(x, place, lam=lam, levels=levels, seed=3)
    offsets = torch.randint(count, (2, 3, 3), generator=seeded(3))
    for b, c, h, w in itertools.product(range(6), range(2), range(3), range(3)):
        wanted = by_hand(
            float(x[b, c, h, w]), float(place[b]) * 2 * lam, lam, levels, int(offsets[c, h, w])
        )
        assert float(z[b, c, h, w]) == pytest.approx(wanted, abs=1e-12)
    assert bool(((z >= 0) & (z <= 1)).all())


def test_offsets_belong_to_the_seed_and_places_to_the_generator():
    x = random(2, 1, 8, 8)
    one, again, other, seed = (
        smoothing.noisy_l1(x, 0.5, seed=seed, generator=seeded(draw))
        for seed, draw in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other) and not torch.equal(one, seed)
    same = smoothing.noisy_l1(x[:1].expand(2, -1, -1, -1), 0.5, generator=seeded())
    assert not torch.equal(same[0], same[1])  # a place for each image


def test_images_are_told_apart_as_often_as_pixels_differ():
    """One pixel: exactly by the distance. Several: at most by the sum."""
    lam, levels = 1.0, 10
    place = (torch.arange(20_000) + 0.5).double() / 20_000  # finer than levels
    for seed, pixels in itertools.product(range(4), (1, 3)):
        x, z = (random(1, 1, 1, pixels, seed=seed + k) for k in (0, 10))
        seen = [
            smoothing.split(v.expand(20_000, -1, -1, -1), place, lam=lam, levels=levels)
            for v in (x, z)
        ]
        apart = float((seen[0] != seen[1]).flatten(1).any(1).double().mean())
        most = float((x - z).abs().sum()) / (2 * lam)
        assert apart <= most + 1e-3
        assert pixels > 1 or apart == pytest.approx(most, abs=1e-3)


def shares(model, x, lam, levels, fine, classes=3):
    """How often each class is given over a fine grid of places."""
    place = ((torch.arange(fine) + 0.5) / fine).to(x)
    z = smoothing.split(x.expand(fine, -1, -1, -1), place, lam=lam, levels=levels)
    with torch.no_grad():
        return model(z).argmax(1).bincount(minlength=classes) / fine


def grid(levels, pixels=4):
    values = torch.arange(levels + 1).double() / levels
    return torch.cartesian_prod(*[values] * pixels).reshape(-1, 1, 2, pixels // 2)


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_no_image_of_the_grid_nearer_than_its_radius_has_another_class(lam):
    """Every pair of the 625 images of 2 x 2 pixels on four levels; some have one at the radius."""
    x, reached = grid(4), []
    apart = torch.cdist(x.flatten(1), x.flatten(1), p=1)
    for seed in (0, 1, 2, 5):
        found = smoothing.certify_l1(network(seed), x, lam=lam, levels=4)
        other = found.prediction[:, None] != found.prediction
        nearest = torch.where(other, apart, torch.inf).amin(1)
        assert len(found.prediction.unique()) > 1 and not bool(found.abstained.any())
        assert bool((nearest >= found.radius - 1e-9).all())
        reached.append(bool((nearest <= found.radius + 1e-9).any()))
    assert all(reached)


def test_the_shares_are_exact_and_the_radius_is_their_lead():
    lam, levels = 0.75, 8
    x = (random(6, 1, 2, 2) * levels).round() / levels
    model = network(1)
    found = smoothing.certify_l1(model, x, lam=lam, levels=levels, batch_size=5)
    for k in range(6):
        share = shares(model, x[k : k + 1], lam, levels, 12 * 50)
        first, second = share.topk(2).values
        assert int(share.argmax()) == int(found.prediction[k])
        assert float(found.radius[k]) == pytest.approx(lam * float(first - second), abs=1e-6)


def test_no_image_between_levels_nearer_than_the_radius_has_another_class():
    lam, levels, tried = 0.5, 8, 0
    for seed in range(8):
        model = network(seed)
        x = (random(1, 1, 2, 2, seed=seed) * levels).round() / levels
        found = smoothing.certify_l1(model, x, lam=lam, levels=levels)
        radius = float(found.radius)
        for k in range(20):
            step = torch.randn(x.shape, generator=seeded(k)).double()
            z = (x + 0.98 * radius * step / step.abs().sum()).clamp(0, 1)
            share = shares(model, z, lam, levels, 4000)
            tried += radius > 0
            assert int(share.argmax()) == int(found.prediction) or radius == 0
    assert tried > 100


def test_even_classes_leave_no_radius():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    model[1].weight.data = torch.tensor([[1.0], [-1.0]]).double() * 0
    found = smoothing.certify_l1(model, torch.full((1, 1, 1, 1), 0.5).double(), lam=0.5, levels=4)
    assert int(found.prediction) == 0 and float(found.radius) == 0.5  # always the first
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    model[1].weight.data = torch.tensor([[1.0], [-1.0]]).double()
    model[1].bias.data = torch.tensor([-0.5, 0.5]).double()
    found = smoothing.certify_l1(model, torch.full((1, 1, 1, 1), 0.5).double(), lam=0.5, levels=4)
    assert float(found.radius) == 0  # a centre above one half as often as below


def test_images_of_eight_bits_in_single_precision():
    x, y = data.load("mnist-5k").tensors(slice(4))
    model = models.load("mnist-standard")
    one = smoothing.certify_l1(model, x, lam=0.5)
    two = smoothing.certify_l1(model.double(), x.double(), lam=0.5)
    assert torch.equal(one.prediction, two.prediction) and one.radius.dtype == torch.float
    assert float((one.radius.double() - two.radius).abs().max()) <= 2 / 510
    assert bool((one.radius > 0).any()) and len(y) == 4


@pytest.mark.usefixtures("one_thread")
def test_training_on_the_noise_raises_the_radii_and_no_attack_breaks_them(fitted):
    lam = 1.0
    defense = training.NoiseAugmentation(partial(smoothing.noisy_l1, lam=lam, levels=16))
    learned = models.build("digits-small", seed=0)
    train = data.load("digits", "train").tensors()
    training.fit(learned, train, defense, epochs=12, lr=0.1, progress=False)
    x, y = data.load("digits", "test").tensors(slice(40))
    learned.eval()
    found = [smoothing.certify_l1(m, x, lam=lam, levels=16) for m in (learned, fitted)]
    radii = [torch.where(each.prediction == y, each.radius, 0.0) for each in found]
    assert float(radii[0].mean()) > 1.3 * float(radii[1].mean())
    eps, said = smoothing.wasserstein_radius(radii[0], x), []
    for one, c, most in zip(x.split(1), y, eps, strict=True):
        done = attacks.transport(
            learned, one, c[None], WassersteinBall(0.999 * float(most)), steps=15, restarts=0,
            generator=seeded(),
        )  # fmt: skip
        assert bool(done.cost <= most)
        share = shares(learned, done.x_adv.clamp(0, 1), lam, 16, 640, classes=10)
        said.append(int(share.argmax()) == int(c))
    assert all(told for told, most in zip(said, eps, strict=True) if most > 0)


X = torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: smoothing.certify_l1(network(0), X + 0.1, lam=0.5), "x must lie on 255 levels"),
        (lambda: smoothing.certify_l1(network(0), X + 2, lam=0.5), "x must lie in"),
        (lambda: smoothing.certify_l1(network(0), X, lam=0.0), "lam must be a finite"),
        (lambda: smoothing.certify_l1(network(0), X, lam=0.3, levels=8),
         r"2 \* lam \* levels a positive integer; got 0\.3 with 8 .*nearest is 0\.3125"),
        (lambda: smoothing.certify_l1(network(0), X, lam=0.5, levels=0), "levels must be a pos"),
        (lambda: smoothing.certify_l1(network(0), X, lam=0.5, seed=-1), "seed must be an integer"),
        (lambda: smoothing.certify_l1(network(0), X, lam=0.5, batch_size=0), "batch_size must"),
        (lambda: smoothing.certify_l1(nn.Flatten(0), X, lam=0.5), "model must return logits"),
        (lambda: smoothing.split(X, torch.tensor([0.1]), lam=0.5), "place must hold 2 numbers"),
        (lambda: smoothing.split(X, torch.tensor([0.1, 1.0]), lam=0.5), "place must hold 2 num"),
        (lambda: smoothing.split(X, 0.5, lam=0.5), "place must be a torch tensor"),
        (lambda: smoothing.noisy_l1(X - 1, 0.5), "x must lie in"),
        (lambda: smoothing.noisy_l1(X, 0.5, generator=1), "generator must be a Generator"),
        (lambda: smoothing.wasserstein_radius(torch.ones(1), X), "radius must hold a number of"),
        (lambda: smoothing.l1_radius(-torch.ones(2), X), "eps must hold a number of at least 0"),
        (lambda: smoothing.l1_radius(0.5, X), "eps must be a torch tensor"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
