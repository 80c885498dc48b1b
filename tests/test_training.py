"""One training loop: it learns, repeats itself bit for bit, and survives being killed."""

import os
import subprocess
import sys

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import wotlab
from wotlab import LinfBall, training
from wotlab.training import PGDAT, AdversarialTransport, Standard, fit


def images(count=60):
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) > 0.5).long()


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)
        )


OPTIONS = {"batch_size": 16, "progress": False, "schedule": lambda epoch: 0.5**epoch}


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_digits():
    model = wotlab.models.build("digits-small", seed=0)
    done = fit(
        model,
        wotlab.data.load("digits", "train"),
        epochs=12,
        batch_size=64,
        lr=0.05,
        progress=False,
    )
    assert done.epochs == 12 and done.history[-1]["loss"] < 0.1 * done.history[0]["loss"]
    train = wotlab.evaluate.accuracy(model, wotlab.data.load("digits", "train"))
    test = wotlab.evaluate.accuracy(model, wotlab.data.load("digits", "test"))
    assert train.value > 0.97 and test.value > 0.9  # the last digits are by other writers


def test_the_learning_rate_follows_its_schedule_at_every_minibatch():
    rates, step = [], torch.optim.SGD.step

    class Watched(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return step(self, *args)

    x, y = images()
    options = OPTIONS | {"batch_size": len(x) // 4, "schedule": lambda epoch: 1 - epoch / 2}
    fit(network(), (x, y), epochs=2, optimizer=lambda m: Watched(m.parameters(), 0.8), **options)
    assert rates == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_same_seed_same_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    one, two, other = network(), network(), network()
    for model, seed in ((one, 3), (two, 3), (other, 4)):
        fit(model, images(), epochs=2, seed=seed, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, two) and not same(one, other)


def test_the_best_epoch_is_kept(tmp_path):
    values, states = iter([0.1, 0.7, 0.3, 0.7]), []

    def validate(model):
        assert not model.training
        states.append({k: w.clone() for k, w in model.state_dict().items()})
        return next(values)

    model = network()
    options = OPTIONS | {"validate": validate, "checkpoint": tmp_path / "c.pt"}
    fit(model, images(), epochs=3, **options)
    done = fit(network(), images(), epochs=4, **options)  # the best one is in the checkpoint
    assert done.best == 1 and [e["validation"] for e in done.history] == [0.1, 0.7, 0.3, 0.7]
    assert all(torch.equal(w, states[1][k]) for k, w in model.state_dict().items())


def test_what_is_only_watched_keeps_the_last_epoch():
    """As if nothing had been watched; each value is in the history."""
    values = iter([0.7, 0.1])
    options = OPTIONS | {"validate": lambda model: next(values), "keep_best": False}
    watched, plain = network(), network()
    done = fit(watched, images(), epochs=2, **options)
    fit(plain, images(), epochs=2, **OPTIONS)
    assert done.best is None and [e["validation"] for e in done.history] == [0.7, 0.1]
    assert same(watched, plain)


def test_gradients_are_counted_and_the_clean_loss_is_seen():
    x, y = images()
    done = fit(network(), (x, y), epochs=2, **OPTIONS)
    assert [e["gradients"] for e in done.history] == [60, 60]
    attack = lambda m, a, b, ball: wotlab.attacks.pgd(  # noqa: E731
        m, a, b, ball, steps=3, early_stop=False
    )
    ball = LinfBall(0.2)
    attacked = fit(
        network(), (x, y), PGDAT(ball, attack=attack), epochs=2,
        validate=lambda model: 1 - float(attack(model, x, y, ball).success.float().mean()),
        **OPTIONS,
    )  # fmt: skip
    assert [e["gradients"] for e in attacked.history] == [240, 240]
    for entry in attacked.history:
        assert 0 < entry["clean_loss"] < entry["loss"] and entry["seconds"] > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train_and_attack(precision):
    x, y = wotlab.data.load("digits", "train").tensors(slice(0, 200))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    linf = LinfBall(0.02)
    defenses = [
        Standard(),
        training.FastAT(linf),
        training.TRADES(linf, attack=training.pgd_adversary(2, "kl")),
        AdversarialTransport(linf),
        training.WassersteinAT(wotlab.WassersteinBall(0.01)),
    ]
    for defense in defenses:
        model = wotlab.models.build("digits-small", seed=0)
        done = fit(model, (x, y), defense, epochs=6, lr=0.05, batch_size=20, fabric=fabric,
                   progress=False)  # fmt: skip
        wanted = torch.double if precision == "64-true" else torch.float
        assert next(model.parameters()).dtype == wanted
        assert done.history[-1]["clean_loss"] < 0.6 * done.history[0]["clean_loss"], defense


class Part(Fabric):
    """One of two processes, without the other one."""

    def __init__(self, rank: int):
        super().__init__(accelerator="cpu", devices=1)
        self.rank = rank

    world_size = property(lambda self: 2)
    global_rank = property(lambda self: self.rank)

    def all_reduce(self, part, **options):
        return part


def test_parts_of_a_minibatch_weigh_by_their_images():
    """7 and 6 images: the mean of both processes' steps is the step on 13."""
    data, options = images(13), OPTIONS | {"batch_size": 13, "epochs": 1, "lr": 0.5}
    whole, parts = plain(), [plain(), plain()]
    fit(whole, data, **options)
    for rank, model in enumerate(parts):
        fit(model, data, fabric=Part(rank), **options)
    for w, one, two in zip(*(m.parameters() for m in (whole, *parts)), strict=True):
        assert torch.allclose((one + two) / 2, w, atol=1e-7)
        assert not torch.allclose(one, w, atol=1e-4)


TWO = """
import sys
sys.path.insert(0, sys.argv[1])
import test_training as t
from lightning_fabric import Fabric
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
model, x, defense = t.plain(), t.images(61), t.Still()  # parts of 16 and, last, 13: 7 and 6
done = t.fit(model, x, defense, epochs=3, fabric=fabric, checkpoint=sys.argv[2] + "/c.pt",
             **t.OPTIONS)
if fabric.global_rank == 0:
    t.torch.save([model.state_dict(), done.history, defense.state_dict()], sys.argv[2] + "/two.pt")
"""


class Still(AdversarialTransport):
    """Without noise: processes draw their own."""

    def __init__(self):
        super().__init__(LinfBall(0.1), chain=wotlab.gibbs.Chain("sign", sigma=1e-6, eta=0.02))


def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, str(script), os.path.dirname(__file__), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    weights, history, memory = torch.load(tmp_path / "two.pt", weights_only=True)
    one, defense = plain(), Still()
    done = fit(one, images(61), defense, epochs=3, **OPTIONS)
    for name, w in one.state_dict().items():
        assert torch.allclose(w, weights[name], atol=1e-4)
    assert torch.allclose(defense.kept.float(), memory["kept"].float(), atol=2e-3)
    for alone, both in zip(done.history, history, strict=True):
        assert alone["gradients"] == both["gradients"] == 122
        assert both["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        assert both["clean_loss"] == pytest.approx(alone["clean_loss"], abs=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_mode_is_restored_and_training_happens_in_train_mode(mode):
    modes = []

    class Look(Standard):
        def loss(self, model, x, y, index):
            modes.append(model.training)
            return super().loss(model, x, y, index)

    model = network().train(mode)
    fit(model, images(), Look(), epochs=1, **OPTIONS)
    assert model.training is mode and all(modes)


def test_index_is_the_place_in_the_data_set():
    x, y = images()
    seen = []

    class Record(Standard):
        def loss(self, model, images, labels, index):
            assert torch.equal(images, x[index]) and torch.equal(labels, y[index])
            seen.extend(index.tolist())
            return super().loss(model, images, labels, index)

    fit(network(), torch.utils.data.TensorDataset(x, y), Record(), epochs=2, **OPTIONS)
    assert sorted(seen) == sorted(2 * list(range(60))) and seen[:60] != seen[60:]


def test_optimizer_of_choice():
    model, made = network(), []

    def adam(m):
        made.append(torch.optim.Adam(m.parameters(), 1e-2))
        return made[0]

    fit(model, images(), epochs=1, optimizer=adam, **OPTIONS)
    assert made[0].state and not same(model, network())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_bad_numbers_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        fit(network(), images(), **({"epochs": 1} | OPTIONS | change))


def test_bad_data_is_named():
    x, y = images()
    for data in ((x[:0], y[:0]), (x, y[:3]), (x,), torch.utils.data.TensorDataset(x)):
        with pytest.raises(ValueError, match="data"):
            fit(network(), data, epochs=1, **OPTIONS)
    with pytest.raises(ValueError, match="index"):
        fit(network(), iter([(x[0], y[0])]), epochs=1, **OPTIONS)
