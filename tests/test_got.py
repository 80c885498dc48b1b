"""GOT: what its loss is made of, which layer it looks at, how it resumes, what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wotlab import LinfBall, models, training
from wotlab.training import GOT, MART, PGDAT, TRADES, JointCost, JointTransport
from wotlab.training._defenses import pgd_adversary
from wotlab.training._got import DATA, VARIANTS

BALL = LinfBall(0.1)


def inner(make=PGDAT):
    return make(BALL, attack=pgd_adversary(2, "kl" if make is TRADES else "ce"))


def value(defense, network, digits) -> float:
    x, y = digits
    torch.manual_seed(0)
    return float(defense.loss(network, x, y, torch.arange(len(x))).detach())


@pytest.mark.parametrize("make", [PGDAT, TRADES, MART])
def test_without_its_term_it_is_the_inner_defense(make, digits, network):
    torch.manual_seed(0)
    plain = value(inner(make), network, digits)
    assert value(GOT(inner(make), beta=0.0), network, digits) == pytest.approx(plain, rel=1e-6)
    doubled = value(GOT(inner(make), beta=0.0, alpha=2.0), network, digits)
    assert doubled == pytest.approx(2 * plain, rel=1e-6)
    x, y = digits
    clean = F.cross_entropy(network(x), y).item()
    mixed = value(GOT(inner(make), beta=0.0, clean=0.5), network, digits)
    assert mixed == pytest.approx(plain + 0.5 * clean, rel=1e-5)


@pytest.mark.parametrize("latent", [None, "0", "4"])
@pytest.mark.parametrize("match", [False, True])
def test_its_term_is_the_transport_between_the_latents(latent, match, digits, network):
    x, y = digits
    term = JointTransport("entropic", match_labels=match)
    with_term = value(GOT(inner(), term, beta=3.0, latent=latent), network, digits)
    without = value(GOT(inner(), term, beta=0.0, latent=latent), network, digits)
    torch.manual_seed(0)
    z = inner().attacked(network, x, y)
    layers = len(network) - 1 if latent is None else int(latent) + 1
    u, v = ((network[:layers](part).flatten(1), network(part)) for part in (x, z))
    assert (with_term - without) / 3 == pytest.approx(term(u, v, (y, y)).item(), rel=1e-4)


def test_its_gradient_reaches_the_weights_and_only_them(digits, network):
    x, y = digits
    for kind in ("semi-dual", "entropic"):
        defense = GOT(inner(), JointTransport(kind), alpha=0.0)
        defense.loss(network, x, y, torch.arange(len(x))).backward()
        assert all(float(w.grad.abs().sum()) > 0 for w in network.parameters())
        network.zero_grad()
    defense = GOT(inner(), alpha=0.0)
    defense.loss(network, x, y, torch.arange(len(x))).backward()
    assert all(w.grad is None or not w.requires_grad for w in defense.phi.parameters())


def test_the_potential_climbs(digits, network):
    x, y = digits
    z = inner().attacked(network, x, y)
    u, v = ((network[:-1](part).detach(), network(part).detach()) for part in (x, z))
    defense = GOT(inner(), ascent=1, lr=0.01)
    values = []
    for _ in range(100):
        defense.climb(u, v, y)
        values.append(float(defense.term(u, v, (y, y), defense.phi)))
    assert (
        values[-1] > values[0]
        and max(values) <= float(JointTransport("entropic")(u, v, (y, y))) + 1e-6
    )
    wide = GOT(inner(), potential=lambda size: nn.Sequential(
        nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 1)))  # fmt: skip
    wide.climb(u, v, y)
    assert sum(w.numel() for w in wide.phi.parameters()) > 1000


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("data", DATA)
def test_variants_have_the_papers_settings(variant, data):
    defense = GOT.paper(variant, data)
    assert isinstance(defense.inner, TRADES) == ("TRADES" in variant)
    assert defense.term.match_labels == variant.endswith("LM")
    assert defense.beta == 10 and defense.term.reg == 0.1 and defense.term.cost.lam == 1
    options = defense.inner.attack.keywords
    wanted = (40, 0.3, 0.01) if data == "mnist" else (20, 8 / 255, 2 / 255)
    assert (options["steps"], defense.inner.ball.eps, options["step_size"]) == wanted
    if "TRADES" in variant:
        assert defense.inner.beta == (3 if data == "svhn" else 6) and options["loss"] == "kl"
    else:
        assert (defense.alpha, defense.clean) == ((2, 0.5) if data == "svhn" else (1, 0))


def test_the_budget_of_its_attack_is_that_of_the_moment(digits, network):
    climb = pgd_adversary(2)
    defense = GOT(PGDAT(BALL, eps=lambda epoch: 0.1 * epoch, attack=climb), beta=0.0)
    defense.at_epoch(0.5)
    plain = value(PGDAT(LinfBall(0.05), attack=climb), network, digits)
    assert value(defense, network, digits) == pytest.approx(plain, rel=1e-6)
    other = value(PGDAT(BALL, attack=climb), network, digits)
    assert abs(other - plain) > 1e-3


def test_it_trains_and_resumes_to_the_same_weights(digits, tmp_path):
    def run(epochs, checkpoint=None):
        model = models.build("digits-small", seed=0)
        training.fit(
            model, digits, GOT(inner()), epochs=epochs, batch_size=20, lr=0.05,
            checkpoint=checkpoint, progress=False,
        )  # fmt: skip
        return model.state_dict()

    whole = run(4)
    run(2, tmp_path / "c.pt")
    resumed = run(4, tmp_path / "c.pt")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_bad_input_is_named(digits, network):
    x, y = digits
    index = torch.arange(len(x))
    for make, message in (
        (lambda: GOT("pgd"), "inner"),
        (lambda: GOT(inner(), beta=-1.0), "beta"),
        (lambda: GOT(inner(), alpha=-1.0), "alpha"),
        (lambda: GOT(inner(), ascent=0), "ascent"),
        (lambda: GOT(inner(), lr=0.0), "lr"),
        (lambda: GOT.paper("GOT-MART", "mnist"), "variant"),
        (lambda: GOT.paper("GOT-PGD-S", "imagenet"), "data"),
        (lambda: GOT(inner(), latent="no").loss(network, x, y, index), "latent must be one of"),
        (
            lambda: GOT(PGDAT(BALL, attack=pgd_adversary(1))).loss(
                nn.Sequential(nn.Flatten(), nn.ReLU(), nn.LazyLinear(3))[:2], x, y, index
            ),
            "linear|logits|classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_of_one_image_the_term_is_the_cost_of_its_pair(digits, network):
    one = digits[0][:1], digits[1][:1]
    torch.manual_seed(0)
    z = inner().attacked(network, *one)
    u, v = ((network[:-1](part), network(part)) for part in (one[0], z))
    pair = JointCost()(u, v).item()
    for kind in ("semi-dual", "entropic", "exact"):
        term = JointTransport(kind, match_labels=True)
        gap = value(GOT(inner(), term), network, one) - value(inner(), network, one)
        assert gap / 10 == pytest.approx(pair, rel=1e-3, abs=1e-6)


def test_the_potential_is_not_rounded_in_mixed_precision(digits, network):
    x, y = digits
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.double, torch.double)):
        u = network[:-1](x).detach().to(dtype), network(x).detach().to(dtype)
        defense = GOT(inner())
        defense.climb(u, u, y)
        assert {w.dtype for w in defense.phi.parameters()} == {wanted}


def test_a_batch_that_lacks_a_class_is_no_matter(digits, network):
    x, y = digits
    some = y < 4
    defense = GOT(inner(), JointTransport(match_labels=True))
    assert torch.isfinite(defense.loss(network, x[some], y[some], torch.arange(int(some.sum()))))


def test_symmetric_costs_allow_the_divergence(digits, network):
    term = JointTransport("divergence", JointCost("l2", "l1"))
    assert value(GOT(inner(), term), network, digits) > value(inner(), network, digits) - 1e-6


def test_a_random_potential_that_weights_follow_has_no_lower_bound(digits, network):
    """Scale the latents by s and the last layer by 1 / s: the same network, another loss."""
    x = digits[0]
    wrong = nn.Linear(64, 1)

    def loss(scale: float, **options) -> float:
        scaled = copy.deepcopy(network)
        with torch.no_grad():
            scaled[-3].weight *= scale  # ReLU in between: the latents scale, too
            scaled[-3].bias *= scale
            scaled[-1].weight /= scale
        assert torch.allclose(scaled(x), network(x), atol=1e-4)
        return value(GOT(inner(), potential=lambda size: copy.deepcopy(wrong), **options),
                     scaled, digits)  # fmt: skip

    far = [loss(s, hold=False, lr=1e-9) for s in (10.0, 1000.0)]
    assert far[1] < -100 and far[1] < far[0]
    at_first = GOT(inner())
    assert value(at_first, network, digits) > value(inner(), network, digits)  # phi near 0


def test_a_held_potential_gives_nothing_for_longer_latents(digits, network):
    """The slope of the term along that scaling: 0 if phi is held, below 0 if it is followed."""
    x, y = digits
    slope = {}
    for hold in (True, False):
        torch.manual_seed(0)
        defense = GOT(inner(), potential=lambda size: nn.Linear(size, 1), hold=hold, alpha=0.0)
        network.zero_grad()
        defense.loss(network, x, y, torch.arange(len(x))).backward()
        longer = sum(float((w.grad * w.detach()).sum()) for w in network[-3].parameters())
        slope[hold] = longer - float((network[-1].weight.grad * network[-1].weight.detach()).sum())
    assert abs(slope[True]) < 1e-5 and slope[False] < -1e-3


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_a_constant_network_ties_with_a_perfect_one_at_beta_theta_one(classes):
    """The entropic term charges a perfect network theta log K."""
    y = torch.arange(classes).repeat(4)
    sure = torch.eye(classes).repeat(4, 1).double()
    perfect, constant = (sure, 60 * sure), (torch.ones_like(sure), 0 * sure)
    entropic = JointTransport("entropic", reg=0.1)
    charged = float(entropic(perfect, perfect, (y, y)))
    bound = 0.1 * math.log(1 + (classes - 1) * math.exp(-1 / 0.1))
    assert 0.1 * math.log(classes) - bound - 1e-6 <= charged <= 0.1 * math.log(classes) + 1e-6
    assert float(entropic(constant, constant, (y, y))) == pytest.approx(0, abs=1e-6)
    guess = F.cross_entropy(constant[1], y).item()
    assert 10 * charged == pytest.approx(guess, rel=1e-3)
    matched = JointTransport("entropic", match_labels=True)
    assert float(matched(perfect, perfect, (y, y))) == pytest.approx(0, abs=1e-6)
