"""Langevin's chain is the chain of `wotlab.gibbs` for the law of the cross-entropy."""

import pytest
import torch
from known import Linear
from torch import nn
from torch.nn import functional as F

from wotlab import LinfBall, attacks
from wotlab.gibbs import Chain, sample


class Seen(nn.Module):
    """Logits, linear in the image; remembers the images that it has seen."""

    def __init__(self, classes=4, pixels=12, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(pixels, classes).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, pixels, generator=generator))
            self.layer.bias.zero_()
        self.images = []

    def forward(self, z):
        self.images.append(z.detach().clone())
        return self.layer(z.flatten(1))


def grey(count=3):
    return torch.full((count, 1, 3, 4), 0.5, dtype=torch.double)


@pytest.mark.parametrize("targeted", [False, True])
def test_without_noise_the_sign_chain_ends_in_the_corner(targeted):
    x = torch.rand(3, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    w = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    chain, ball = Chain("sign", sigma=1e-9, eta=0.1), LinfBall(0.2)
    done = attacks.langevin(
        Linear(w, lead=20.0), x, torch.full((3,), int(targeted)), ball, targeted=targeted,
        steps=4, chain=chain, random_start=False,
    )  # fmt: skip
    assert torch.allclose(done.x_adv, (x + 0.2 * w.sign()).clamp(0, 1), atol=1e-7)
    assert torch.allclose(done.cost, ball.distance(x, done.x_adv))


@pytest.mark.parametrize("targeted", [False, True])
def test_without_noise_a_step_is_along_the_gradient_of_the_cross_entropy(targeted):
    x, model, sigma, rate = grey(), Seen(), 1e-7, 0.02
    y = model(x).argsort(1)[:, 0 if targeted else -1]
    chain = Chain("projected", lam=2 * rate / sigma**2, sigma=sigma)
    z = attacks.langevin(
        model, x, y, LinfBall(0.5), targeted=targeted, steps=1, chain=chain, random_start=False
    ).x_adv
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    step = (-rate if targeted else rate) * gradient
    assert float(step.abs().max()) > 1e-3
    assert torch.allclose(z - x, step, atol=20 * sigma)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rule", ["sign", "projected", "reflected", "mala"])
def test_it_goes_where_the_chain_of_the_gibbs_law_goes(rule, targeted, monkeypatch):
    steps, gone, accept = 30, [], Chain.accept

    def spy(*given):
        gone.append(accept(*given))
        return gone[-1]

    monkeypatch.setattr(Chain, "accept", spy)
    x, ball = grey(), LinfBall(0.3)
    chain = Chain(rule, lam=8.0, sigma=0.1, eta=0.05)
    ours, theirs = Seen(), Seen()
    y = ours(x).argmin(1)
    attacks.langevin(
        ours, x, y, ball, targeted=targeted, steps=steps, chain=chain, random_start=False,
        early_stop=False, generator=torch.Generator().manual_seed(5),
    )  # fmt: skip

    def law(z):
        return (-1 if targeted else 1) * F.cross_entropy(theirs(z), y, reduction="none")

    seed = torch.Generator().manual_seed(5)
    sample(law, x, *ball.walls(x), chain, steps, generator=seed)
    assert torch.equal(ours.images[2], theirs.images[0])  # after a look at what they are given
    assert len(theirs.images) >= steps
    for mine, other in zip(ours.images[2:], theirs.images[:steps], strict=False):
        assert torch.allclose(mine, other, atol=1e-10)
    if rule == "mala":  # both answers were given, or the lines above show little
        assert {bool(b) for b in torch.cat(gone)} == {True, False}


def test_a_random_start_is_uniform_between_the_walls():
    x = torch.full((1, 1, 40, 40), 0.85, dtype=torch.double)
    model, ball = Seen(pixels=1600), LinfBall(0.2)
    attacks.langevin(
        model, x, model(x).argmax(1), ball, steps=2, early_stop=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    start = next(z for z in model.images if not torch.equal(z, x))
    assert 0.65 <= float(start.min()) < 0.66 and 0.99 < float(start.max()) <= 1
    assert float(start.mean()) == pytest.approx(0.825, abs=0.01)
    assert float(start.std()) == pytest.approx(0.35 / 12**0.5, rel=0.05)


def test_its_default_is_the_sign_chain_with_half_of_eps():
    x, ball = grey(1), LinfBall(0.2)
    run = lambda **options: attacks.langevin(  # noqa: E731
        Linear(torch.ones(1, 3, 4).double(), lead=20.0), x, torch.zeros(1, dtype=torch.long), ball,
        steps=3, generator=torch.Generator().manual_seed(0), **options,
    ).x_adv  # fmt: skip
    assert torch.equal(run(), run(chain=Chain("sign", sigma=0.1, eta=0.1)))
    assert not torch.equal(run(), run(random_start=False))


def test_images_that_are_dropped_leave_the_others_their_own_boxes():
    x = torch.rand(6, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    w = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([1, 0, 1, 1, 0, 0])  # of class 0 all: half are misread as they are
    chain = Chain("sign", sigma=1e-9, eta=0.1)
    done = attacks.langevin(
        Linear(w, lead=20.0), x, y, LinfBall(0.2), steps=4, chain=chain, random_start=False
    )
    corner = (x + 0.2 * w.sign()).clamp(0, 1)
    ends = torch.where((y == 1)[:, None, None, None], x, corner)
    assert torch.allclose(done.x_adv, ends, atol=1e-7)
    assert torch.equal(done.success, y == 1)
