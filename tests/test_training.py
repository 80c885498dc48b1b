"""One training loop: it learns, repeats itself bit for bit, and survives being killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import wotlab
from wotlab import WassersteinBall, attacks, models, training
from wotlab.training import Standard, fit


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


def test_same_seed_same_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    one, two, other = network(), network(), network()
    for model, seed in ((one, 3), (two, 3), (other, 4)):
        fit(model, images(), epochs=2, seed=seed, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, two) and not same(one, other)


def test_resumed_equals_uninterrupted(tmp_path):
    whole, parts = network(), network()
    long = fit(whole, images(), epochs=5, **OPTIONS)
    fit(parts, images(), epochs=2, checkpoint=tmp_path / "c.pt", **OPTIONS)
    again = network(seed=9)  # the checkpoint, not this, says where to go on from
    short = fit(again, images(), epochs=5, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert same(whole, again)
    assert [e["loss"] for e in short.history] == [e["loss"] for e in long.history]


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_training as t
class Slow(t.Standard):
    def loss(self, model, x, y, index):
        time.sleep(float(sys.argv[3]))
        return super().loss(model, x, y, index)
Slow.__name__ = "Standard"
model = t.network()
t.fit(model, t.images(), Slow(), epochs=6, checkpoint=sys.argv[2] + "/c.pt", **t.OPTIONS)
t.torch.save(model.state_dict(), sys.argv[2] + "/end.pt")
"""


def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(tmp_path):
    here = os.path.dirname(__file__)
    start = lambda pause: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", SCRIPT, here, str(tmp_path), str(pause)]
    )
    first = start(0.1)
    patience = time.monotonic() + 60
    while not (tmp_path / "c.pt").exists() and time.monotonic() < patience:
        time.sleep(0.05)
    time.sleep(0.15)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert (tmp_path / "c.pt").exists() and not (tmp_path / "end.pt").exists()
    assert start(0).wait() == 0
    whole, resumed = network(), network(seed=1)
    fit(whole, images(), epochs=6, **OPTIONS)
    resumed.load_state_dict(torch.load(tmp_path / "end.pt", weights_only=True))
    assert same(whole, resumed)


def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    fit(network(), images(), epochs=1, checkpoint=path, **OPTIONS)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        fit(network(), images(), epochs=2, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    fit(network(), images(), epochs=1, checkpoint=path, **OPTIONS)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="another network"):
        fit(wide, images(), epochs=2, checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match="batch_size"):
        fit(network(), images(), epochs=2, checkpoint=path, **(OPTIONS | {"batch_size": 8}))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="delete it"):
        fit(network(), images(), epochs=2, checkpoint=path, **OPTIONS)


def test_loss_that_is_not_finite_stops_at_the_last_good_epoch(tmp_path):
    path = tmp_path / "c.pt"
    fit(network(), images(), epochs=1, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    x, y = images()
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(network(), (x * torch.nan, y), epochs=2, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before


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
    assert set(training.__all__) == {"Fit", "Standard", "WassersteinAT", "fit"}


def test_wasserstein_at_trains_on_attacked_images_and_grows_its_ball():
    x, y = wotlab.data.load("digits", "train").tensors(slice(0, 64))
    seen = []

    def attack(model, x, y, ball):
        seen.append(ball.eps)
        return attacks.mirror_ascent(model, x, y, ball, steps=2, early_stop=False)

    defense = training.WassersteinAT(WassersteinBall(0.3), lambda epoch: 0.1 * (epoch + 1), attack)
    model = models.build("digits-small", seed=0)
    index = torch.arange(64)
    loss, clean = (d.loss(model, x, y, index).detach() for d in (defense, training.Standard()))
    assert float(loss) > float(clean)
    fit(model, (x, y), defense, epochs=3, batch_size=32, progress=False)
    assert seen[1:] == [0.1, 0.1, 0.2, 0.2, pytest.approx(0.3), pytest.approx(0.3)]


@pytest.mark.slow
def test_wasserstein_at_makes_a_network_more_robust():
    data = wotlab.data.load("digits", "train").tensors()
    x, y = wotlab.data.load("digits", "test").tensors()
    ball, robust = WassersteinBall(0.15), []
    for defense in (training.Standard(), training.WassersteinAT(ball)):
        model = models.build("digits-small", seed=0)
        fit(model, data, defense, epochs=15, lr=0.05, progress=False)
        done = attacks.transport(model, x, y, ball, steps=30, restarts=1)
        robust.append(1 - float(done.success.float().mean()))
    assert robust[1] > robust[0] + 0.15
