"""The command line of the experiments: what is wrong is said in one line, before anything runs."""

import re
import sys
from functools import partial

import pytest
import torch

from wotlab import data, evaluate, results
from wotlab.experiments import __main__ as command
from wotlab.experiments import runner, trials


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own: its exit status, and the lines that it says."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "nets"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")

    def run(*words, data="data"):
        monkeypatch.setattr(sys, "argv", ["experiments", *words, "--data", data])
        capsys.readouterr()
        try:
            command.main()
            status = 0
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, (said.err or said.out).splitlines()

    return run


BEFORE = ["data", "file", "nets"]  # what lies there before a call, and after one that failed


def toy(run):
    """An experiment of three numbers."""
    for training, attack in (("fast", "clean"), ("fast", "pgd"), ("slow", "clean")):
        keys = {"training": training, "attack": attack}
        yield runner.Cell("toy", keys, run, lambda: evaluate.share(1, 2))


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(command.EXPERIMENTS, "mnist-robust-accuracy", toy)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--images", "0"), "argument --images: must be a positive integer; got '0'"),
        (("--images", "-5"), "argument --images: must be a positive integer; got '-5'"),
        (("--images", "all"), "argument --images: must be a positive integer; got 'all'"),
        (("--epochs", "0"), "argument --epochs: must be a positive integer; got '0'"),
        (("--epochs", "2"), "argument --epochs: mnist-robust-accuracy does not take it"),
        (("--device", "foo"), "argument --device: 'foo' is not at hand"),
        (("--out", "file"), "argument --out: no folder can be made at file"),
        (("--out", "file/below"), "argument --out: no folder can be made at file/below"),
        (("--checkpoints", "nowhere"), "argument --checkpoints: there is no folder nowhere"),
        (("--checkpoints", "file"), "argument --checkpoints: there is no folder file"),
        (("--jobs", "0"), "argument --jobs: must be a positive integer; got '0'"),
        (("--jobs", "2", "--device", "meta"), "argument --jobs: 2 processes would take turns on"),
        (("--only", "other-*"), "argument --only: no case is 'other-*'; there are fast-clean, "),
    ],
)
def test_bad_words_are_refused_in_one_line(call, toys, tmp_path, words, says):
    status, lines = call("mnist-robust-accuracy", *words)
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {says}")
    assert sorted(path.name for path in tmp_path.iterdir()) == BEFORE


def test_bad_data_and_names_are_refused_in_one_line(call):
    assert call("mnist-robust-accuracy", data="nowhere") == (
        2, ["error: argument --data: there is no folder nowhere"]
    )  # fmt: skip
    status, lines = call("hu-table-7")
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: argument name: invalid")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(call, toys):
    status, lines = call("mnist-robust-accuracy", "--device", "cuda")
    assert status == 2 and len(lines) == 1 and "'cuda' is not at hand" in lines[0]


def test_epochs_are_for_those_that_train_for_so_many(call, monkeypatch):
    """Every other experiment refuses them; these hand them on to their trainings."""
    for name in command.EXPERIMENTS:
        given = []
        monkeypatch.setitem(command.EXPERIMENTS, name, partial(noting, given))
        status, lines = call(name, "--epochs", "3")
        assert status == 2 and len(lines) == 1
        if name in command.OF_EPOCHS:
            assert given[0].epochs == 3
        else:
            assert not given and lines == [f"error: argument --epochs: {name} does not take it"]


def test_numbers_are_measured_once_and_anew_where_asked(call, toys, tmp_path):
    def dates():
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*.json")}

    assert call("mnist-robust-accuracy")[0] == 0
    first = dates()
    assert len(first) == 3
    status, lines = call("mnist-robust-accuracy")
    assert status == 0 and dates() == first
    assert lines == ["everything is recorded already in results; --anew measures it again"]
    for only, changed in (("fast-*", 2), ("slow-clean", 1), ("fast", None)):
        before = dates()
        status, lines = call("mnist-robust-accuracy", "--only", only, "--anew")
        assert status == (0 if changed else 2)
        assert sum(dates()[name] != before[name] for name in before) == (changed or 0)
        assert changed or lines[0].startswith("error: argument --only: no case is 'fast'")
    assert call("mnist-robust-accuracy", "--only", "fast-*") == (
        0, ["everything is recorded already in results; --anew measures it again"]
    )  # fmt: skip
    assert call("mnist-robust-accuracy", "--anew")[0] == 0
    assert all(dates()[name] != first[name] for name in first)


def test_a_case_alone_is_measured_where_nothing_is_recorded(call, toys, tmp_path):
    call("mnist-robust-accuracy", "--only", "fast-pgd", "--out", "new")
    (record,) = results.read("toy", tmp_path / "new")
    assert record.keys == {"training": "fast", "attack": "pgd"}
    assert "--only fast-pgd" in record.command and "new" not in record.command


def noting(given, run):
    given.append(run)
    return []


@pytest.mark.parametrize("name", sorted(command.EXPERIMENTS.keys() - command.BY_ITSELF))
def test_without_data_and_networks_nothing_ends_well(call, name, tmp_path):
    status, lines = call(name, "--device", "cpu")
    assert status == 2, name
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert not re.search(r"download|root=|WOTLAB_DATA", lines[0])  # no options of this command
    assert sorted(path.name for path in tmp_path.iterdir()) == BEFORE


def test_without_networks_nothing_ends_well(call, monkeypatch):
    x = torch.rand(20, 1, 28, 28)
    images = data.Images("mnist", x, torch.zeros(20).long(), list("0123456789"))
    monkeypatch.setattr(runner.Run, "load", lambda run, split: images)
    assert call("mnist-robust-accuracy", "--images", "20", "--checkpoints", "nets") == (
        2, ["error: mnist-robust-accuracy found nothing to do: it needs networks in nets"]
    )  # fmt: skip
    status, lines = call("hu-table-2", "--images", "20", "--checkpoints", "nets")
    assert status == 2 and lines[0].startswith(
        "error: hu-table-2 cannot go on: there are no weights"
    )
    status, lines = call("hu-table-6", "--images", "21", "--checkpoints", "nets")
    assert status == 2 and lines[0].endswith("20 test images of MNIST; --images asks for 21")


def test_a_row_alone_is_trained(call, monkeypatch, tmp_path):
    """Of `linf-training` only the network that is asked for, and only what is asked of it."""
    trained, judged = [], []

    def train(run, row):
        trained.append(row.keys["training"])
        return None, {}

    def judge(run, attack, ball, model, details):
        judged.append(attack)
        return evaluate.share(1, 2)

    monkeypatch.setattr(trials, "train", train)
    monkeypatch.setattr(trials, "judged", judge)
    assert call("linf-training", "--only", "fast-*")[0] == 0
    assert trained == ["fast"] and len(judged) == 5
    assert call("linf-training", "--only", "fast-autoattack", "--anew")[0] == 0
    assert trained == ["fast"] * 2 and len(judged) == 6
    (record,) = [r for r in results.read("linf-training", tmp_path / "results")
                 if r.keys["attack"] == "autoattack"]  # fmt: skip
    assert record.samples == "MNIST test images 0 to 499"


def test_a_network_that_is_left_out_is_named(call):
    status, lines = call("subramanyam-table-2", "--checkpoints", "nets", "--device", "cpu")
    assert status == 2 and lines == [
        "error: subramanyam-table-2 found nothing to do: there are no weights of standard in nets"
    ]


def test_help_lists_every_experiment_with_what_it_needs(call):
    status, lines = call("--help")
    assert status == 0
    listed = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()}
    about = [lines[lines.index(listed[name]) + 1].strip() for name in command.EXPERIMENTS]
    assert len(set(about)) == len(about) and "" not in about  # each says its own
    for paper, rows in command.PAPERS.items():
        assert paper in lines
        for name, (needs, _) in rows.items():
            assert needs in listed[name]
    assert listed["mnist-robust-accuracy"].endswith(" min")  # its records' time


def test_data_is_asked_for_only_where_it_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments", "mnist-robust-accuracy"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: argument --data: mnist-robust-accuracy needs it\n"
