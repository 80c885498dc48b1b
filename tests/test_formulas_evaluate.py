"""Measures by hand: modes, Wilson's roots, which budgets are asked, how many images are tried."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from wotlab import InternalWassersteinBall, L2Ball, LinfBall, WassersteinBall, attacks, evaluate

PERCENT_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def test_the_interval_ends_where_the_share_is_as_far_off_as_its_deviation_allows():
    """Wilson: p with |share - p| = z sqrt(p (1 - p) / n), on each side of the share."""
    for count, total in ((0, 7), (3, 7), (150, 200), (200, 200)):
        share = evaluate.share(count, total)
        assert (share.count, share.total, share.value) == (count, total, count / total)
        for end in (share.low, share.high):
            if 0 < end < 1:
                off = PERCENT_95 * math.sqrt(end * (1 - end) / total)
                assert abs(share.value - end) == pytest.approx(off, rel=1e-9)
        assert (share.low == 0) is (count == 0) and (share.high == 1) is (count == total)
        assert share.low <= share.value <= share.high and share.low < share.high
    assert evaluate.share(5, 10).low == pytest.approx(0.2365931, abs=1e-7)
    assert evaluate.share(5, 10).high == pytest.approx(0.7634069, abs=1e-7)


def blobs(count=40):
    """Images of a bright or a dark corner, and which it is."""
    y = torch.arange(count) % 2
    x = 0.3 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] += 0.7 * y[:, None]
    return x, y


class Moody(nn.Module):
    """Reads images rightly in eval mode; in train mode drop-out and statistics mislead it."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(1, affine=False), nn.Dropout(0.9)
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        corner = self.drop(self.norm(x))[:, 0, 0, 0]
        return torch.stack([0.5 - corner, corner - 0.5], 1)


@pytest.mark.parametrize("training", [True, False])
def test_shares_are_those_of_eval_mode_and_leave_the_statistics(training):
    x, y = blobs()
    model = Moody().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    share = evaluate.accuracy(model, (x, y), batch_size=15)
    assert share.count == 40 and model.calls == [15, 15, 10]
    model.calls.clear()
    assert evaluate.are_right(model, x, 1 - y, batch_size=15).tolist() == [False] * 40
    assert model.calls == [15, 15, 10]
    assert all(part.training is training for part in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_accuracy_asks_for_no_gradient():
    class Watched(Moody):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return super().forward(x)

    x, y = blobs()
    assert evaluate.accuracy(Watched(), (x, y)).count == 40
    assert evaluate.are_right(Watched(), x, y).all()


class Never:
    """An attack that must not be asked."""

    def __call__(self, *args):
        raise AssertionError("there is nothing to attack")


@pytest.mark.parametrize("bad", [[-0.1], [0.1, float("nan")], [0.2, float("inf")], ["0.1"], [None]])
def test_budgets_are_checked_before_anything_is_attacked(bad):
    """All images are misread, so that no attack would look at the budget."""
    x, y = blobs()
    with pytest.raises(ValueError, match="eps must be a finite number at least 0"):
        evaluate.accuracy_curve(Moody(), x, 1 - y, Never(), LinfBall(0.1), bad)
    curve = evaluate.accuracy_curve(Moody(), x, 1 - y, Never(), LinfBall(0.1), [0.2, 0.0])
    assert [each.count for each in curve.shares] == [0, 0] and curve.eps == (0.0, 0.2)


def test_each_budget_is_tried_on_what_the_last_one_left():
    x, y = blobs(8)
    y[0] = 1 - y[0]  # misread from the start
    asked = []

    def attack(model, x, y, ball):
        asked.append((ball.eps, x.clone(), y.clone()))
        done = attacks.fgsm(model, x, y, replace(ball, eps=0.0))
        return replace(done, success=torch.arange(len(x)) < 3)

    curve = evaluate.accuracy_curve(Moody().eval(), x, y, attack, L2Ball(9.0), [0.3, 0.1, 0.2])
    assert [eps for eps, *_ in asked] == [0.1, 0.2, 0.3]
    assert torch.equal(asked[0][1], x[1:]) and torch.equal(asked[1][1], x[4:])
    assert torch.equal(asked[2][1], x[7:]) and torch.equal(asked[2][2], y[7:])
    assert [each.count for each in curve.shares] == [4, 1, 0]
    assert curve.left[0].tolist() == [False] * 4 + [True] * 4
    assert curve.left[1].tolist() == [False] * 7 + [True]
    assert str(curve).split("\n")[1].startswith("eps 0.2: 12.5% (")


class Recorder(nn.Module):
    """A network that breaks nowhere, and keeps what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        score = 9 + 1e-3 * x.mean((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize(
    "ball",
    [LinfBall(0.1), L2Ball(0.4), WassersteinBall(0.1), InternalWassersteinBall(0.2)],
    ids=lambda ball: type(ball).__name__,
)
def test_twenty_random_images_are_tried_for_each(ball):
    """All in the ball, all different, each pixel pushed up or down; the generator decides."""
    x = 0.3 + 0.4 * torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(2, dtype=torch.long)
    tried = []

    def attack(model, x, y, ball):
        done = attacks.fgsm(model, x, y, replace(ball, eps=0.0))
        model.seen.clear()
        return done

    for seed in (0, 0, 1):
        model = Recorder()
        generator = torch.Generator().manual_seed(seed)
        evaluate.sanity(model, x, y, attack, ball, generator=generator)
        tried.append(torch.stack(model.seen))
    assert len(tried[0]) == 20
    assert len(tried[0].unique(dim=0)) > 10  # of a small internal ball some come twice
    assert all(ball.contains(x, z).all() for z in tried[0])
    assert torch.equal(tried[0], tried[1]) and not torch.equal(tried[0], tried[2])
    if isinstance(ball, LinfBall):
        moved = tried[0] - x
        assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), atol=1e-6)
        assert 0.4 < (moved > 0).double().mean() < 0.6
