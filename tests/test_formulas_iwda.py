"""IWDA from scale to scale: what a scale begins with, and what its players are asked to do."""

import sys

import torch
from torch import nn

from wotlab import InternalWassersteinBall, attacks
from wotlab.attacks._pyramid import changed, resize, scales

ANY = InternalWassersteinBall(99.0)
module = sys.modules["wotlab.attacks._iwda"]


def scene(count=3, side=16):
    """Images, and a linear network that is sure of them."""
    draw = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(count, 1, side, side, generator=draw)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(0.1 * torch.randn(2, side * side, generator=draw))
        model[1].bias.copy_(torch.tensor([50.0, 0.0]))
    return model, x, torch.zeros(count, dtype=torch.long)


def test_a_scale_begins_with_the_change_that_the_one_below_drew_last(monkeypatch):
    """At first there is none; a new network adds none; noise is fresh at each step."""
    seen = []

    def spy(net, x, coarse, generator):
        made = changed(net, x, coarse, generator)
        seen.append((x.clone(), coarse.clone(), made.detach().clone()))
        return made

    monkeypatch.setattr(module, "changed", spy)
    model, x, y = scene()
    attacks.iwda(
        model, x, y, ANY, steps=3, critic_steps=1, samples=2, lr=0.05, tau=1.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert scales(16, 16, 3) == [(8, 8), (16, 16)]
    assert [tuple(coarse.shape) for _, coarse, _ in seen] == [(2, 3, 1, 8, 8)] * 3 + [
        (2, 3, 1, 16, 16)
    ] * 4  # three steps at each scale, and a last look
    for small, coarse, _ in seen[:3]:
        assert (coarse == 0).all() and torch.equal(small, resize(x, (8, 8)))
    first, last = seen[0][2], seen[2][2]
    assert (first == 0).all() and last.abs().max() > 1e-3
    for small, coarse, _ in seen[3:]:
        assert torch.equal(coarse, resize(last, (16, 16))) and torch.equal(small, x)
    assert torch.equal(seen[3][2], seen[3][1])  # the new network's last layer is zero
    assert not torch.equal(seen[4][2], seen[3][2])


def test_images_that_leave_take_their_changes_with_them(monkeypatch):
    """One of three breaks at the end of the coarse scale; the others go on with their own."""
    kept = []

    def spy(net, x, coarse, generator):
        made = changed(net, x, coarse, generator)
        kept.append((x.clone(), coarse.clone(), made.detach().clone()))
        return made

    monkeypatch.setattr(module, "changed", spy)
    model, x, y = scene()

    class Loose(nn.Module):
        """Lets the second image go as soon as it changes at all."""

        def forward(self, z):
            logits = model(z)
            near = (z[:, None] - x).flatten(2).norm(dim=2)
            moved = (near.argmin(1) == 1) & (near.amin(1) > 1e-3)
            return torch.where(moved[:, None], -logits, logits)

    done = attacks.iwda(
        Loose(), x, y, ANY, steps=2, critic_steps=1, lr=0.005, tau=1.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert done.success.tolist() == [False, True, False]
    assert done.steps.tolist() == [4, 1, 4]
    assert [len(small) for small, _, _ in kept] == [3, 3, 2, 2, 2]
    last = kept[1][2]
    assert torch.equal(kept[2][1], resize(last[:, [0, 2]], (16, 16)))
    assert torch.equal(kept[2][0], x[[0, 2]])


def test_what_is_misread_as_it_is_goes_on_only_if_told_to():
    model, x, y = scene()
    for stop in (True, False):
        done = attacks.iwda(
            model, x, 1 - y, ANY, steps=2, critic_steps=1, lr=0.05, tau=1.0, early_stop=stop,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        assert done.misread.all() and done.success.all()
        assert torch.equal(done.x_adv, x) is stop
