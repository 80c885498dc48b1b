"""What attacks climb, from the logits by hand, and at which classes the strongest one aims."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from wotlab import WassersteinBall, attacks
from wotlab.attacks import Mirror, Objective
from wotlab.attacks._growing import Closest, Search

LOGITS = torch.tensor([[1.0, 3.0, -2.0, 0.0], [0.0, 9.0, 1.0, 2.0]], dtype=torch.double)
CLEAN = torch.tensor([[2.0, 0.0, -1.0, 5.0], [1.0, 1.0, 0.0, -3.0]], dtype=torch.double)
Y = torch.tensor([0, 1])


class Direct(nn.Module):
    """The image's pixels are its logits."""

    def forward(self, z):
        return z.flatten(1)


def as_images(logits):
    return logits[:, None, None]


def objective(loss="ce", targeted=False, clean=None):
    return Objective(Direct(), Y, targeted, loss, clean)


def by_hand(loss):
    p, q = CLEAN.softmax(1), LOGITS.softmax(1)
    own = q[[0, 1], Y]
    return {
        "ce": ((1 - own) / own).log(),
        "margin": torch.tensor([3.0 - 1.0, 2.0 - 9.0]).double(),
        "kl": (p * (p / q).log()).sum(1),
    }[loss]


@pytest.mark.parametrize("loss", ["ce", "margin", "kl"])
def test_losses_are_their_formulas_and_change_their_sign_when_targeted(loss):
    z = as_images(LOGITS)
    value, broken = objective(loss, clean=CLEAN).value(z)
    assert torch.allclose(value, by_hand(loss))
    assert broken.tolist() == [True, False]
    value, broken = objective(loss, targeted=True, clean=CLEAN).value(z)
    assert torch.allclose(value, -by_hand(loss))
    assert broken.tolist() == [False, True]
    reverse = (LOGITS.softmax(1) * (LOGITS.log_softmax(1) - CLEAN.log_softmax(1))).sum(1)
    assert not torch.allclose(by_hand("kl"), reverse, rtol=0.1)  # or the first line shows little


def test_towards_a_class_the_loss_is_its_logit_minus_the_labels():
    aims = torch.tensor([3, 2])
    towards = replace(objective("margin"), aims=aims)
    for some, rows in ((towards, [0, 1]), (towards.select(torch.tensor([1])), [1])):
        gradient, loss, _ = some.gradient(as_images(LOGITS[rows]))
        assert loss.tolist() == [[0.0 - 1.0, 1.0 - 9.0][k] for k in rows]
        slope = torch.zeros(2, 4).double()
        slope[[0, 1], aims], slope[[0, 1], Y] = 1, -1
        assert torch.equal(gradient, as_images(slope[rows]))


def test_a_selection_keeps_labels_and_clean_logits():
    for loss in ("ce", "margin", "kl"):
        some = objective(loss, clean=CLEAN).select(torch.tensor([False, True]))
        value, broken = some.value(as_images(LOGITS[1:]))
        assert torch.allclose(value, by_hand(loss)[1:]) and broken.tolist() == [False]


@pytest.mark.parametrize("loss", ["ce", "margin", "kl", "towards a class"])
def test_a_logit_that_is_no_number_is_no_answer(loss):
    """Not even that of a class which the loss does not ask for, and of one image alone."""
    aims = torch.tensor([1, 2])
    some = objective(loss, clean=CLEAN) if loss in ("ce", "margin", "kl") else objective()
    some = replace(some, aims=aims) if loss == "towards a class" else some
    nan = LOGITS.clone()
    nan[1, 3] = torch.nan
    with pytest.raises(ValueError, match="model returns NaN on an attacked image"):
        some.value(as_images(nan))
    assert some.gradient(as_images(nan))[1].isnan().tolist() == [False, True]


class Fixed(nn.Module):
    """Logits that depend on an image's mass alone, which no plan changes; a slope for the look."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, z):
        which = (5 * z.detach().mean((1, 2, 3))).round().long() - 1  # of masses 0.2, 0.4, 0.6
        return self.logits[which] + 1e-9 * z.flatten(1).sum(1, keepdim=True)


@pytest.fixture
def runs(monkeypatch):
    """The runs that `transport` asks for: their aims, whether from noise; each fails closely."""
    seen = []

    def run(search, objective, x, stepper, goal, progress):
        noise = stepper.inner.noise > 0
        seen.append((objective.y.tolist(), objective.aims, noise, stepper))
        best = Closest(x, goal, search.patience)
        wrong = objective.value(x)[1]
        best.least = torch.where(wrong, 0, torch.full_like(best.least, 1.2 * goal))
        best.broken |= wrong
        return best

    monkeypatch.setattr(Search, "run", run)
    return seen


ORDERED = torch.tensor([[9.0, 1.0, 3.0, 2.0], [0.0, 1.0, 2.0, 9.0], [5.0, 9.0, 7.0, 6.0]])
BEST, OTHERS = torch.tensor([0, 3, 1]), torch.tensor([[2, 3, 1], [2, 1, 0], [2, 3, 0]])


def transported(**options):
    x = 0.2 + 0.02 * torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[1:] += torch.tensor([0.2, 0.4])[:, None, None, None]
    y = options.pop("y", BEST)
    return attacks.transport(Fixed(ORDERED), x, y, WassersteinBall(0.1), **options)


@pytest.mark.parametrize("restarts", [0, 1, 4, 8])
def test_runs_aim_at_other_classes_and_start_from_noise_in_turn(restarts, runs):
    transported(restarts=restarts)
    (_, aims, noise, stepper), *others = runs
    assert aims is None and not noise and stepper.first.tolist() == pytest.approx(3 * [0.1])
    assert len(others) == restarts and stepper.growth == 1
    for turn, (_, aims, noise, stepper) in enumerate(others):
        assert stepper.first.tolist() == pytest.approx(3 * [0.1])
        if turn == restarts - 1:  # the last one stays at the budget
            assert aims is None and not noise and stepper.growth == 0
        elif turn % 2 == 0 and turn // 2 < 3:  # four classes: three others, likeliest first
            assert torch.equal(aims, OTHERS[:, turn // 2]) and not noise
        else:
            assert aims is None and noise


def test_targeted_runs_start_from_noise(runs):
    transported(restarts=3, targeted=True, y=OTHERS[:, 0])
    assert [(aims, noise, stepper.growth) for _, aims, noise, stepper in runs] == [
        (None, False, 1), (None, True, 1), (None, True, 1), (None, False, 0)
    ]  # fmt: skip


def test_the_images_that_still_stand_keep_their_own_aims(runs):
    y = BEST.clone()
    y[1] = 0  # misread as it is: no run for it
    transported(restarts=4, y=y)
    seen = [(labels, aims.tolist()) for labels, aims, *_ in runs if aims is not None]
    assert seen == [([0, 1], [2, 2]), ([0, 1], [3, 3])]  # of images 0 and 2


@pytest.mark.parametrize("cost, again", [(1.4, True), (1.6, False)])
def test_what_needed_far_more_than_the_budget_is_not_tried_again(cost, again, runs, monkeypatch):
    fails = Search.run

    def run(*args):
        best = fails(*args)
        best.least = torch.where(best.least > 0, cost * 0.1, 0.0)
        return best

    monkeypatch.setattr(Search, "run", run)
    transported(restarts=1)
    assert len(runs) == 1 + again


def mirrored(x, *gradients, **options):
    """Mirror ascent's rule after a step along each of these gradients."""
    rule = Mirror(WassersteinBall(0.2), **options)
    rule.start(x)
    for t, gradient in enumerate(gradients):
        nothing = x.new_zeros(len(x))
        rule.step(x, gradient, nothing, nothing.bool(), t)
    return rule


def test_mirror_ascent_adds_up_its_gradients_with_momentum():
    generator = torch.Generator().manual_seed(0)
    x, *g = (torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.double) for _ in range(4))
    n = [v / v.amax((1, 2, 3), keepdim=True) for v in g]
    for size, m in ((1.0, 0.0), (0.5, 0.75)):
        velocity = [n[0], m * n[0] + n[1], m * m * n[0] + m * n[1] + n[2]]
        found = mirrored(x, *g, step_size=size, momentum=m).G
        assert torch.allclose(found, size * sum(velocity))
        once, twice, third = (size * v for v in velocity)
        found = mirrored(x, *g, step_size=size, momentum=m, forget=0.1).G
        assert torch.allclose(found, 0.81 * once + 0.9 * twice + third)


def test_dropped_images_leave_mirror_ascent_as_if_they_had_never_been():
    generator = torch.Generator().manual_seed(0)
    x, first, second = torch.rand(3, 3, 1, 4, 5, generator=generator, dtype=torch.double)
    keep, nothing = torch.tensor([True, False, True]), x.new_zeros(3)
    rule = mirrored(x, first, step_size=1.0, momentum=0.75)
    rule = rule.select(keep)
    z, cost = rule.step(x[keep], second[keep], nothing[:2], nothing[:2].bool(), 1)
    alone = mirrored(x[keep], first[keep], step_size=1.0, momentum=0.75)
    z_, cost_ = alone.step(x[keep], second[keep], nothing[:2], nothing[:2].bool(), 1)
    assert torch.allclose(z, z_) and torch.allclose(cost, cost_)


def test_mirror_ascent_starts_from_as_much_noise_as_it_is_told():
    """Of its own generator, in units of the potential; without noise nothing is drawn."""
    x = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    draw = torch.Generator().manual_seed(1)
    before = draw.get_state()
    assert (mirrored(x, step_size=1.0, generator=draw).G == 0).all()
    assert torch.equal(draw.get_state(), before)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    found = mirrored(x, step_size=1.0, noise=3.0, generator=draw).G
    assert torch.allclose(found, 3 * noise)
