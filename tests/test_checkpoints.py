"""Checkpoints: a killed run goes on as if nothing had been; another run is refused, by name."""

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from killed import Stop, stopping
from test_training import OPTIONS, images, network, same
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import wotlab
from wotlab import InternalWassersteinBall, LinfBall, WassersteinBall, attacks, training
from wotlab._base.settings import describe, of_data, over_epochs
from wotlab.gibbs import Chain
from wotlab.training import GOT, IWDD, MART, PGDAT, TRADES, AdversarialTransport, Standard, fit
from wotlab.training._checkpoints import SEAL
from wotlab.training._defenses import pgd_adversary


def test_resumed_equals_uninterrupted(tmp_path):
    whole, parts = network(), network()
    long = fit(whole, images(), epochs=5, **OPTIONS)
    fit(parts, images(), epochs=2, checkpoint=tmp_path / "c.pt", **OPTIONS)
    again = network(seed=9)  # the checkpoint, not this, says where to go on from
    short = fit(again, images(), epochs=5, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert same(whole, again)
    assert [e["loss"] for e in short.history] == [e["loss"] for e in long.history]


class Remember(AdversarialTransport):
    """A defense with a state of its own, and noise."""

    def __init__(self):
        super().__init__(LinfBall(0.1))


@pytest.mark.parametrize("defense", [Standard, Remember])
def test_resumed_within_an_epoch_equals_uninterrupted(defense, tmp_path):
    whole, again = network(), network(seed=9)
    options = OPTIONS | {"epochs": 3}
    long = fit(whole, images(), defense(), **options)
    options |= {"checkpoint": tmp_path / "c.pt", "save_every": 1e-9}
    with pytest.raises(Stop):
        fit(network(), images(), stopping(defense, 7)(), **options)  # in the second epoch
    assert torch.load(tmp_path / "c.pt", weights_only=True)["position"] == 2
    short = fit(again, images(), defense(), **options)
    assert same(whole, again)
    for one, two in zip(long.history, short.history, strict=True):
        assert all(one[k] == two[k] for k in ("loss", "clean_loss", "gradients"))


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_checkpoints as t
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


def test_loss_that_is_not_finite_stops_at_the_last_good_epoch(tmp_path):
    class Later(Standard):
        def loss(self, model, x, y, index):
            return super().loss(model, x, y, index) * (torch.nan if self._epoch >= 1.5 else 1)

        def at_epoch(self, epoch):
            self._epoch = epoch

    path = tmp_path / "c.pt"
    fit(network(), images(), Later(), epochs=1, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(network(), images(), Later(), epochs=2, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before


def sgd(**options):
    return lambda m: torch.optim.SGD(m.parameters(), **({"lr": 0.1} | options))


LINF, X = LinfBall(0.1), images()[0]


def runs() -> dict:
    """What a checkpoint is begun with, what it is to go on with, what differs."""
    return {
        "ball": ({"defense": PGDAT(LINF)}, {"defense": PGDAT(LinfBall(0.3))}, "defense.ball.eps"),
        "kind of ball": ({"defense": PGDAT(LINF)}, {"defense": PGDAT(wotlab.L2Ball(0.1))}, "ball"),
        "steps": (
            {"defense": PGDAT(LINF, attack=pgd_adversary(2))},
            {"defense": PGDAT(LINF, attack=pgd_adversary(3))},
            "defense.attack.steps",
        ),
        "attack": (
            {"defense": PGDAT(LINF, attack=partial(attacks.pgd, steps=1))},
            {"defense": PGDAT(LINF, attack=partial(attacks.fgsm))},
            "defense.attack",
        ),
        "lambda": (
            {"defense": PGDAT(LINF, attack=lambda m, x, y, b: attacks.pgd(m, x, y, b, steps=1))},
            {"defense": PGDAT(LINF, attack=lambda m, x, y, b: attacks.pgd(m, x, y, b, steps=2))},
            "defense.attack",
        ),
        "eps": (
            {"defense": PGDAT(LINF, lambda epoch: 0.1 * epoch, pgd_adversary(1))},
            {"defense": PGDAT(LINF, lambda epoch: 0.2 * epoch, pgd_adversary(1))},
            "defense.eps",
        ),
        "beta": (
            {"defense": TRADES(LINF, attack=pgd_adversary(1, "kl"))},
            {"defense": TRADES(LINF, attack=pgd_adversary(1, "kl"), beta=3.0)},
            "defense.beta",
        ),
        "defense": ({"defense": PGDAT(LINF, attack=pgd_adversary(1))},
                    {"defense": MART(LINF, attack=pgd_adversary(1))}, "defense"),
        "chain": ({"defense": AdversarialTransport(LINF, chain=Chain("sign"))},
                  {"defense": AdversarialTransport(LINF, chain=Chain("sign", eta=0.1))},
                  "defense.chain.eta"),
        "term": (
            {"defense": GOT(PGDAT(LINF, attack=pgd_adversary(1)))},
            {"defense": GOT(
                PGDAT(LINF, attack=pgd_adversary(1)), training.JointTransport(reg=0.2)
            )},
            "defense.term.reg",
        ),
        "schedule": ({"schedule": lambda epoch: 0.5**epoch}, {"schedule": lambda epoch: 0.6**epoch},
                     "schedule"),
        "no schedule": ({"schedule": lambda epoch: 0.5**epoch}, {"schedule": None}, "schedule"),
        "optimizer": ({"optimizer": sgd()}, {"optimizer": sgd(momentum=0.5)},
                      "optimizer.1.momentum"),
        "lr": ({"lr": 0.1}, {"lr": 0.2}, "optimizer.1.lr"),
        "validate added": ({}, {"validate": lambda m: 1.0}, r"validate \(then None, now given\)"),
        "validate dropped": ({"validate": lambda m: 1.0}, {}, r"validate \(then given, now None\)"),
        "images": ({}, {"data": (1 - X, images()[1])}, r"data \(then 60 images"),
        "labels": ({}, {"data": (X, 1 - images()[1])}, "data"),
        "size": ({}, {"data": images(59)}, "data"),
        "network": ({}, {"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 2))}, "network"),
        "batch_size": ({}, {"batch_size": 8}, r"batch_size \(then 16, now 8\)"),
        "seed": ({}, {"seed": 1}, "seed"),
    }  # fmt: skip


@pytest.mark.parametrize("what", runs())
def test_another_run_is_refused_and_says_where_it_differs(what, tmp_path):
    begun, resumed, named = runs()[what]
    options = OPTIONS | {"checkpoint": tmp_path / "c.pt", "epochs": 1}
    for change, raises in ((begun, False), (begun, False), (resumed, True)):
        given = {"model": network(), "data": images()} | options | change
        if raises:
            with pytest.raises(ValueError, match=named):
                fit(**given)
        else:
            fit(**given)


ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_checkpoints as t
print(t.words())
"""


def words() -> dict:
    """Defenses of all kinds, in words."""
    wide = {"kept", "wide", "far"}
    defenses = [
        *(run[0].get("defense", Standard()) for run in runs().values()),
        PGDAT(LINF, attack=lambda m, x, y, ball: x if ball in {"a", "b", "c"} else wide),
        IWDD(InternalWassersteinBall(0.1, tile=4), attack=partial(attacks.pgd, steps=3)),
        training.WassersteinAT(WassersteinBall(0.2), lambda epoch: 0.1 * LINF.eps * epoch),
        AdversarialTransport(LINF, augment=partial(torch.flip, dims=(3,))),
    ]
    return {k: v for n, each in enumerate(defenses) for k, v in describe(f"{n}", each).items()}


def test_the_words_are_the_same_in_another_process():
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, here], check=True,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout.strip() == str(words())
    assert "0x" not in done.stdout


def test_a_defense_that_has_worked_is_described_as_a_new_one(digits, tmp_path):
    linf = PGDAT(LINF, attack=pgd_adversary(1))
    free = training.FreeAT(LINF, repeats=2, eps=lambda epoch: 0.1 * epoch)
    chain = AdversarialTransport(LINF, eps=lambda epoch: 0.1 * epoch)
    for defense in (free, chain, GOT(linf)):
        for epochs in (1, 2):
            done = fit(wotlab.models.build("digits-small", seed=0), digits, defense, epochs=epochs,
                       checkpoint=tmp_path / f"{type(defense).__name__}.pt", **OPTIONS)  # fmt: skip
        assert done.epochs == 2


def test_two_ways_to_write_a_schedule_are_one():
    def halves(epoch):
        return 2.0**-epoch

    assert over_epochs(halves) == over_epochs(lambda e: 0.5**e)
    rates = [0.1, 0.01]
    assert over_epochs(lambda e: rates[int(e)]) != over_epochs(lambda e: [0.1, 0.02][int(e)])


class Flipped(Dataset):
    """Images, now and then mirrored."""

    def __init__(self, x, y, chance: float):
        self.x, self.y, self.chance = x, y, chance

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        x = self.x[k].flip(2) if torch.rand(()) < self.chance else self.x[k]
        return x, int(self.y[k])


def test_data_sets_are_told_apart_by_images_and_labels_but_not_by_chance():
    x, y = images()
    for chance in (0.0, 0.5):
        before = torch.get_rng_state()
        one = of_data(Flipped(x, y, chance))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)  # another state of the generator
        assert one == of_data(Flipped(x.clone(), y, chance)) != of_data(Flipped(x, 1 - y, chance))
    assert of_data(Flipped(x, y, 0.0)) != of_data(Flipped(1 - x, y, 0.0))
    assert of_data(TensorDataset(x, y)) != of_data(TensorDataset(x.roll(1, 0), y))


def test_images_that_no_seed_repeats_are_told_apart_by_their_labels():
    """Chance of another generator than the one that is seeded for the look."""
    draw = torch.Generator()

    class Noisy(Flipped):
        def __getitem__(self, k):
            x, label = super().__getitem__(k)
            return x + torch.rand(x.shape, generator=draw), label

    x, y = images()
    noisy = Noisy(x, y, 0.0)
    assert of_data(noisy) == of_data(noisy) != of_data(Noisy(x, 1 - y, 0.0))


def test_a_checkpoint_runs_no_code(tmp_path):
    """Nor does one whose seal is right."""

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    content = io.BytesIO()
    torch.save({"run": {}, "more": Touch()}, content)
    body = content.getvalue()
    (tmp_path / "c.pt").write_bytes(body + SEAL + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(pickle.UnpicklingError):
        fit(network(), images(), epochs=1, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert not (tmp_path / "touched").exists()


def test_a_folder_that_is_not_there_is_made(tmp_path):
    path = tmp_path / "of" / "today" / "c.pt"
    fit(network(), images(), epochs=1, checkpoint=path, **OPTIONS)
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = tmp_path / "c.pt"
    fit(network(), images(), epochs=1, checkpoint=path, **OPTIONS)
    whole = path.read_bytes()
    for place in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="damaged"):
            fit(network(), images(), epochs=2, checkpoint=path, **OPTIONS)
    for damaged in (b"", whole[:300], whole[:-1], whole + b"0", b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="delete it"):
            fit(network(), images(), epochs=2, checkpoint=path, **OPTIONS)
    path.write_bytes(whole)
    assert fit(network(), images(), epochs=2, checkpoint=path, **OPTIONS).epochs == 2
