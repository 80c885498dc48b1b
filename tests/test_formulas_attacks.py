"""What attacks share: which costs they report, whose images they judge, who leaves the batch."""

import time
from functools import partial

import pytest
import torch
from torch import nn

from wotlab import L2Ball, LinfBall, WassersteinBall, attacks
from wotlab.attacks._result import Last
from wotlab.transformations import Transformations


class Leaning(nn.Module):
    """Class 1 where the left half is brighter than the right, by `lead`."""

    def __init__(self, lead=0.0):
        super().__init__()
        self.lead = lead

    def forward(self, x):
        score = 5 * (x[..., :2].mean((1, 2, 3)) - x[..., 2:].mean((1, 2, 3)) - self.lead)
        return torch.stack([-score, score], 1)


def halves(*leads):
    """Images whose left half is brighter than the right one by these differences."""
    x = torch.full((len(leads), 1, 4, 4), 0.5)
    x[..., :2] += torch.tensor(leads)[:, None, None, None] / 2
    x[..., 2:] -= torch.tensor(leads)[:, None, None, None] / 2
    return x, (torch.tensor(leads) > 0).long()


@pytest.mark.parametrize(
    "attack", [attacks.mirror_ascent, attacks.transport, attacks.frank_wolfe, attacks.pgd]
)
def test_attacks_by_plans_report_the_plans_price_and_solve_no_transport(attack, monkeypatch):
    def solved(*args):
        raise AssertionError("an exact distance was asked for")

    monkeypatch.setattr(WassersteinBall, "spent", solved)
    x, y = halves(0.1, 0.3, -0.1)
    done = attack(Leaning(), x, y, WassersteinBall(0.3), steps=5)
    assert (done.cost <= 0.3 * (1 + 1e-5)).all() and (done.cost > 0.01).all()
    with pytest.raises(AssertionError, match="exact distance"):
        attacks.pgd(Leaning(), x, y, WassersteinBall(0.3), steps=2, repaired=False)


def test_transferred_images_are_judged_by_the_model_that_is_asked():
    """The source reads all, and breaks where the lead is small; the model sees another edge."""
    x, y = halves(0.1, 0.2, 0.4, -0.2)
    source, model = Leaning(), Leaning(lead=-0.1)
    y_model = model(x).argmax(1)
    assert y_model.tolist() == [1, 1, 1, 0] == y.tolist()
    attack = partial(attacks.transfer, source=source, steps=1, step_size=0.1)
    done = attack(model, x, y, LinfBall(0.1))
    # on the source 0.1 of each pixel takes 0.2 from the lead: -0.1, 0, 0.2, -0.4 or 0 are left
    moved = attacks.pgd(source, x, y, LinfBall(0.1), steps=1, step_size=0.1)
    assert torch.equal(done.x_adv, moved.x_adv) and torch.equal(done.cost, moved.cost)
    assert torch.equal(done.steps, moved.steps)
    assert torch.equal(done.success, model(moved.x_adv).argmax(1) != y)
    assert done.misread.tolist() == [False] * 4
    assert 0 < done.success.sum() < 4
    wrong = y.clone()
    wrong[2] = 0  # the model misreads it from the start: broken as it is
    done = attack(model, x, wrong, LinfBall(0.001))
    assert done.misread.tolist() == [False, False, True, False]
    assert done.success.tolist() == [False, False, True, False]


def test_an_image_that_only_the_model_misreads_is_broken_though_its_attack_is_not():
    """misread counts even where the image made for the source would be read rightly."""
    x, y = halves(0.1, 0.4)
    model = Leaning(lead=0.2)  # misreads the first
    done = attacks.transfer(
        model, x, y, LinfBall(0.2), source=Leaning(lead=-9.0), steps=1, step_size=0.2
    )
    assert done.misread.tolist() == [True, False]
    assert bool(done.success[0])


def test_a_model_that_cannot_judge_transferred_images_is_refused():
    """Though the source takes them: it has more classes, and finite weights."""
    x, y = halves(0.1, 0.2)
    source = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.1, the model's classes"):
        attacks.transfer(Leaning(), x, 2 * y, LinfBall(0.1), source=source)
    with pytest.raises(ValueError, match="model returns NaN"):
        attacks.transfer(Leaning(torch.nan), x, y, LinfBall(0.1), source=Leaning())


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_bent_images_go_on_as_if_alone_when_others_leave(optimizer):
    """Those that break early leave the batch; the flows of the others do not notice."""
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(6, 1, 6, 6, generator=draw)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 36, generator=draw))
        y = model(x).argmax(1)
    attack = partial(attacks.stadv, optimizer=optimizer, steps=12, tau=0.01)
    ball = L2Ball(99.0)
    together = attack(model, x, y, ball)
    assert len(together.steps.unique()) > 2  # they did leave at different times
    for k in range(6):
        alone = attack(model, x[k : k + 1], y[k : k + 1], ball)
        assert torch.allclose(alone.x_adv[0], together.x_adv[k], atol=1e-5)
        assert alone.steps[0] == together.steps[k]
        assert torch.allclose(together.cost[k], (x[k] - together.x_adv[k]).norm(), atol=1e-5)


def test_transformations_that_nobody_chooses_are_the_usual_ones():
    """`eot` without a transform turns, scales and shifts images as `Transformations()` does."""
    x, y = halves(0.1, 0.2, 0.4)
    runs = [
        attacks.eot(
            Leaning(),
            x,
            y,
            L2Ball(0.3),
            steps=2,
            generator=torch.Generator().manual_seed(0),
            **more,
        )
        for more in ({}, {"transform": Transformations()}, {"transform": lambda z, generator: z})
    ]
    assert torch.equal(runs[0].x_adv, runs[1].x_adv)
    assert not torch.equal(runs[0].x_adv, runs[2].x_adv)


@pytest.mark.parametrize("made", ["pgd", "transfer", "radius", "library"])
def test_seconds_are_those_that_passed(made):
    x, y = halves(0.1, 0.2, 0.4)
    ball = LinfBall(0.1)
    run = {
        "pgd": partial(attacks.pgd, Leaning(), x, y, ball, batch_size=1),
        "transfer": partial(attacks.transfer, Leaning(), x, y, ball, source=Leaning()),
        "radius": partial(attacks.radius, Leaning(), x, y, steps=5, batch_size=2),
        "library": partial(
            attacks.library, Leaning(), x, y, ball, version="custom", attacks=["apgd-ce"]
        ),
    }[made]
    start = time.perf_counter()
    done = run()
    passed = time.perf_counter() - start
    assert passed / 2 < done.seconds <= passed


def test_a_random_start_is_of_the_generator_that_is_given():
    """Also where the gradient is that of many transformations."""
    x, y = halves(0.1, 0.2, 0.4)
    attack = partial(attacks.eot, Leaning(), x, y, LinfBall(0.05), steps=1, random_start=True,
                     transform=lambda z, generator: z, early_stop=False)  # fmt: skip
    found = []
    for seed, own in ((0, 5), (1, 5), (1, 6)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(attack(generator=torch.Generator().manual_seed(own), step_size=1e-4))
    assert torch.equal(found[0].x_adv, found[1].x_adv)
    assert not torch.equal(found[1].x_adv, found[2].x_adv)


def test_transferred_images_are_judged_in_single_precision():
    """Half precision would let an image count that is outside by half a thousandth."""
    x, y = halves(0.1, 0.2)
    x, source = x.half(), Leaning()

    def attack(model, x, y, ball):
        done = attacks.pgd(model, x, y, LinfBall(ball.eps + 5e-4), steps=1, step_size=1.0)
        return done

    done = attacks.transfer(Leaning(), x, y, LinfBall(0.15), source=source, attack=attack)
    assert (Leaning()(done.x_adv).argmax(1) != y).all()
    assert not done.success.any() and done.x_adv.dtype == torch.float32
    assert done.mass_error.dtype == torch.float32


def test_the_last_image_is_kept_and_what_was_misread_stays_as_it_was():
    """Whether it breaks or not; the first offer is the clean image and its own loss."""
    found, index = Last(torch.zeros(3, 1, 1, 1)), torch.arange(3)
    found.misread = torch.tensor([False, True, False])
    for t, loss in ((0, 5.0), (1, 9.0), (2, 1.0)):
        some = index if t < 2 else index[:2]
        z = torch.full((len(some), 1, 1, 1), t / 10)
        broken = torch.tensor([t == 1, True, False])[: len(some)]
        go_on = found.offer(some, z, broken, 0.3 + z.flatten(), loss + z.flatten(), t)
        assert go_on.all() and len(go_on) == len(some)
    assert found.x_adv.flatten().tolist() == pytest.approx([0.2, 0.0, 0.1])
    assert found.broken.tolist() == [False, True, False] and found.steps.tolist() == [2, 0, 1]
    assert found.loss.tolist() == pytest.approx([1.2, 5.0, 9.1])
    assert found.cost.tolist() == pytest.approx([0.5, 0.3, 0.4])
