"""AWP, LBGAT, ATES: their steps written out, what they become at the ends of their settings."""

import copy
from functools import partial

import pytest
import torch
from killed import Stop, stopping
from lightning_fabric import Fabric
from test_training import same
from torch import nn
from torch.nn import functional as F

from wotlab import LinfBall, attacks, training
from wotlab.training import ATES, AWP, GOT, LBGAT, PGDAT, Standard, fit, pgd_adversary
from wotlab.training._ates import HardEnough
from wotlab.training._awp import moved
from wotlab.training._inputs import Places
from wotlab.training._lbgat import sgd

BALL = LinfBall(0.15)
STILL = partial(attacks.pgd, steps=3, early_stop=False)  # no random start


def small(seed=0, drop=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(drop), nn.Tanh(), nn.Linear(8, 10)
        return nn.Sequential(nn.Flatten(), *layers).double()


def plain(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


@pytest.fixture
def sample(digits):
    return digits[0].double(), digits[1]


def trained(defense, sample, model=None, epochs=2, **options):
    model = model or small()
    options = {"batch_size": 20, "optimizer": plain, "progress": False} | options
    done = fit(model, sample, defense, epochs=epochs, **options)
    return model, done


def minibatches(sample, epochs):
    for epoch in range(epochs):
        for order in Places(len(sample[0]), 20, epoch).parts:
            yield sample[0][order], sample[1][order]


def test_awp_is_its_algorithm(sample):
    ours, _ = trained(AWP(BALL, attack=STILL, gamma=0.3), sample, epochs=1)
    theirs = small()
    step = plain(theirs)
    for x, y in minibatches(sample, 1):
        z = attacks.pgd(theirs, x, y, BALL, steps=3, early_stop=False).x_adv
        proxy, there = (copy.deepcopy(theirs).train() for _ in range(2))
        F.cross_entropy(proxy(z), y).backward()
        for k in (1, 5):  # the two matrices
            w, g = there[k].weight, proxy[k].weight.grad
            w.data += 0.3 * w.norm() * g / g.norm()
        loss = F.cross_entropy(there(z), y)
        loss.backward()
        for mine, other in zip(theirs.parameters(), there.parameters(), strict=True):
            mine.grad = other.grad
        for mine, other in zip(theirs.buffers(), there.buffers(), strict=True):
            mine.copy_(other)  # statistics of BatchNorm: one pass, at w + v
        step.step()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    assert not same(trained(PGDAT(BALL, attack=STILL), sample, epochs=1)[0], ours)


def test_awp_goes_to_the_boundary_along_the_gradient(sample):
    x, y = sample
    model = small().train()
    before, buffers = copy.deepcopy(model.state_dict()), dict(model.named_buffers())
    defense = AWP(BALL, attack=STILL, gamma=0.05)
    moves = defense.moves(model, x, y)
    assert set(moves) == {model[1].weight, model[5].weight}
    clean = F.cross_entropy(copy.deepcopy(model)(x), y)
    for w, v in moves.items():
        assert torch.allclose(v.norm(), 0.05 * w.norm(), rtol=1e-12)
    with moved(model, moves):
        there = copy.copy(model.state_dict())
    assert torch.equal(there["1.weight"], before["1.weight"] + moves[model[1].weight])
    other = small().train()
    other.load_state_dict(there)
    assert F.cross_entropy(other(x), y) > clean + 0.01
    assert all(torch.equal(before[k], w) for k, w in model.state_dict().items())
    assert all(w.grad is None for w in model.parameters())
    assert all(buffers[k] is b for k, b in model.named_buffers())


def test_the_gradient_of_awp_is_that_at_the_moved_weights(sample):
    x, y = sample
    model = small().train()
    held = list(model.parameters())
    defense = AWP(BALL, attack=STILL, gamma=0.2)
    moves = defense.moves(model, defense.attacked(model, x, y), y)
    there = copy.deepcopy(model)
    for k in (1, 5):
        there[k].weight.data += moves[model[k].weight]
    F.cross_entropy(there(defense.attacked(model, x, y)), y).backward()
    defense.loss(model, x, y, torch.arange(40)).backward()
    assert all(a is b for a, b in zip(model.parameters(), held, strict=True))
    for mine, other in zip(model.parameters(), there.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-12)


def test_without_gamma_awp_is_pgd_training(sample):
    attack = pgd_adversary(3)
    one, _ = trained(PGDAT(BALL, attack=attack), sample, small(drop=0.3))
    two, _ = trained(AWP(BALL, attack=attack, gamma=0.0), sample, small(drop=0.3))
    assert same(one, two)


class Tied(nn.Module):
    """One matrix in two layers, one of which is met by two ways; one that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.again, self.idle = self.second, nn.Linear(3, 3)

    def forward(self, x):
        return self.again(self.first(x.flatten(1)).tanh())[:, :10]


def test_shared_frozen_and_idle_weights(sample):
    x, y = sample
    model = Tied().double()
    model.idle.bias.requires_grad_(False)
    held = dict(model.named_parameters(remove_duplicate=False))
    defense = AWP(BALL, attack=STILL, gamma=0.1)
    moves = defense.moves(model, x, y)
    assert set(moves) == {model.first.weight, model.idle.weight}
    assert not moves[model.idle.weight].any()
    with pytest.raises(ZeroDivisionError), moved(model, moves):
        assert torch.equal(model.first.weight, model.second.weight)
        assert torch.equal(model.second.weight, held["first.weight"] + moves[held["first.weight"]])
        raise ZeroDivisionError
    assert all(held[k] is w for k, w in model.named_parameters(remove_duplicate=False))
    model.first.weight.requires_grad_(False)
    assert set(defense.moves(model, x, y)) == {model.idle.weight}


def kl(p, q):
    return (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_lbgat_is_its_formula_and_both_networks_step_at_once(alpha, sample):
    natural = small(1)
    defense = LBGAT(BALL, attack=STILL, natural=natural, alpha=alpha, optimizer=plain)
    ours, done = trained(defense, sample)
    theirs, guide = small().train(), small(1).train()
    step = torch.optim.SGD([*theirs.parameters(), *guide.parameters()], 0.1, momentum=0.9)
    losses = []
    for x, y in minibatches(sample, 2):
        z = attacks.pgd(theirs, x, y, BALL, steps=3, early_stop=False).x_adv
        a, b = theirs(z), guide(x)
        loss = (-b.softmax(1).gather(1, y[:, None]).log()).mean() + ((a - b) ** 2).mean()
        if alpha:
            loss = loss + alpha * kl(theirs(x).softmax(1), a.softmax(1)).mean()
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    for one, two in ((ours, theirs), (natural, guide)):
        for mine, other in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.allclose(mine, other, atol=1e-10)
    expected = [sum(losses[k : k + 2]) / 2 for k in (0, 2)]
    assert [entry["loss"] for entry in done.history] == pytest.approx(expected)


def test_lbgat_attacks_as_trades_does_by_default(sample):
    x, y = sample
    model = small().eval()
    with torch.random.fork_rng():
        images = []
        for make in (partial(LBGAT, natural=small(1)), training.TRADES):
            torch.manual_seed(0)
            images.append(make(BALL).attacked(model, x, y))
    assert torch.equal(*images)
    group = sgd(model).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 2e-4)


def test_the_natural_network_learns_at_its_own_pace_and_keeps_its_mode(sample):
    rates, step = [], torch.optim.SGD.step

    class Watched(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return step(self, *args)

    natural = small(1)
    natural.eval()
    defense = LBGAT(
        BALL, lambda epoch: 0.1 * epoch, STILL, natural=natural,
        optimizer=lambda g: Watched(g.parameters(), 0.8), schedule=lambda epoch: 1 - epoch / 2,
    )  # fmt: skip
    trained(defense, sample)
    assert defense.now.eps == pytest.approx(0.15)  # of the last minibatch
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert not natural.training and natural[2].num_batches_tracked == 4
    frozen = small(1)
    frozen[2].eval()
    trained(LBGAT(BALL, natural=frozen, attack=STILL), sample)
    assert frozen.training and frozen[2].num_batches_tracked == 0


@pytest.mark.parametrize("save_every", [300.0, 1e-9])
def test_lbgat_killed_and_resumed_gives_the_same_weights(sample, tmp_path, save_every):

    def make(kind=LBGAT):
        return kind(BALL, natural=small(1, drop=0.3), attack=pgd_adversary(2), alpha=1.0,
                    schedule=lambda epoch: 0.5**epoch)  # fmt: skip

    defenses = [make(), make()]
    whole, _ = trained(defenses[0], sample, small(drop=0.3), epochs=4)
    options = {"checkpoint": tmp_path / "c.pt", "save_every": save_every}
    with pytest.raises(Stop):
        trained(make(stopping(LBGAT, 6)), sample, small(drop=0.3), epochs=4, **options)
    again, _ = trained(defenses[1], sample, small(2, drop=0.3), epochs=4, **options)
    assert same(whole, again) and same(defenses[0].natural, defenses[1].natural)
    assert not same(defenses[0].natural, small(1))


def gaps(model, z, y):
    p = model(z).softmax(1)
    own = F.one_hot(y, 10).bool()
    return p.masked_fill(own, 0).amax(1) - p[own]


def test_each_image_stops_by_hand(sample, network):
    """Steps of a sign; an image moves on only while its gap is at most the threshold."""
    x, y = sample
    model = network.double().eval()
    trained(Standard(), sample, model, epochs=20)
    model.eval()
    attack = partial(attacks.pgd, steps=8, step_size=0.05, early_stop=False)
    for limit in (-0.9, -0.5, 0.0, 0.5):
        z, count = x.clone(), torch.zeros(len(x))
        for _ in range(8):
            go = gaps(model, z, y) <= limit
            a = z.detach().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(a), y, reduction="sum"), a)
            z = torch.where(go[:, None, None, None], BALL.project(x, z + 0.05 * g.sign()), z)
            count += go
        defense = ATES(BALL, attack=attack, gap=lambda epoch, limit=limit: limit)
        done = defense.attacked(model, x, y)
        hard = gaps(model, z, y) > limit
        assert torch.allclose(done[hard], z[hard], atol=1e-12)
        assert bool((gaps(model, done, y) > limit).eq(hard).all())
        assert int(hard.sum()) > 10 and len(count[hard].unique()) > 1  # they stop at other steps
        full = PGDAT(BALL, attack=attack).attacked(model, x, y)
        far = ~hard  # these go as far as in PGD training
        assert torch.allclose(done[far], full[far], atol=1e-12)


def test_an_image_at_the_threshold_goes_on():
    y, logits = torch.tensor([0, 1]), torch.tensor([[1.0, 1.0, -9.0], [1.0, 1.0, -9.0]])
    assert HardEnough(None, y, False, "ce", gap=-1e-3).broken(logits).all()
    assert not HardEnough(None, y, False, "ce", gap=0.0).broken(logits).any()


def test_at_its_ends_ates_is_pgd_and_standard_training(sample):
    for attack in (STILL, pgd_adversary(3)):
        pgd, _ = trained(PGDAT(BALL, attack=attack), sample, small(drop=0.3))
        one, done = trained(ATES(BALL, attack=attack, gap=lambda epoch: 1.0), sample,
                            small(drop=0.3))  # fmt: skip
        assert same(pgd, one)
        assert done.history[0]["gradients"] == 4 * 40
    clean, _ = trained(Standard(), sample)
    none, done = trained(ATES(BALL, attack=STILL, gap=lambda epoch: -1.0), sample)
    assert same(clean, none)
    assert not same(clean, pgd)


def test_the_threshold_and_the_budget_follow_the_minibatch(sample):
    seen = []

    def attack(model, x, y, ball, **options):
        gap = options["objective"].keywords["gap"] if options else None
        seen.append((ball.eps, gap, options.get("early_stop", False)))
        return attacks.pgd(model, x, y, ball, steps=1)

    defense = ATES(BALL, lambda epoch: 0.1 * epoch, attack, gap=lambda epoch: min(1.0, epoch - 0.5))
    trained(defense, sample)
    expected = [(0.0, -0.5, True), (0.05, 0.0, True), (0.1, 0.5, True), (0.15, None, False)]
    assert [each[1:] for each in seen] == [each[1:] for each in expected]
    assert [each[0] for each in seen] == pytest.approx([each[0] for each in expected])


def test_easier_images_cost_fewer_gradients_and_have_the_smaller_loss(sample):
    model, _ = trained(Standard(), sample, epochs=15)
    x, y = sample
    losses = [
        ATES(BALL, gap=lambda epoch, k=k: k).loss(model.eval(), x, y, None).item()
        for k in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AWP(BALL, gamma=-1.0), "gamma must be a finite number at least 0; got -1"),
        (lambda: AWP(0.1), "ball must be a threat model"),
        (lambda: LBGAT(BALL, natural="resnet"), "natural must be a Module; got 'resnet'"),
        (lambda: LBGAT(BALL, natural=small(), alpha=-1.0), "alpha must be a finite number"),
        (lambda: LBGAT(BALL, natural=small(), schedule=0.5), "schedule must be a function"),
        (
            lambda: LBGAT(BALL, natural=small(), optimizer=torch.optim.SGD),
            "optimizer must be a function, such as lambda g: .*; got the class SGD",
        ),
        (lambda: ATES(BALL, gap=0.5), "gap must be a function, such as lambda epoch.*; got 0.5"),
        (lambda: ATES(BALL, gap=lambda epoch: 2.0), r"gap must lie in \[-1, 1\].* 2.0 at epoch 0"),
        (
            lambda: ATES(BALL, attack=attacks.mirror_ascent, gap=lambda epoch: 0.0),
            "attack must take objective= and early_stop=",
        ),
        (lambda: GOT(AWP(BALL)), "inner must be PGDAT, TRADES or MART"),
        (lambda: GOT(LBGAT(BALL, natural=small())), "inner must be PGDAT, TRADES or MART"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_natural_network_for_other_classes_is_refused(sample):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    with pytest.raises(ValueError, match=r"natural must return logits \(20, 10\).*got \(20, 9\)"):
        trained(LBGAT(BALL, attack=STILL, natural=other), sample)
    nothing = LBGAT(BALL, attack=STILL, natural=small(1), optimizer=lambda g: None)
    with pytest.raises(ValueError, match="what optimizer returns must be an Optimizer"):
        trained(nothing, sample)


def test_the_natural_network_is_not_rounded_where_the_model_is(digits):
    natural, seen = small(1).float(), []
    natural.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    trained(LBGAT(BALL, attack=STILL, natural=natural), digits, small().float(), fabric=fabric)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions(precision, digits):
    """A step in bfloat16 is about that in double precision."""

    def line(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    for make in (
        lambda: AWP(BALL, attack=STILL, gamma=0.5),
        lambda: LBGAT(BALL, attack=STILL, natural=line(1), alpha=1.0),
        lambda: ATES(BALL, attack=STILL, gap=lambda epoch: 0.0),
    ):
        ends = []
        for kind in ("64-true", precision):
            fabric = Fabric(accelerator="cpu", devices=1, precision=kind)
            defense, model = make(), line(0)
            trained(defense, digits, model, epochs=1, fabric=fabric)
            ends.append(model[1].weight.detach().double() - line(0)[1].weight.double())
        apart = (ends[0] - ends[1]).norm() / ends[0].norm()
        assert apart < 0.2, (defense, apart)
