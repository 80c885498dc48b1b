"""Adversarial Transport: whose sample is whose, in memory, in the loss, and between processes."""

import copy
import math

import pytest
import torch
from test_formulas import sure
from torch.nn import functional as F

from wotlab import LinfBall
from wotlab.gibbs import Chain
from wotlab.training import AdversarialTransport
from wotlab.training import _adversarial_transport as adversarial_transport

BALL = LinfBall(0.15)
STILL = Chain("sign", sigma=1e-12, eta=1e-12)


@pytest.fixture
def sample(digits):
    return digits[0].double(), digits[1]


def test_samples_are_rounded_to_the_nearest(sample):
    x = sample[0]
    z = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    defense = AdversarialTransport(LinfBall(1.0))
    defense.prepare(len(x))
    defense.recall(x, torch.arange(len(x)))
    defense.remember(z, torch.arange(len(x)))
    error = defense.recall(x, torch.arange(len(x))) - z
    assert error.abs().max() <= 2.0**-11 + 1e-6
    assert abs(float(error.mean())) < 1e-4  # and not always down


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("soft", [None, 2.0])
def test_copies_have_their_own_labels_and_losses(copies, soft, sample):
    """Each image's copies lie elsewhere, move by their own gradient, and are averaged together."""
    x, y, order = *sample, torch.randperm(40, generator=torch.Generator().manual_seed(1))
    defense = AdversarialTransport(BALL, chain=Chain("sign", sigma=1e-12, eta=0.05), copies=copies,
                                   soft=soft)  # fmt: skip
    defense.prepare(100)
    places, model = order + 50, sure()  # image i has place places[i]
    noise = torch.rand((40, copies, *x.shape[1:]), generator=torch.Generator().manual_seed(2))
    start = BALL.project(x[:, None], x[:, None] + 0.1 * (noise.double() - 0.5)).half().double()
    defense.recall(x, places)
    defense.kept[places], defense.known[places] = start.half(), True
    some = torch.tensor([31, 4, 17, 8, 25])
    loss = defense.loss(model, x[some], y[some], places[some])
    expected = []
    for i in some.tolist():
        each = []
        for k in range(copies):
            z = start[i, k][None].requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(z), y[i][None]), z)
            z = BALL.project(x[i][None], z.detach() + 0.05 * g.sign())
            each.append(F.cross_entropy(model(z), y[i][None]).item())
            kept = defense.kept[places[i], k].double()
            assert torch.allclose(kept, z[0], atol=1e-3)
        if soft is None:
            expected.append(sum(each) / copies)
        else:
            expected.append(math.log(sum(math.exp(soft * e) for e in each) / copies) / soft)
    assert loss.item() == pytest.approx(sum(expected) / len(some), rel=1e-6)
    untouched = [i for i in range(40) if i not in some.tolist()]
    assert torch.equal(defense.kept[places[untouched]].double(), start[untouched])
    assert defense.touched.nonzero()[:, 0].tolist() == sorted(places[some].tolist())


class Among:
    """One of several processes: what it sends is kept, and what the others sent is added."""

    world_size = 2

    def __init__(self, others=None):
        self.sent, self.others = [], others

    def all_reduce(self, part, reduce_op):
        assert reduce_op == "sum"
        self.sent.append(part.clone())
        return part if self.others is None else part + self.others[len(self.sent) - 1]


def test_processes_share_what_each_has_moved(sample, monkeypatch):
    """Two that saw odd and even places of an old memory have one new memory afterwards."""
    monkeypatch.setattr(adversarial_transport, "CHUNK", 16)
    x, y = sample
    old = AdversarialTransport(BALL, chain=STILL, copies=2)
    old.prepare(50)
    old.loss(sure(), x, y, torch.arange(40))
    old.touched.zero_()
    both = [copy.deepcopy(old) for _ in range(2)]
    for rank, one in enumerate(both):
        one.chain = Chain("sign", sigma=1e-12, eta=0.05)
        part = torch.arange(rank, 30, 2)  # places 30 to 39 rest
        one.loss(sure(), x[part], y[part], part)
    one = copy.deepcopy(both[0])
    moved = [part.kept.clone() for part in both]
    first = Among()
    copy.deepcopy(both[0]).gather(first)
    second = Among(first.sent)
    both[1].gather(second)
    one.gather(Among(second.sent))
    expected = old.kept.clone()
    expected[0:30:2], expected[1:30:2] = moved[0][0:30:2], moved[1][1:30:2]
    assert not torch.equal(expected, old.kept)
    for each in (both[1], one):
        assert torch.equal(each.kept, expected) and not bool(each.touched.any())
        assert each.known.nonzero()[:, 0].tolist() == list(range(40))
