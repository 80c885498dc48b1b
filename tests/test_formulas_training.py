"""Trainings by hand: who looks at what and when, their own attacks, what checkpoints hold."""

import os
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from wotlab import InternalWassersteinBall, LinfBall, PatchCost, WassersteinBall, attacks, iwd
from wotlab._base.settings import over_epochs
from wotlab.gibbs import Chain
from wotlab.training import (
    GOT,
    IWDD,
    PGDAT,
    AdversarialTransport,
    FreeAT,
    JointTransport,
    Standard,
    WassersteinAT,
    fit,
)
from wotlab.training import (
    _checkpoints as checkpoints,
)
from wotlab.training._got import linear as linear_potential
from wotlab.training._inputs import Places


def images(count, seed=0):
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % 2


class Fixed(nn.Module):
    """Logits (0, sum of x), whatever is learned; knows whether it was asked in eval mode."""

    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.zeros(1)), []

    def forward(self, x):
        if not self.training:
            self.asked.append(x.detach().clone())
        score = x.sum((1, 2, 3)) + 0 * self.weight
        return torch.stack([0 * score, score], 1)


@pytest.mark.parametrize(("count", "looks"), [(20, 1), (21, 2), (45, 3)])
def test_every_twentieth_minibatch_is_looked_at_in_eval_mode(count, looks):
    """From the first on; `clean_loss` is the mean over just those images."""
    x, y = images(count)
    model = Fixed()
    done = fit(model, (x, y), Standard(), epochs=1, batch_size=1, lr=0.1, progress=False)
    seen = [z for z in model.asked if len(z) == 1]
    seen = seen[-looks:]  # the first minibatch is also asked for its number of classes
    losses = [
        float(nn.functional.cross_entropy(torch.tensor([[0.0, float(z.sum())]]), y[at][None]))
        for z in seen
        for at in [int((x - z).abs().amax((1, 2, 3)).argmin())]
    ]
    assert done.history[0]["clean_loss"] == pytest.approx(sum(losses) / looks, rel=1e-5)
    assert len({float(z.sum()) for z in seen}) == looks
    assert len(model.asked) - looks <= 2


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    """Each counts once, also those of a smaller last minibatch."""
    x, y = images(21)
    done = fit(Fixed(), (x, y), Standard(), epochs=2, batch_size=8, lr=0.1, progress=False)
    mean = nn.functional.cross_entropy(Fixed()(x), y).item()
    assert [entry["loss"] for entry in done.history] == pytest.approx([mean, mean], rel=1e-5)


def linear(*shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 2)).eval()
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        model[1].weight.copy_(torch.randn(model[1].weight.shape, generator=draw))
        model[1].bias.zero_()
    return model


OWN = {
    "WassersteinAT": (
        lambda: WassersteinAT(WassersteinBall(0.3)),
        partial(attacks.mirror_ascent, steps=6, step_size=4.0),
    ),
    "IWDD": (lambda: IWDD(InternalWassersteinBall(2.0)), partial(attacks.pgd, steps=10)),
}


@pytest.mark.parametrize("name", OWN)
def test_their_own_attacks_go_on_after_an_image_is_broken(name):
    make, written_out = OWN[name]
    defense, (x, _) = make(), images(4)
    model = linear(4, 4)
    y = model(x).argmax(1)
    made = defense.attacked(model, x, y)
    whole = written_out(model, x, y, defense.ball, early_stop=False)
    short = written_out(model, x, y, defense.ball)
    assert whole.success.any()
    assert torch.equal(made, whole.x_adv) and not torch.equal(made, short.x_adv)


def test_schedules_are_compared_over_a_hundred_epochs():
    """In quarters: what differs there alone is another schedule."""
    base = over_epochs(lambda epoch: 1.0)
    assert over_epochs(lambda epoch: 1) == base
    for differs in (lambda e: e == 0, lambda e: e > 99.9, lambda e: e == 0.25, lambda e: e == 60.5):
        assert over_epochs(lambda epoch, differs=differs: 2.0 if differs(epoch) else 1.0) != base
    assert over_epochs(lambda epoch: 2.0 if epoch > 100 else 1.0) == base
    assert over_epochs(lambda epoch: 2.0 if 4 * epoch % 1 else 1.0) == base


def test_an_error_before_anything_is_written_is_the_one_that_is_raised(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="read-only"):
        checkpoints.save(tmp_path / "c.pt", {}, {})


def test_a_critic_climbs():
    """Its gap grows from that of random weights to the distance of two constant images."""
    x = torch.full((3, 1, 4, 4), 0.3)
    z = x + torch.tensor([0.0, 0.1, 0.3])[:, None, None, None]
    gaps = [
        iwd.critic(x, z, PatchCost(), steps=steps, lr=1e-2,
                        generator=torch.Generator().manual_seed(0))
        for steps in (1, 100)
    ]  # fmt: skip
    assert gaps[1][0] == gaps[0][0] == 0  # the same image: nothing to tell apart
    assert (gaps[1][1:] > gaps[0][1:]).all() and (gaps[1][1:] > 0).all()
    known = iwd.exact(x, z)
    assert torch.allclose(gaps[1][1:], known[1:], rtol=0.5)


@pytest.mark.parametrize("together", [1, 4])
def test_a_sample_climbs_its_own_loss_however_many_there_are(together):
    """A chain along the gradient itself: lam sigma^2 / 2 times that of one image's loss."""
    x, y = images(4)
    model, ball = linear(4, 4), LinfBall(0.3)
    chain = Chain("projected", lam=0.02 / 1e-8, sigma=1e-4)
    defense = AdversarialTransport(ball, chain=chain)
    defense.prepare(4)
    for at in torch.arange(4).split(together):
        defense.loss(model, x[at], y[at], at)
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
    assert slope.abs().max() > 0.5
    expected = ball.project(x, x + 0.01 * slope)
    assert torch.allclose(defense.recall(x, torch.arange(4)), expected, atol=1e-3)


def test_features_are_compared_from_the_clean_image_to_the_attacked_one():
    """0.9 CE + 0.1 KL(p | q), p on the clean, q on the attacked images: Subramanyam (2022)."""
    x, y = images(4)
    model = linear(4, 4)
    features = model[1]

    def elsewhere(model, x, y, ball):
        return attacks.AttackResult(x / 9, *[None] * 9)

    defense = WassersteinAT(WassersteinBall(0.3), attack=elsewhere, features=features)
    loss = defense.loss(model, x, y, torch.arange(4))
    z = x / 9
    p, q = model(x).softmax(1), model(z).softmax(1)
    forth, back = ((a * (a / b).log()).sum(1).mean() for a, b in ((p, q), (q, p)))
    ce = nn.functional.cross_entropy(model(z), y)
    assert (forth - back).abs() > 1e-3
    assert torch.allclose(loss, 0.9 * ce + 0.1 * forth, atol=2e-6)


def test_free_training_stores_what_its_last_gradient_asks_for():
    """A checkpoint after the backward pass holds the perturbation that comes next."""
    x, y = images(4)
    model, ball = linear(4, 4), LinfBall(0.1)
    defense = FreeAT(ball, repeats=2)
    defense.loss(model, x, y, torch.arange(4)).backward()
    slope = defense.last.grad.clone()
    stored = defense.state_dict()
    assert torch.allclose(stored["change"], 0.1 * slope.sign())
    other = FreeAT(ball, repeats=2)
    other.load_state_dict(stored)
    straight, resumed = (d.loss(model, x, y, torch.arange(4)) for d in (defense, other))
    assert torch.equal(straight, resumed)
    z = ball.project(x, x + 0.1 * slope.sign())
    assert torch.allclose(resumed, nn.functional.cross_entropy(model(z), y))


def test_a_refused_checkpoint_says_what_was_then_and_what_is_now(tmp_path):
    x, y = images(8)
    options = {"epochs": 1, "lr": 0.1, "progress": False, "checkpoint": tmp_path / "c.pt"}
    fit(linear(4, 4), (x, y), Standard(), batch_size=4, **options)
    with pytest.raises(ValueError, match=r"\(then 4, now 2\)"):
        fit(linear(4, 4), (x, y), Standard(), batch_size=2, **options)


def test_one_class_with_the_same_share_on_both_sides_does_not_excuse_the_others():
    term = JointTransport("entropic", match_labels=True)
    u = (torch.rand(4, 5), torch.rand(4, 3))
    left, right = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    with pytest.raises(ValueError, match="class 0 has 50% of the clean batch and 25%"):
        term(u, u, (left, right))
    assert term(u, u, (left, left.flip(0))).isfinite()


@pytest.mark.parametrize(("save_every", "saves"), [(300.0, 1), (0.0001, 5)])
def test_long_epochs_are_saved_on_the_way(save_every, saves, tmp_path, monkeypatch):
    """After each of four minibatches that is due, and at the end; never without a file."""
    made = []
    monkeypatch.setattr(checkpoints, "save", lambda *given: (made.append(1), time.sleep(0.001)))

    def run(**options):
        slow = linear(4, 4)
        slow.register_forward_hook(lambda *given: time.sleep(0.002))
        fit(slow, images(8), Standard(), epochs=1, batch_size=2, lr=0.1, progress=False, **options)

    run(checkpoint=tmp_path / "c.pt", save_every=save_every)
    assert len(made) == saves
    run()
    assert len(made) == saves


def test_the_order_of_an_epoch_is_that_of_a_plain_shuffled_loader():
    loader = DataLoader(
        torch.arange(23), 5, shuffle=True, generator=torch.Generator().manual_seed(7)
    )
    assert list(Places(23, 5, 7)) == [part.tolist() for part in loader]


def test_a_checkpoint_is_written_beside_itself_under_its_own_name(tmp_path, monkeypatch):
    """Two trainings may keep theirs in one folder."""
    made, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (made.append((a, b)), real(a, b)))
    for name in ("a.pt", "b.pt"):
        checkpoints.save(tmp_path / name, {}, {"run": {}})
    assert made == [(tmp_path / f"{n}.part", tmp_path / n) for n in ("a.pt", "b.pt")]


def test_the_potential_of_got_climbs_the_term_between_clean_and_attacked():
    """Adam's first step is its rate along the sign of the gradient, from phi = 0."""
    draw = torch.Generator().manual_seed(0)
    u, v = ((torch.randn(6, 4, generator=draw), torch.randn(6, 3, generator=draw)) for _ in "uv")
    y, defense = torch.arange(6) % 3, GOT(PGDAT(LinfBall(0.1)), lr=0.01)
    defense.climb(u, v, y)
    zero = linear_potential(4)
    (slope,) = torch.autograd.grad(defense.term(u, v, (y, y), zero), [zero.weight])
    assert slope.abs().min() > 1e-4
    assert torch.allclose(defense.phi.weight, 0.01 * slope.sign(), rtol=1e-3)
