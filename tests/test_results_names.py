"""Records name experiments, cases, networks, attacks and data sets that the code still has.

The names come from the code: each experiment is gone through without measuring anything, and asked
which numbers it would record.
"""

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import wotlab
from wotlab import data, models, results, training
from wotlab.experiments import hu, iwd_attacks, runner, strength, trials
from wotlab.experiments.__main__ import EXPERIMENTS, OF_EPOCHS

ROOT = Path(__file__).resolve().parents[1]
RECORDS = results.read(folder=ROOT / "results")
OURS = [r for r in RECORDS if r.command.startswith("python -m wotlab.experiments ")]
BENCHMARKS = [r for r in RECORDS if r.command.startswith("python benchmarks/")]


@dataclass(frozen=True)
class Dry(runner.Run):
    """Notes each number that it is asked for, and measures none."""

    def due(self, what, case):
        self.log.cases.add((what, case))
        return False

    def recorded(self, what, case):
        return None

    def load(self, split):
        return data.Images(
            self.dataset, torch.rand(20, 1, 8, 8), torch.arange(20) % 10, list("0123456789")
        )

    def test_images(self):
        return self.load("test").tensors()

    def network(self, name):
        return Ten()

    def networks(self):
        return list(runner.NETWORKS)


class Ten(nn.Module):
    """Ten logits, on any device that it is sent to."""

    def forward(self, x):
        return x.new_zeros(len(x), 10)

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """The numbers (what, case) of an experiment's name, for so many epochs, on CPU and GPU."""
    folder = tmp_path_factory.mktemp("dry")
    (folder / "imagenet").mkdir()  # so that whatever needs more is gone through, too
    for name in (hu.RADII, "subramanyam-mnist.safetensors", "subramanyam-mnist-whole.safetensors"):
        (folder / name).touch()

    @cache
    def of(name, epochs):
        found = set()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "build", lambda *args, **options: Ten())
            patch.setattr(models, "load_weights", lambda model, path: model)
            patch.setattr(trials, "train", lambda run, row: (Ten(), {}))
            patch.setattr(iwd_attacks, "right_ones", lambda setting, name: (
                Ten(), *setting.run.test_images(), {}
            ))  # fmt: skip
            for kind in ("cpu", "cuda"):
                device = SimpleNamespace(type=kind)
                run = Dry(folder, folder, folder, 1000, device, False, epochs=epochs)
                EXPERIMENTS[name](run)
                found |= run.log.cases
        return found

    return of


def test_every_command_is_one_of_the_code():
    assert OURS and BENCHMARKS and len(OURS) + len(BENCHMARKS) == len(RECORDS)
    for record in OURS:
        assert shlex.split(record.command)[3] in EXPERIMENTS, record.command
    for record in BENCHMARKS:
        assert (ROOT / shlex.split(record.command)[1]).is_file(), record.command


def epochs_of(record) -> int | None:
    words = shlex.split(record.command)
    return int(words[words.index("--epochs") + 1]) if "--epochs" in words else None


def test_every_case_is_one_that_its_experiment_would_record(numbers):
    for record in OURS:
        name, epochs = shlex.split(record.command)[3], epochs_of(record)
        assert epochs is None or name in OF_EPOCHS, record.command
        assert (record.what, record.case) in numbers(name, epochs), (name, record.case)


def test_every_experiment_has_numbers(numbers):
    for name in EXPERIMENTS:
        assert numbers(name, None), name
    strengths = {case for what, case in numbers("strength", None) if what == strength.WHAT}
    assert strengths >= {f"ours-{attack}-eps-{b}" for attack in strength.ATTACKS
                         for b in strength.BUDGETS}  # fmt: skip
    assert "hu2020-transport-eps-400-window-5" in strengths
    assert "hu2020-transport-eps-100-window-5" not in strengths


def test_benchmarks_still_record_what_is_recorded():
    for record in BENCHMARKS:
        text = (ROOT / shlex.split(record.command)[1]).read_text()
        assert f'"{record.what}"' in text, record.what
        if record.what == "attack-table":
            assert f'"{record.case}"' in text, record.case


def test_data_sets_have_the_titles_of_the_code():
    for record in OURS:
        assert record.samples.startswith(tuple(runner.TITLES.values())), record.samples
    for record in BENCHMARKS:
        script = ROOT / shlex.split(record.command)[1]
        text = script.read_text() + (script.parent / "common.py").read_text()
        data_set = record.samples.split(" images ")[0].split()[0]  # its split is a variable there
        assert data_set in text, record.samples


def test_details_name_what_there_is():
    for record in RECORDS:
        details = record.details
        network = details.get("network", "wong-mnist")
        assert network in (*runner.NETWORKS, *models.names()), network
        if record.what == strength.WHAT:
            assert details["attack"] in strength.ATTACKS
        if "defense" in details:
            assert details["defense"] in training.__all__
        for key in ("ball", "budget", "defense_ball"):  # written as the code would write them
            if details.get(key) not in (None, "None"):
                assert repr(eval(details[key], vars(wotlab).copy())) == details[key]
