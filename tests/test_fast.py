"""Fast and free adversarial training: two steps of each, against the papers' loops written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wotlab import InternalWassersteinBall, L2Ball, LinfBall, WassersteinBall, models
from wotlab.training import FastAT, FreeAT, fit
from wotlab.training._inputs import Places

BALL = LinfBall(0.15)


class Valley(nn.Module):
    """Logits 0 and sum of (z - floor)^2: the gradient's sign changes within the ball."""

    def __init__(self, floor):
        super().__init__()
        self.floor = nn.Parameter(floor)

    def forward(self, z):
        rise = (z - self.floor).square().flatten(1).sum(1, keepdim=True)
        return torch.cat([0 * rise, rise], 1)


def fast_by_hand(x, floor, eps, step, seed):
    """Label 0 of `Valley`: the cross-entropy climbs away from the floor."""
    draw = torch.Generator().manual_seed(seed)
    delta = eps * (2 * torch.rand(x.shape, generator=draw, dtype=x.dtype) - 1)
    start = x + delta  # as printed: not clamped to [0, 1] before the gradient
    moved = (start - x + step * eps * (start - floor).sign()).clamp(-eps, eps)
    return (x + moved).clamp(0, 1)


@pytest.mark.parametrize("step", [None, 0.4, 1.25])
def test_fast_is_its_algorithm(step):
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 5, 5, generator=draw, dtype=torch.double).round(decimals=1)
    floor = x + 0.1 * (torch.rand(x.shape, generator=draw, dtype=torch.double) - 0.5)
    model, y = Valley(floor), torch.zeros(6, dtype=torch.long)
    defense = FastAT(LinfBall(0.1), **({} if step is None else {"step": step}))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        z = defense.attacked(model, x, y)
        torch.manual_seed(3)
        loss = defense.loss(model, x, y, torch.arange(6))
    expected = fast_by_hand(x, floor, 0.1, step or 1.25, seed=3)
    assert torch.allclose(z, expected, atol=1e-12)
    # it learns from that image even where the start or the clean image has the larger loss
    assert torch.allclose(loss, F.cross_entropy(model(expected), y))
    # a neighbour is told apart: the gradient at the clean image, no random start, another step
    at_clean = (x + (expected - x).abs() * (x - floor).sign()).clamp(0, 1)
    still = x + (1.25 if step is None else step) * 0.1 * (x - floor).sign()
    for wrong in (at_clean, still.clamp(x - 0.1, x + 0.1).clamp(0, 1),
                  fast_by_hand(x, floor, 0.1, 1.0, seed=3)):  # fmt: skip
        assert (z - wrong).abs().max() > 0.005


def test_fast_runs_in_eval_mode_and_leaves_no_gradient(digits):
    x, y = digits
    model = nn.Sequential(models.build("digits-small", seed=0), nn.BatchNorm1d(10), nn.Dropout(0.5))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    modes = []
    hook = model[1].register_forward_hook(lambda m, given, out: modes.append(m.training))
    FastAT(BALL).attacked(model, x, y)
    hook.remove()
    assert not any(modes) and all(part.training for part in model.modules())
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(w.grad is None for w in model.parameters())


def test_the_start_is_not_clamped_before_the_gradient():
    """At black pixels and a floor below black: starts beyond the floor climb on below black."""
    x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    model = Valley(torch.full_like(x, -0.02))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = FastAT(LinfBall(0.1)).attacked(model, x, y)
    assert torch.allclose(z, torch.where(z > 0.05, 0.1, 0.0))
    assert float((z == 0).double().mean()) == pytest.approx(0.4, abs=0.1)  # (0.1 - 0.02) / 0.2


def test_free_is_its_algorithm(digits):
    """Against the loop of the paper, written out."""
    x, y = digits[0][:20], digits[1][:20]
    ours, theirs = (models.build("digits-small", seed=0).double() for _ in range(2))
    x, defense = x.double(), FreeAT(BALL, repeats=3)
    sgd = lambda m: torch.optim.SGD(m.parameters(), 0.1)  # noqa: E731
    fit(ours, (x, y), defense, epochs=2, batch_size=20, optimizer=sgd, progress=False)
    step, delta = sgd(theirs), torch.zeros_like(x)
    for epoch in range(2):
        order = Places(20, 20, epoch).parts[0]
        a, b = x[order], y[order]
        for _ in range(3):
            z = (a + delta).clamp(0, 1).requires_grad_()
            step.zero_grad()
            F.cross_entropy(theirs(z), b).backward()
            delta = ((z.detach() - a) + BALL.eps * z.grad.sign()).clamp(-BALL.eps, BALL.eps)
            step.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-12)


def test_free_leaves_alone_what_the_network_does_not_read():
    """A gradient of 0 has the sign 0."""
    x, y = torch.full((2, 1, 4, 4), 0.5, dtype=torch.double), torch.zeros(2, dtype=torch.long)
    read = torch.ones_like(x)
    read[..., :2] = 0
    defense, valley = FreeAT(BALL), Valley(0.0 * x)
    for times in (1, 2):  # up the valley from 0.5: eps further, and no more than eps
        defense.loss(lambda z: valley(z * read), x, y, torch.arange(2)).backward()
        assert torch.equal(defense.state_dict()["change"], BALL.eps * read), times


@pytest.mark.parametrize(
    ("make", "named"),
    [
        *((lambda m=m, b=b: m(b), "ball must be a LinfBall")
          for m in (FastAT, FreeAT)
          for b in (L2Ball(1.0), WassersteinBall(0.1), InternalWassersteinBall(0.1))),
        (lambda: FreeAT(BALL, repeats=0), "repeats"),
        (lambda: FastAT(BALL, step=0.0), "step"),
    ],
)  # fmt: skip
def test_bad_input(make, named):
    with pytest.raises(ValueError, match=named):
        make()
