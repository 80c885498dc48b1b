"""The internal Wasserstein attack, and the defense."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from wotlab import InternalWassersteinBall, L2Ball, PatchCost, attacks, evaluate, iwd, training
from wotlab.attacks._pyramid import Generators, resize, scales
from wotlab.training import IWDD

ANY = InternalWassersteinBall(9.0)


@pytest.fixture(scope="module")
def trained(digits):
    """A linear network for digits, with all its images, some of them misread."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    training.fit(
        model, digits, training.Standard(), epochs=40, batch_size=20, lr=0.1, progress=False
    )
    x, y = digits[0][:8], digits[1][:8].clone()
    y[5] = (y[5] + 1) % 10  # misread from the start
    return model.eval(), x, y


def seeded(k=0):
    return torch.Generator().manual_seed(k)


def test_breaks_and_says_how_far(trained):
    model, x, y = trained
    done = attacks.iwda(model, x, y, ANY, tau=1.0, generator=seeded())
    assert done.success.sum() >= 7
    assert (model(done.x_adv[done.success]).argmax(1) != y[done.success]).all()
    assert torch.allclose(done.cost, iwd.exact(x, done.x_adv))
    assert done.x_adv.min() >= 0 and done.x_adv.max() <= 1
    again = attacks.iwda(model, x, y, ANY, tau=1.0, generator=seeded())
    assert torch.equal(done.x_adv, again.x_adv)


def test_an_image_that_is_misread_stays_as_it_is(trained):
    model, x, y = trained
    done = attacks.iwda(model, x, y, ANY, steps=20, generator=seeded())
    assert torch.equal(done.x_adv[5], x[5])
    assert [steps == 0 for steps in done.steps.tolist()] == [k == 5 for k in range(8)]


def test_the_ball_says_what_counts(trained):
    model, x, y = trained
    tight = attacks.iwda(model, x, y, InternalWassersteinBall(0.02), generator=seeded())
    assert tight.success.tolist() == [k == 5 for k in range(8)]


def test_samples_stay_with_their_image(trained):
    """Images leave the batch at different times; what comes back is right row by row."""
    model, x, y = trained
    done = attacks.iwda(model, x, y, ANY, samples=3, generator=seeded())
    many, labels = x.repeat_interleave(3, 0), y.repeat_interleave(3)
    assert torch.equal(model(done.x_adv).argmax(1) != labels, done.success)
    assert torch.equal(done.x_adv[15:18], many[15:18])  # misread from the start
    moved = (done.x_adv - many).flatten(1).unflatten(0, (8, 3))[torch.arange(8) != 5]
    assert (torch.cdist(moved, moved).flatten(1).sum(1) > 0).all()
    small = attacks.iwda(model, x, y, ANY, samples=3, steps=5, generator=seeded())
    apart = (small.x_adv[:, None] - x[None]).flatten(2).norm(dim=2)
    assert torch.equal(apart.argmin(1), torch.arange(8).repeat_interleave(3))


def test_targeted(trained):
    model, x, y = trained
    target = (y + 3) % 10
    done = attacks.iwda(model, x, target, ANY, targeted=True, tau=1.0, generator=seeded())
    assert done.success.sum() >= 3
    assert (model(done.x_adv[done.success]).argmax(1) == target[done.success]).all()


def test_a_smaller_tau_stays_nearer(trained):
    model, x, y = trained
    options = {"steps": 60, "early_stop": False}
    far = [
        attacks.iwda(model, x, y, ANY, tau=tau, generator=seeded(), **options).cost.mean().item()
        for tau in (0.003, 1.0)
    ]
    assert far[0] < 0.8 * far[1]


def test_colour_two_scales_and_samples_that_leave_at_different_times():
    draw = seeded()
    x = torch.rand(4, 3, 20, 24, generator=draw)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 20 * 24, 2)).eval()
    with torch.no_grad():  # margins that differ
        model[1].weight.copy_(0.02 * torch.randn(2, 3 * 20 * 24, generator=draw))
        model[1].bias.zero_()
        y = model(x).argmax(1)
    ball = InternalWassersteinBall(27.0, PatchCost(3, 3))
    done = attacks.iwda(model, x, y, ball, tau=1.0, samples=2, lr=5e-3, generator=draw)
    many, labels = x.repeat_interleave(2, 0), y.repeat_interleave(2)
    assert done.success.any() and len(done.steps.unique()) > 2
    assert torch.equal(model(done.x_adv).argmax(1) != labels, done.success)
    assert torch.allclose(done.cost, iwd.exact(many, done.x_adv, ball.patch_cost))
    with pytest.raises(ValueError, match="one result an image"):
        attack = partial(attacks.iwda, samples=2, steps=1)
        evaluate.accuracy_curve(model, x, y, attack, ball, [1.0])


def test_the_last_step_counts(trained):
    """The first change is none; that of the one step is looked at, too."""
    model, x, y = trained
    done = attacks.iwda(model, x, y, ANY, steps=1, tau=1.0, lr=0.1, generator=seeded())
    assert (done.x_adv != x).flatten(1).any(1).sum() > 2
    assert done.steps[~done.success].unique().tolist() == [1]


def test_patches_larger_than_the_coarsest_scale(trained):
    x = torch.rand(1, 1, 16, 16, generator=seeded())
    model = torch.nn.Sequential(torch.nn.AvgPool2d(2), trained[0]).eval()
    ball = InternalWassersteinBall(144.0, PatchCost(12, 6))
    done = attacks.iwda(model, x, model(x).argmax(1), ball, steps=3, generator=seeded())
    assert torch.isfinite(done.cost).all()


def test_misread_images_go_on_without_early_stop(trained):
    model, x, y = trained
    done = attacks.iwda(model, x, y, ANY, steps=20, early_stop=False, generator=seeded())
    assert done.steps[5] == 0 and done.success[5]


def test_leaves_the_model_as_it_was(trained):
    model, x, y = trained
    model.train()
    attacks.iwda(model, x[:2], y[:2], ANY, steps=2, generator=seeded())
    assert model.training and all(w.grad is None or not w.grad.any() for w in model.parameters())
    model.eval()


def test_generators_start_at_no_change_and_do_not_meet():
    net = Generators(2, 1, like=torch.zeros(1), generator=seeded())
    given = torch.rand(3, 2, 3, 8, 8, generator=seeded())
    assert net(given).abs().max() == 0
    with torch.no_grad():
        net.weight3.normal_(generator=seeded())
    other = given.clone()
    other[:, 1] = 0
    assert torch.allclose(net(given)[:, 0], net(other)[:, 0], atol=1e-6)
    assert not torch.allclose(net(given)[:, 1], net(other)[:, 1], atol=1e-3)


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [3, 8])
def test_images_of_one_brightness_and_images_of_one_patch(brightness, size, trained):
    """Black ones too: no mass has to move."""
    model, ball = trained[0], InternalWassersteinBall(16.0, PatchCost(size))
    x = torch.full((1, 1, 8, 8), brightness)
    y = model(x).argmax(1)
    assert attacks.pgd(model, x, y, ball).success.all()
    done = attacks.iwda(model, x, y, ball, steps=10, generator=seeded())
    assert torch.allclose(done.cost, iwd.exact(x, done.x_adv, ball.patch_cost))
    assert done.x_adv.min() >= 0 and done.x_adv.max() <= 1
    for bend in (attacks.stadv, attacks.adef):  # bent, such an image is itself
        assert torch.allclose(bend(model, x, y, ball, steps=5).x_adv, x)


def test_scales():
    assert scales(64, 48, 3) == [(16, 12), (32, 24), (64, 48)]
    assert scales(64, 48, 1) == [(64, 48)]
    assert scales(8, 8, 3) == [(8, 8)]
    assert scales(64, 48, 3, 20) == [(32, 24), (64, 48)]
    z = torch.rand(2, 3, 1, 8, 6)
    assert resize(z, (4, 3)).shape == (2, 3, 1, 4, 3)
    assert torch.allclose(resize(torch.ones(2, 3, 1, 8, 6), (16, 12)), torch.tensor(1.0))


def test_iwdd_is_a_weighted_sum_on_the_ball(trained):
    model, x, y = trained
    ball, seen = InternalWassersteinBall(0.3, PatchCost(3, 3)), []

    def attack(*given):
        seen.append(attacks.pgd(*given, steps=5, early_stop=False))
        return seen[-1]

    loss = IWDD(ball, attack=attack, beta=0.25).loss(model, x, y, torch.arange(8))
    z = seen[0].x_adv
    expected = 0.25 * F.cross_entropy(model(x), y) + F.cross_entropy(model(z), y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ball.contains(x, z).all() and (z != x).any()


@pytest.mark.slow
def test_iwdd_makes_a_network_stand_longer(digits, single_thread):
    ball = InternalWassersteinBall(0.25, PatchCost(3, 3))
    left = []
    for defense in (training.Standard(), IWDD(ball)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        training.fit(model, digits, defense, epochs=20, batch_size=20, lr=0.1, progress=False)
        done = attacks.pgd(model.eval(), *digits, ball, steps=20)
        left.append((~done.success).sum().item())
    assert left[1] > left[0] + 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ball": L2Ball(1.0)}, "ball must be an InternalWassersteinBall"),
        ({"ball": InternalWassersteinBall(1.0, PatchCost(9))}, "do not fit"),
        ({"tau": 0.0}, "tau must be"),
        ({"steps": 0}, "steps must be"),
        ({"samples": 0}, "samples must be"),
        ({"critic_steps": 0}, "critic_steps must be"),
        ({"penalty": -1.0}, "penalty must be"),
    ],
)
def test_bad_input(change, match, trained):
    with pytest.raises(ValueError, match=match):
        attacks.iwda(*trained, **({"ball": ANY} | change))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: IWDD(L2Ball(1.0)), "ball must be an InternalWassersteinBall"),
        (lambda: IWDD(ANY, beta=0.0), "beta must be"),
    ],
)
def test_bad_defense(make, match):
    with pytest.raises(ValueError, match=match):
        make()
