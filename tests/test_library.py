"""The adapter to other libraries' attacks: same interface, same honesty."""

import copy
import sys

import pytest
import torch

import wotlab
from wotlab import L2Ball, LinfBall, WassersteinBall, attacks, models
from wotlab.attacks._external import NAMES

QUICK = {
    "autoattack": {"version": "custom", "attacks": ["apgd-ce", "fab-t"]},
    "square": {"n_queries": 100},
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_runs_in_the_ball_and_leaves_no_trace(name, unseen, fitted):
    if name != "autoattack":
        pytest.importorskip("torchattacks")
    x, y = unseen
    ball = LinfBall(0.2) if "Linf" in NAMES[name][1] else L2Ball(1.5)
    fitted.train()
    before = torch.get_rng_state()
    run = lambda: attacks.library(  # noqa: E731
        fitted, x, y, ball, name=name, **QUICK.get(name, {})
    )
    done = run()
    assert fitted.training and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in fitted.parameters())
    assert not done.x_adv.requires_grad and torch.equal(run().x_adv, done.x_adv)
    fitted.eval()
    wrong = fitted(done.x_adv).argmax(1) != y
    assert bool((done.success == (wrong & ball.contains(x, done.x_adv))).all())
    clean = fitted(x).argmax(1) != y
    assert int(done.success.sum()) > int(clean.sum())
    if "Linf" in NAMES[name][1]:
        assert bool(ball.contains(x, done.x_adv).all())


def test_autoattack_takes_double_precision(unseen, fitted):
    x, y = unseen
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        done = attacks.library(
            copy.deepcopy(fitted).double(), x.double(), y, LinfBall(0.2), **QUICK["autoattack"]
        )
        assert torch.get_default_dtype() == torch.double
    finally:
        torch.set_default_dtype(usual)
    assert done.x_adv.dtype == torch.double and bool(done.success.any())


def test_autoattack_is_at_least_as_strong_as_pgd(fitted):
    x, y = wotlab.data.load("digits", "test").tensors(slice(0, 40))
    few = {"version": "custom", "attacks": ["apgd-ce", "apgd-t"]}
    for ball in (LinfBall(0.06), L2Ball(0.4)):
        auto = attacks.library(fitted, x, y, ball, **few)
        pgd = attacks.pgd(fitted, x, y, ball, steps=20)
        assert int(auto.success.sum()) >= int(pgd.success.sum()) - 1 > 5
        assert bool(ball.contains(x, auto.x_adv).all())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ball", [LinfBall(0.25), L2Ball(1.2)])
def test_autoattack_knows_few_classes(classes, ball):
    """Its targeted parts too, on images that its first part leaves; as strong as pgd."""
    x, y = wotlab.data.load("digits", "train").tensors()
    some = (y < classes).nonzero()[:150, 0]
    model = models.build("digits-small", num_classes=classes, seed=0)
    wotlab.training.fit(model, (x[some], y[some]), epochs=10, lr=0.05)
    x, y = x[some][:30], y[some][:30]
    parts = {"version": "custom", "attacks": ["apgd-t", "fab-t"]}
    done = attacks.library(model, x, y, ball, **parts)
    pgd = attacks.pgd(model, x, y, ball, steps=40)
    assert len(x) > int(done.success.sum()) >= int(pgd.success.sum()) > 3
    assert bool(ball.contains(x, done.x_adv).all())


@pytest.mark.parametrize("name", ["autoattack", "mi-fgsm"])
def test_half_precision(name, unseen, fitted):
    if name != "autoattack":
        pytest.importorskip("torchattacks")
    x, y = unseen
    half, ball = copy.deepcopy(fitted).bfloat16(), LinfBall(0.2)
    few = {"version": "custom", "attacks": ["apgd-ce"]} if name == "autoattack" else {}
    done = attacks.library(half, x.bfloat16(), y, ball, name=name, **few)
    assert done.x_adv.dtype == torch.float32 and int(done.success.sum()) > 6
    assert bool(ball.contains(x, done.x_adv).all())


@pytest.mark.parametrize("name", ["autoattack", "mi-fgsm"])
def test_double_precision(name, unseen, fitted):
    if name != "autoattack":
        pytest.importorskip("torchattacks")
    x, y = unseen[0].double(), unseen[1]
    sharp, ball = copy.deepcopy(fitted).double(), LinfBall(0.2)
    few = {"version": "custom", "attacks": ["apgd-ce"]} if name == "autoattack" else {}
    done = attacks.library(sharp, x, y, ball, name=name, **few)
    assert done.x_adv.dtype == torch.double and bool(done.success.any())
    assert bool(ball.contains(x, done.x_adv).all())


def test_no_budget_and_images_that_are_wrong_already(unseen, fitted):
    pytest.importorskip("torchattacks")
    x, y = unseen
    done = attacks.library(fitted, x, (y + 1) % 10, LinfBall(0.1), name="mi-fgsm")
    wrong = fitted.eval()(x).argmax(1) != (y + 1) % 10
    assert bool(wrong.any()) and torch.equal(done.x_adv[wrong], x[wrong])
    assert bool(done.success[wrong].all())
    still = attacks.library(fitted, x, y, LinfBall(0.0), name="mi-fgsm")
    assert torch.equal(still.x_adv, x)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "pgd"}, "name must be one of autoattack"),
        ({"name": "cw"}, "ball must be a L2Ball"),
        ({"ball": WassersteinBall(0.1)}, "ball must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"x": torch.full((2, 1, 8, 8), 2.0)}, "x must lie in"),
    ],
)
def test_bad_input(change, named, fitted):
    given = {"x": torch.rand(2, 1, 8, 8), "y": torch.tensor([0, 1]), "ball": LinfBall(0.1)}
    given |= change
    with pytest.raises(ValueError, match=named):
        attacks.library(fitted, given.pop("x"), given.pop("y"), given.pop("ball"), **given)


def test_a_missing_library_is_named(unseen, fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks"):
        attacks.library(fitted, *unseen, LinfBall(0.1), name="tpgd")
