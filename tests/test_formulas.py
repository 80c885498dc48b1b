"""Defenses held to their papers' formulas on a network that is sure of itself, pair by pair."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wotlab import InternalWassersteinBall, LinfBall, attacks
from wotlab._base.modes import Passes
from wotlab.training import GOT, IWDD, MART, PGDAT, TRADES, JointTransport, fit
from wotlab.training._defenses import pgd_adversary
from wotlab.training._inputs import Places

BALL = LinfBall(0.15)


def sure(seed=0):
    """Logits of deviation about 4: wrong and right with little doubt, unlike a new network."""
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 64, generator=draw))
        model[1].bias.zero_()
    return model


def shifted(model, x, y, ball):
    """Another image of the minibatch, in a cycle: pairs (x, z) are none of (z, x)."""
    return attacks.AttackResult(x.roll(1, 0), *[None] * 9)


@pytest.fixture
def sample(digits):
    return digits[0].double(), digits[1]


def kl(p, q):
    return (p * (p / q).log()).sum(1)


def ce(p, y):
    return -p.gather(1, y[:, None])[:, 0].log()


def far(value, *wrong) -> bool:
    """Whether a mistake would show: by 1e-4 of it, where formulas agree to 1e-6."""
    return all(abs(float(value) - float(each)) > 1e-4 * abs(float(value)) for each in wrong)


def loss_of(defense, sample):
    x, y = sample
    return defense.loss(sure(), x, y, torch.arange(len(x))).detach()


def test_trades_is_its_formula(sample):
    x, y = sample
    p, q = (sure()(part).softmax(1).detach() for part in (x, x.roll(1, 0)))
    expected = (ce(p, y) + 3 * kl(p, q)).mean()
    assert loss_of(TRADES(BALL, attack=shifted, beta=3.0), sample) == pytest.approx(expected)
    six = (ce(p, y) + 6 * kl(p, q)).mean()
    assert loss_of(TRADES(BALL, attack=shifted), sample) == pytest.approx(six)
    assert far(expected, (ce(p, y) + 3 * kl(q, p)).mean(), (ce(q, y) + 3 * kl(p, q)).mean(), six)


def test_mart_is_its_formula(sample):
    x, y = sample
    p, q = (sure()(part).softmax(1).detach() for part in (x, x.roll(1, 0)))
    own = F.one_hot(y, 10).bool()
    boosted = ce(q, y) - (1 - q.masked_fill(own, 0).amax(1)).log()
    expected = (boosted + 5 * (1 - p[own]) * kl(p, q)).mean()
    assert loss_of(MART(BALL, attack=shifted), sample) == pytest.approx(expected)
    wrong = [
        boosted + 5 * (1 - q[own]) * kl(p, q),  # the attacked image's probability
        boosted + 5 * kl(p, q),  # no weight
        boosted + 5 * (1 - p[own]) * kl(q, p),
        ce(q, y) + 5 * (1 - p[own]) * kl(p, q),  # not boosted
        ce(p, y) - (1 - p.masked_fill(own, 0).amax(1)).log() + 5 * (1 - p[own]) * kl(p, q),
    ]
    assert far(expected, *(each.mean() for each in wrong))


def test_pgd_at_and_iwdd_are_their_formulas(sample):
    x, y = sample
    p, q = (sure()(part).softmax(1).detach() for part in (x, x.roll(1, 0)))
    assert loss_of(PGDAT(BALL, attack=shifted), sample) == pytest.approx(ce(q, y).mean())
    ball = InternalWassersteinBall(0.1)
    expected = (0.1 * ce(p, y) + ce(q, y)).mean()
    assert loss_of(IWDD(ball, attack=shifted), sample) == pytest.approx(expected)
    assert far(expected, ce(q, y).mean(), (ce(p, y) + 0.1 * ce(q, y)).mean())


def test_got_is_its_formula(sample):
    x, y = sample
    z, model = x.roll(1, 0), sure()
    u, v = ((part.flatten(1), model(part)) for part in (x, z))
    term = JointTransport("entropic")
    p, q = u[1].softmax(1), v[1].softmax(1)
    made = GOT(TRADES(BALL, attack=shifted), term, alpha=0.7, clean=0.4, beta=2.0)
    inner, clean, moved = (ce(p, y) + 6 * kl(p, q)).mean(), ce(p, y).mean(), term(u, v, (y, y))
    assert loss_of(made, sample) == pytest.approx((0.7 * inner + 0.4 * clean + 2 * moved).item())


@pytest.mark.parametrize(
    ("make", "steps", "kind"), [(PGDAT, 40, "ce"), (TRADES, 10, "kl"), (MART, 10, "ce")]
)
def test_their_own_attacks_are_the_papers(make, steps, kind, sample):
    x, y = sample
    options = dict(make(BALL).attack.keywords)
    length = options.pop("step_size")
    assert length(x, 0.3) == pytest.approx(2.5 * 0.3 / steps)
    assert length(x, 0.1) == pytest.approx(2.5 * 0.1 / steps)
    wanted = {"steps": steps, "loss": kind, "random_start": True, "early_stop": False}
    assert options == wanted and make(BALL).attack.func is attacks.pgd
    model = sure()
    count = Passes()
    with model.register_forward_hook(count.see), torch.random.fork_rng():
        make(BALL).attacked(model, x, y)
    assert count.backward == steps * len(x)


def test_madrys_steps_reach_the_wall_from_anywhere():
    """2.5 eps in all cross the ball from wall to wall; eps in all would not."""
    x, y = torch.full((8, 1, 8, 8), 0.5, dtype=torch.double), torch.zeros(8, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()  # linear: signs are constant
    up = (model[1].weight[1] - model[1].weight[0]).detach().sign().view(1, 8, 8)
    with torch.random.fork_rng():
        z = pgd_adversary(5)(model, x, y, BALL).x_adv
        short = pgd_adversary(5, step=BALL.eps / 5)(model, x, y, BALL).x_adv
    assert torch.allclose(z, x + BALL.eps * up)
    assert not torch.allclose(short, x + BALL.eps * up)


def test_trades_own_attack_climbs_the_divergence_from_elsewhere(sample):
    """At x itself the divergence is flat: it is the random start that lets it climb."""
    x, y = sample
    defense, model = TRADES(LinfBall(0.02)), sure()
    p = model(x).softmax(1)
    with torch.random.fork_rng():
        z = defense.attacked(model, x, y)
        label = MART(LinfBall(0.02)).attacked(model, x, y)
    by_divergence, by_label = (kl(p, model(each).softmax(1)).mean() for each in (z, label))
    assert by_divergence > by_label > 0
    assert ce(model(label).softmax(1), y).mean() > ce(model(z).softmax(1), y).mean()


@pytest.mark.parametrize("kind", ["pgd-at", "trades", "mart"])
def test_two_steps_are_those_of_the_paper(kind, sample):
    """The whole loop on one epoch of two minibatches, with signed steps written out."""
    x, y = sample
    eps, length = 0.05, 0.03

    def attack(model, x, y, ball):
        return attacks.pgd(model, x, y, ball, steps=2, step_size=length, early_stop=False)

    make = {"pgd-at": PGDAT, "trades": TRADES, "mart": MART}[kind]
    ours, theirs = sure(), sure()
    sgd = lambda m: torch.optim.SGD(m.parameters(), 0.1)  # noqa: E731
    defense = make(LinfBall(eps), attack=attack)
    fit(ours, sample, defense, epochs=1, batch_size=20, optimizer=sgd, progress=False)
    step = sgd(theirs)
    for part in Places(40, 20, 0).parts:
        a, b = x[part], y[part]
        z, walls = a.clone(), ((a - eps).clamp_min(0), (a + eps).clamp_max(1))
        for _ in range(2):
            z.requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(theirs(z), b), z)
            z = torch.minimum(torch.maximum(z.detach() + length * g.sign(), walls[0]), walls[1])
        p, q = theirs(a).softmax(1), theirs(z).softmax(1)
        own = F.one_hot(b, 10).bool()
        boosted = ce(q, b) - (1 - q.masked_fill(own, 0).amax(1)).log()
        losses = {
            "pgd-at": ce(q, b),
            "trades": ce(p, b) + 6 * kl(p, q),
            "mart": boosted + 5 * (1 - p[own]) * kl(p, q),
        }
        loss = losses[kind].mean()
        step.zero_grad()
        loss.backward()
        step.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-8)
    assert not torch.allclose(ours[1].weight, sure()[1].weight, atol=1e-3)
