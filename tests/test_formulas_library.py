"""What other libraries are asked for: constructor arguments, images, seeds."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wotlab import L2Ball, LinfBall, attacks
from wotlab.attacks._external import NAMES

EPS = 0.2
ASKED = {  # name: class of the library, ball, arguments beside the model
    "cw": ("CW", L2Ball, {}),
    "deepfool": ("DeepFool", L2Ball, {}),
    "ffgsm": ("FFGSM", LinfBall, {"eps": EPS, "alpha": 1.25 * EPS}),
    "m-di2-fgsm": ("DIFGSM", LinfBall, {"eps": EPS, "alpha": EPS / 4, "decay": 1.0}),
    "mi-fgsm": ("MIFGSM", LinfBall, {"eps": EPS, "alpha": EPS / 4}),
    "pgd-l2": ("PGDL2", L2Ball, {"eps": EPS, "alpha": EPS / 4}),
    "square": ("Square", L2Ball, {"eps": EPS, "norm": "L2"}),
    "square, l-infinity": ("Square", LinfBall, {"eps": EPS, "norm": "Linf"}),
    "tpgd": ("TPGD", LinfBall, {"eps": EPS, "alpha": EPS / 4}),
}


class Bright(nn.Module):
    """Class 0 for images darker than 0.5 on average, class 1 for brighter ones; six classes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z):
        score = self.scale * (z.mean((1, 2, 3)) - 0.5)
        rest = (score - 9)[:, None].expand(-1, 4)
        return torch.cat([torch.stack([-score, score], 1), rest], 1)


@pytest.fixture
def asked(monkeypatch):
    """A library that adds 0.1 to what it is given, and what it was asked for."""
    seen = []

    def make(name):
        class Attack:
            def __init__(self, model, **options):
                self.name, self.options = name, options

            def set_device(self, device):
                self.device = device

            def __call__(self, x, y):
                seen.append((self.name, self.options, x.clone(), y.clone(), torch.initial_seed()))
                assert self.device == x.device
                return x + 0.1

        return Attack

    fake = SimpleNamespace(**{name: make(name) for name, _, _ in ASKED.values()})
    monkeypatch.setitem(sys.modules, "torchattacks", fake)
    return seen


@pytest.fixture
def given():
    """Four images: two rightly read, of which the second breaks when it is brighter by 0.1."""
    x = torch.tensor([0.2, 0.9, 0.45, 0.6])[:, None, None, None].expand(4, 1, 2, 2).clone()
    return x, torch.tensor([0, 0, 0, 0])


def test_all_names_are_asked_for():
    assert {name.split(",")[0] for name in ASKED} | {"autoattack"} == set(NAMES)


@pytest.mark.parametrize("case", sorted(ASKED))
def test_constructor_arguments(case, asked, given):
    made, ball, options = ASKED[case]
    name = case.split(",")[0]
    done = attacks.library(Bright(), *given, ball(EPS), name=name, seed=7)
    ((found, arguments, x, y, seed),) = asked
    assert (found, arguments, seed) == (made, options, 7)
    assert torch.equal(x, given[0][[0, 2]]) and y.tolist() == [0, 0]
    assert torch.allclose(done.x_adv[[0, 2]], given[0][[0, 2]] + 0.1)
    assert torch.equal(done.x_adv[[1, 3]], given[0][[1, 3]])  # broken as they are
    assert done.success.tolist() == [False, True, True, True]
    attacks.library(Bright(), *given, ball(EPS), name=name, alpha=0.3, steps=9)
    assert asked[1][1] == options | {"alpha": 0.3, "steps": 9}  # the caller's word counts


def test_an_image_outside_the_ball_does_not_count(asked, given):
    done = attacks.library(Bright(), *given, LinfBall(0.05), name="mi-fgsm")
    assert done.success.tolist() == [False, True, False, True]
    assert done.cost.tolist() == pytest.approx([0.1, 0, 0.1, 0])


def test_no_budget_asks_nothing(asked, given):
    done = attacks.library(Bright(), *given, LinfBall(0.0), name="mi-fgsm")
    assert asked == [] and torch.equal(done.x_adv, given[0])


@pytest.mark.parametrize(("ball", "norm"), [(LinfBall(EPS), "Linf"), (L2Ball(EPS), "L2")])
def test_arguments_of_autoattack(ball, norm, given, monkeypatch):
    seen = []

    class Auto:
        def __init__(self, model, **options):
            self.apgd_targeted = SimpleNamespace(n_target_classes=9)
            self.fab = SimpleNamespace(n_target_classes=2)
            self.options = options

        def run_standard_evaluation(self, x, y, batch_size):
            counts = self.apgd_targeted.n_target_classes, self.fab.n_target_classes
            seen.append((self.options, counts, x.dtype, batch_size, torch.get_default_dtype()))
            return x + 0.1, y

    monkeypatch.setattr("pyautoattack.AutoAttack", Auto)
    x, y = given[0].double(), given[1]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        done = attacks.library(Bright().double(), x, y, ball, seed=3, version="rand")
        assert torch.get_default_dtype() == torch.double
    finally:
        torch.set_default_dtype(usual)
    ((options, counts, dtype, size, default),) = seen
    device = options.pop("device")
    assert options == {"norm": norm, "eps": EPS, "seed": 3, "version": "rand"}
    assert torch.device(device) == x.device and dtype == default == torch.float32 and size == 2
    assert counts == (5, 2)  # six classes: no more than five others
    assert done.x_adv.dtype == torch.double
    assert torch.allclose(done.x_adv[[0, 2]], x[[0, 2]] + 0.1)


@pytest.mark.parametrize("ball", [LinfBall(0.06), L2Ball(2.0)])
def test_square_stays_in_its_ball(ball):
    pytest.importorskip("torchattacks")
    x = torch.linspace(0.1, 0.45, 6)[:, None, None, None].expand(6, 1, 8, 8).clone()
    y = torch.zeros(6, dtype=torch.long)
    done = attacks.library(Bright(), x, y, ball, name="square", n_queries=30)
    assert bool(ball.contains(x, done.x_adv).all())
    assert float(done.cost.max()) > 0.9 * ball.eps and bool(done.success.any())
