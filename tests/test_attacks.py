"""Attacks: they reach the optimum where it is known, never leave the ball, leave no trace."""

import copy
import math
from functools import partial

import pytest
import torch
from known import Linear
from torch import nn

import wotlab
from wotlab import LinfBall, WassersteinBall, attacks, certify, models

ON_PLANS = [attacks.mirror_ascent, attacks.frank_wolfe, attacks.transport]
ALL = [*ON_PLANS, attacks.pgd, attacks.fgsm]


@pytest.mark.parametrize("attack", ALL)
def test_succeeds_inside_the_ball_only(attack, unseen, fitted):
    x, y = unseen
    ball = WassersteinBall(0.5)
    done = attack(fitted, x, y, ball)
    assert bool(certify(x, done.x_adv, ball).inside.all())
    broken = fitted.eval()(done.x_adv).argmax(1) != y
    assert bool((done.success == broken).all())
    if attack is not attacks.fgsm:
        assert float(done.success.float().mean()) > 0.5


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_attacked_in_single(half, fitted, unseen):
    """Mass cannot be kept in half precision: every image would seem to leave the ball."""
    x, y = unseen
    ball, model = WassersteinBall(0.3), copy.deepcopy(fitted).to(half)
    single = attacks.mirror_ascent(fitted, x, y, ball, steps=20)
    done = attacks.mirror_ascent(model, x.to(half), y, ball, steps=20)
    assert done.x_adv.dtype == torch.float32
    assert float(done.mass_error.max()) < 1e-5
    assert bool((model(done.x_adv.to(half)).argmax(1) != y).eq(done.success).all())
    assert int(done.success.sum()) >= int(single.success.sum()) - 1 > 3


def test_a_model_that_returns_nan_on_an_attacked_image_is_no_success(unseen):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, z):
            logits = self.layer(z.flatten(1))
            off_grid = (z * 16 - (z * 16).round()).abs().amax((1, 2, 3)) > 1e-3
            return logits.masked_fill(off_grid[:, None], math.nan)

    model = Fragile()
    x = unseen[0]
    with pytest.raises(ValueError, match="NaN on an attacked image"):
        attacks.pgd(model, x, model(x).argmax(1), LinfBall(0.1))


@pytest.mark.parametrize("ball", [0.1, None, "linf"])
def test_what_is_no_ball_is_refused(ball, fitted, unseen):
    for attack in (attacks.pgd, attacks.fgsm, attacks.eot, attacks.adef, attacks.stadv):
        with pytest.raises(ValueError, match=f"ball must be a threat model.*; got {ball!r}$"):
            attack(fitted, *unseen, ball)
    with pytest.raises(ValueError, match="cost must be a GroundCost"):
        WassersteinBall(0.2, None)


def test_results_say_what_was_misread_before(fitted, unseen):
    x, y = unseen
    y = torch.where(torch.arange(len(y)) < 3, (fitted.eval()(x).argmax(1) + 1) % 10, y)
    clean = fitted(x).argmax(1) != y
    runs = [
        partial(attacks.transport, ball=WassersteinBall(0.3)),
        partial(attacks.pgd, ball=LinfBall(0.1), random_start=True),
        partial(attacks.library, ball=LinfBall(0.1), version="custom", attacks=["apgd-ce"]),
        partial(attacks.transfer, ball=LinfBall(0.1), source=models.build("digits-small", seed=3)),
        partial(attacks.iwda, ball=wotlab.InternalWassersteinBall(9.0), steps=2),
        partial(attacks.stadv, ball=LinfBall(1.0), steps=2),
    ]
    for run in runs:
        done = run(fitted, x, y)
        assert torch.equal(done.misread, clean) and bool(done.success[clean].all())
    assert f"{int(clean.sum())} of them before the attack" in repr(done)


def test_attacks_in_inference_mode_say_so(fitted, unseen):
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        attacks.fgsm(fitted, *unseen, LinfBall(0.1))


def test_a_whole_number_among_the_weights_says_nothing_of_the_dtype(fitted, unseen):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = nn.Parameter(torch.tensor(3), requires_grad=False)
            self.inner = fitted

        def forward(self, z):
            return self.inner(z)

    done, expected = (attacks.fgsm(m, *unseen, LinfBall(0.1)) for m in (Counted(), fitted))
    assert torch.equal(done.x_adv, expected.x_adv)


def test_images_made_in_inference_mode_are_attacked_as_others(fitted, unseen):
    x, y = unseen
    with torch.inference_mode():
        made = x.clone()
    done, expected = (attacks.fgsm(fitted, z, y, LinfBall(0.1)) for z in (made, x))
    assert torch.equal(done.x_adv, expected.x_adv) and not done.x_adv.is_inference()


@pytest.mark.parametrize("attack", ALL)
def test_no_budget_returns_the_image(attack, unseen, fitted):
    x, y = unseen
    done = attack(fitted, x, y, WassersteinBall(0.0))
    assert torch.equal(done.x_adv, x)
    assert float(done.cost.max()) == 0


def test_the_model_is_left_as_it_was(unseen):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model.train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = attacks.transport(model, *unseen, WassersteinBall(0.2), steps=5)
    assert model.training and model[1].training and not model[2].training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not done.x_adv.requires_grad


def test_a_compiled_network_is_attacked_alike(fitted, unseen):
    compiled, runs = torch.compile(fitted, backend="eager"), {"steps": 5, "restarts": 1}
    ours, theirs = (
        attacks.transport(model, *unseen, WassersteinBall(0.05), **runs)
        for model in (fitted, compiled)
    )
    assert torch.equal(ours.x_adv, theirs.x_adv)
    assert (ours.forward, ours.backward) == (theirs.forward, theirs.backward)


def test_transferred_images_are_the_sources_and_judged_by_the_model(fitted, unseen):
    x, y = unseen
    ball, other = LinfBall(0.2), models.build("digits-small", seed=5).eval()
    fitted.train()
    own = attacks.transfer(fitted, x, y, ball, source=fitted, steps=10)
    direct = attacks.pgd(fitted, x, y, ball, steps=10)
    assert fitted.training
    assert torch.equal(own.x_adv, direct.x_adv) and torch.equal(own.success, direct.success)
    moved = attacks.transfer(fitted, x, y, ball, source=other, attack=attacks.fgsm)
    assert torch.equal(moved.x_adv, attacks.fgsm(other, x, y, ball).x_adv)
    fitted.eval()
    wrong = (fitted(moved.x_adv).argmax(1) != y) | (fitted(x).argmax(1) != y)
    assert torch.equal(moved.success, wrong)
    assert bool(ball.contains(x, moved.x_adv).all())


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.full((2, 1, 8, 8), 2.0)}, r"x must lie in \[0, 1\]"),
        ({"x": torch.full((2, 1, 8, 8), math.nan)}, "x must be finite"),
        ({"y": torch.tensor([0.0, 1.0])}, "y must be 2 class numbers"),
        ({"y": torch.tensor([0, 12])}, r"y must lie in 0..9"),
        ({"ball": LinfBall(0.1)}, "ball must be a WassersteinBall"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"loss": "dlr"}, "loss must be one of"),
        ({"step_size": -1.0}, "step_size must be"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"restarts": -1}, "restarts must be"),
    ],
)
def test_bad_input(change, match, fitted):
    given = {"x": torch.rand(2, 1, 8, 8), "y": torch.tensor([0, 1]), "ball": WassersteinBall(0.1)}
    given |= change
    with pytest.raises(ValueError, match=match):
        attacks.transport(fitted, given.pop("x"), given.pop("y"), given.pop("ball"), **given)


def test_models_that_hide_their_gradient_are_refused(unseen, fitted):
    x, y = unseen
    ball = WassersteinBall(0.1)
    with pytest.raises(ValueError, match="probabilities"):
        attacks.transport(nn.Sequential(fitted, nn.Softmax(1)), x, y, ball)
    with pytest.raises(ValueError, match="NaN"):
        attacks.transport(Linear(torch.full((1, 8, 8), math.nan)), x, y % 2, ball)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda z: z, "torch.nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "two classes"),
        (type("Pair", (nn.Module,), {"forward": lambda self, z: (z, z)})(), "tensor of logits"),
        (
            type("Cut", (nn.Module,), {"forward": lambda self, z: z.detach().flatten(1)})(),
            "differentiable",
        ),
    ],
)
def test_models_that_no_attack_can_climb_are_refused(model, match, unseen):
    x, y = unseen
    with pytest.raises(ValueError, match=match):
        attacks.transport(model, x, 0 * y, WassersteinBall(0.1))


def test_a_result_prints_in_one_line(unseen, fitted):
    text = repr(attacks.fgsm(fitted, *unseen, LinfBall(1.0)))
    assert text.startswith("AttackResult(") and "of 8 images broken" in text


def test_cross_entropy_in_the_direction_of_its_gradient(unseen):
    from wotlab.attacks._objective import Objective

    x, y = unseen
    model = models.build("digits-small", seed=2).double()
    x = x.double().requires_grad_()
    ours, _, _ = Objective(model, y, False, "ce").gradient(x)
    (theirs,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    cosine = nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
    assert torch.allclose(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize(
    "attack, forward, backward",
    [  # a look at what is attacked, 8 images; what is broken already leaves after its first step
        (attacks.fgsm, 8 + 8 * 2, 8),
        (partial(attacks.pgd, steps=3, early_stop=False), 8 + 8 * 4, 8 * 3),
        (partial(attacks.pgd, steps=3, early_stop=False, random_start=True), 8 + 8 * 5, 8 * 3),
        (partial(attacks.pgd, steps=3, early_stop=False, batch_size=3), 8 + 8 * 4, 8 * 3),
    ],
)
def test_a_result_says_what_the_attack_asked_of_the_network(attack, forward, backward, unseen):
    x, y = unseen[0][:8], unseen[1][:8]
    model = Linear(torch.zeros(1, 8, 8))
    done = attack(model, x, 0 * y, LinfBall(0.1))
    assert (done.forward, done.backward) == (forward, backward)
    assert not model._forward_hooks  # and leaves nothing behind


def test_the_strongest_attack_reports_its_passes_too(unseen, fitted):
    asked = []
    hook = fitted.register_forward_hook(lambda m, given, out: asked.append(len(out)))
    done = attacks.transport(fitted, *unseen, WassersteinBall(0.1), restarts=2)
    hook.remove()
    assert done.forward == sum(asked) > done.backward > len(unseen[0])
