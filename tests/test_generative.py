"""Algorithm 2 of IWDD: two minibatches by hand, a game that leaves no trace, and resumes."""

import copy

import pytest
import torch
from killed import Stop, stopping
from test_training import same
from torch import nn
from torch.nn import functional as F

import wotlab
from wotlab import InternalWassersteinBall, models
from wotlab.iwd import PatchCost
from wotlab.iwd.game import critic_step, gap
from wotlab.training import GenerativeIWDD, fit
from wotlab.training._generative import Generator, Walls


@pytest.fixture(scope="module")
def trained():
    """A network that reads digits."""
    model = models.build("digits-small", seed=0)
    data = wotlab.data.load("digits", "train").tensors()
    fit(model, data, epochs=6, batch_size=64, lr=0.05, progress=False)
    return model


def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 10)
        return nn.Sequential(*layers)


def blocks(x, size):
    """Patches of 3 x 3 that slide, of all images together."""
    cut = F.unfold(x, size).transpose(1, 2)
    return cut.reshape(-1, cut.shape[2])


def test_two_minibatches_are_the_algorithm_by_hand(digits):
    x, y = digits[0][:12].double(), digits[1][:12]
    beta, tau, penalty = 0.3, 0.7, 4.0
    ours, theirs = (models.build("digits-small", seed=0).double() for _ in range(2))
    defense = GenerativeIWDD(beta=beta, tau=tau, penalty=penalty, critic_steps=2, lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense.begin(x)
    g, f = copy.deepcopy(defense.generator), copy.deepcopy(defense.critic)
    with torch.no_grad():  # beyond its first step, where the last layer is zero
        for net in (g, defense.generator):
            net.weight3 += 0.1
    down = torch.optim.Adam(g.parameters(), 1e-2, (0.5, 0.999))
    up = torch.optim.Adam(f.parameters(), 1e-2, (0.5, 0.999))
    steps = [torch.optim.SGD(m.parameters(), 0.1) for m in (ours, theirs)]

    def score(w):
        return f(w[None])[0]

    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            loss = defense.loss(ours, x, y, torch.arange(12))
            steps[0].zero_grad()
            loss.backward()
            steps[0].step()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            n = torch.randn_like(x)
            u = blocks(x, 3)
            for _ in range(2):
                v = blocks(g(x, n).detach(), 3)
                rho = torch.rand(1, len(u), 1, dtype=x.dtype)[0]
                w = (rho * u + (1 - rho) * v).requires_grad_()
                (slope,) = torch.autograd.grad(score(w).sum(), w, create_graph=True)
                rough = (slope.abs().amax(1) - 1).square().mean()
                up.zero_grad()
                (-(score(u).mean() - score(v).mean() - penalty * rough)).backward()
                up.step()
            z = g(x, n)
            p = theirs(z).softmax(1).gather(1, y[:, None])
            down.zero_grad()
            value = score(u).mean() - score(blocks(z, 3)).mean() - tau * ((1 - p) / p).log().mean()
            value.backward()
            down.step()
            expected = beta * F.cross_entropy(theirs(x), y)
            expected = expected + F.cross_entropy(theirs(g(x, n).detach()), y)
            steps[1].zero_grad()
            expected.backward()
            steps[1].step()
        assert torch.allclose(loss, expected, atol=1e-9)
    for one, two in ((ours, theirs), (defense.generator, g), (defense.critic, f)):
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-7)


def test_the_first_image_is_the_clean_one_and_all_lie_in_the_range(digits):
    x = digits[0]
    net = Generator(1, like=x)
    assert torch.equal(net(x, torch.randn_like(x)), x)
    with torch.no_grad():
        net.weight3 += torch.randn_like(net.weight3)
    z = net(x, torch.randn_like(x))
    assert z.min().item() == 0 and z.max().item() == 1 and not torch.allclose(z, x, atol=0.1)
    assert not torch.equal(z, net(x, torch.randn_like(x)))  # the noise is seen


def test_the_game_leaves_no_trace_in_the_classifier(digits):
    x, y = digits
    model = nn.Sequential(nn.BatchNorm2d(1), models.build("digits-small", seed=0))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    defense, modes = GenerativeIWDD(), []
    hook = model[0].register_forward_hook(lambda m, given, out: modes.append(m.training))
    for _ in range(3):
        defense.play(model, x, y)
    hook.remove()
    assert not any(modes) and model[0].training
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(w.grad is None and w.requires_grad for w in model.parameters())
    loss = defense.loss(model, x, y, torch.arange(len(x)))
    for players in (defense.generator, defense.critic):
        players.zero_grad()
    loss.backward()  # and the classifier's step none in the players
    assert all(w.grad is None for w in defense.players.parameters())


def test_the_critic_learns_the_distance_of_a_pair(digits):
    """Of images and the same ones darker: patches apart by 9 h where no pixel is black."""
    x = 0.5 + digits[0][:8] / 2
    defense = GenerativeIWDD(lr=5e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense.begin(x)
        u, v = defense.patches(x, x - 0.1)
        gaps = [gap(defense.critic, u, v).item()]
        for _ in range(5):
            for _ in range(50):
                critic_step(defense.up, defense.critic, u, v, defense.cost, 10.0, None)
            gaps.append(gap(defense.critic, u, v).item())
    assert abs(gaps[0]) < 0.1 < 0.4 < gaps[1]
    assert gaps[-1] == pytest.approx(0.9, rel=0.2)


def test_tau_buys_errors_with_distance(trained, digits):
    """Against a network that does not learn, a large tau breaks it and a small one stays near."""
    x, y = digits
    errors, distances = [], []
    for tau in (1e-4, 0.1):
        defense = GenerativeIWDD(tau=tau, lr=5e-3, critic_steps=2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(41):
                z = defense.play(trained, x, y)
        errors.append(1 - wotlab.evaluate.accuracy(trained, (z, y)).value)
        distances.append(float((z - x).abs().mean()))
    assert errors[1] > errors[0] + 0.4
    assert 3 * distances[0] < distances[1]


def test_beyond_a_wall_the_gradient_that_leads_back_is_kept():
    z = torch.tensor([-0.5, -0.5, 0.0, 0.3, 1.0, 1.5, 1.5], requires_grad=True)
    slope = torch.tensor([1.0, -1.0, 1.0, 2.0, -1.0, -1.0, 1.0])
    out = Walls.apply(z)
    out.backward(slope)
    assert torch.equal(out, z.clamp(0, 1))
    assert z.grad.tolist() == [0.0, -1.0, 1.0, 2.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize("save_every", [300.0, 1e-9])
def test_killed_and_resumed_gives_the_same_weights(digits, tmp_path, save_every):
    options = {"epochs": 4, "batch_size": 20, "lr": 0.05, "progress": False}
    whole, again, defenses = small(), small(), [GenerativeIWDD() for _ in range(2)]
    fit(whole, digits, defenses[0], **options)
    options |= {"checkpoint": tmp_path / "c.pt", "save_every": save_every}
    with pytest.raises(Stop):
        fit(small(), digits, stopping(GenerativeIWDD, 6)(), **options)  # in the third epoch
    fit(again, digits, defenses[1], **options)
    assert same(whole, again) and same(defenses[0].players, defenses[1].players)


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_other_types_of_numbers(dtype, digits):
    x, y = digits[0].to(dtype), digits[1]
    model = models.build("digits-small", seed=0).to(dtype)
    defense = GenerativeIWDD()
    z = defense.play(model, x, y)
    assert z.dtype == dtype and torch.isfinite(defense.loss(model, x, y, torch.arange(len(x))))
    wanted = torch.promote_types(dtype, torch.float32)
    assert {w.dtype for w in defense.players.parameters()} == {wanted}


def test_bad_input_is_named(digits, network):
    for change, named in (
        ({"beta": 0.0}, "beta"),
        ({"tau": -1.0}, "tau"),
        ({"critic_steps": 0}, "critic_steps"),
        ({"lr": float("nan")}, "lr"),
        ({"penalty": 0.0}, "penalty"),
        ({"cost": InternalWassersteinBall(0.1)}, "cost must be a PatchCost"),
    ):
        with pytest.raises(ValueError, match=named):
            GenerativeIWDD(**change)
    with pytest.raises(ValueError, match="do not fit"):
        GenerativeIWDD(PatchCost(9)).loss(network, *digits, torch.arange(40))
