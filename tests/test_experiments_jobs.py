"""Experiments in several processes: the same records, no work twice, no end that is not told."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import shared_work
import torch
from torch import nn

from wotlab import data, models, results, training
from wotlab.experiments import __main__ as command
from wotlab.experiments import (
    certificates,
    colour,
    jobs,
    runner,
    strength,
    subramanyam,
    trials,
    yardstick,
)
from wotlab.experiments.runner import Groups, Log, Missing, Run, Step


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    """What a record says of how it was made: nothing of the tests' own."""
    monkeypatch.setattr(sys, "argv", ["experiments"])


def call(folder):
    """The settings of a call in a folder of its own."""
    folder.mkdir()
    return Run(folder, folder, folder / "out", 6, torch.device("cpu"), False)


def told(run):
    """The records without what every call has of its own."""
    own = ("seconds", "date", "command", "commit")  # somebody may commit meanwhile
    records = [
        {k: v for k, v in vars(r).items() if k not in own} for r in results.read("toy", run.out)
    ]
    for record in records:
        record["details"] = {k: v for k, v in record["details"].items() if k != "threads"}
    return records


def test_two_processes_record_what_one_does_and_share_no_row(tmp_path, single_thread):
    one, two = call(tmp_path / "one"), call(tmp_path / "two")
    logs = [jobs.measure(one, shared_work.table, 1), jobs.measure(two, shared_work.table, 2)]
    assert told(one) == told(two) and len(told(one)) == 14
    assert logs[0] == logs[1] and len(logs[0].measured) == 14
    assert {pid for pid, _ in shared_work.notes(one)} == {os.getpid()}
    notes = shared_work.notes(two)
    assert len({pid for pid, _ in notes} - {os.getpid()}) == 2
    for row in "abcd":
        ours = [(pid, what) for pid, what in notes if row in what.split("-")]
        assert [what.split("-")[0] for _, what in ours].count("trained") == 1
        assert len(ours) == 4 and len({pid for pid, _ in ours}) == 1
    before = {path: path.stat().st_mtime_ns for path in two.out.rglob("*.json")}
    lost = {path for path in before if path.stem in ("b-pgd", "c-clean", "c-pgd")}
    for path in lost:  # as if killed before them
        path.unlink()
    (two.data / "log").unlink()
    log = jobs.measure(two, shared_work.table, 2)
    assert log.measured == {"b-pgd", "c-clean", "c-pgd"} and told(two) == told(one)
    again = sorted(what for _, what in shared_work.notes(two))
    assert again == ["b-pgd", "c-clean", "c-pgd", "trained-b", "trained-c"]
    changed = {path for path, date in before.items() if path.stat().st_mtime_ns != date}
    assert changed == lost


def test_what_rows_go_on_from_is_trained_once(tmp_path, single_thread):
    one, two = call(tmp_path / "one"), call(tmp_path / "two")
    for run, count in ((one, 1), (two, 2)):
        jobs.measure(run, shared_work.started, count)
        assert [what for _, what in shared_work.notes(run)] == ["minibatch"] * 8
    assert told(one) == told(two) and len(told(two)) == 4


def test_what_ends_a_process_is_told_in_one_line_and_ends_no_other(tmp_path, monkeypatch, capsys):
    run = call(tmp_path / "run")
    monkeypatch.setitem(command.EXPERIMENTS, "iwd-critic", shared_work.ending)
    words = ["iwd-critic", "--out", str(run.out), "--data", str(run.data), "--jobs", "4"]
    monkeypatch.setattr(sys, "argv", ["experiments", *words, "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.count("\n") == 1
    assert said.err.startswith("error: iwd-critic cannot go on: ")
    for reason in (
        "no such images", "ZeroDivisionError in shared_work.py, line ", "with exit code -9"
    ):  # fmt: skip
        assert said.err.count(reason) == 1
    records = results.read("toy", run.out)
    assert [record.keys["row"] for record in records] == ["a", "b"]
    assert all("--jobs 4" in record.command for record in records)
    assert sorted(said.out.splitlines()) == ["toy a: -0.25 %", "toy b: -0.25 %"]


SCRIPT = """
import sys, pathlib, signal, torch, shared_work
from wotlab.experiments import jobs
from wotlab.experiments.runner import Run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    here = pathlib.Path(sys.argv[1])
    run = Run(here, here, here, 6, torch.device("cpu"), False)
    jobs.measure(run, shared_work.forever, 2)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_end_of_the_call_ends_its_processes(tmp_path, end):
    (tmp_path / "call.py").write_text(SCRIPT)
    paths = os.pathsep.join([os.path.dirname(shared_work.__file__), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "call.py", tmp_path], stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths}, start_new_session=True,
    )  # fmt: skip
    run, until = Run(tmp_path, tmp_path, tmp_path, 6, torch.device("cpu"), False), time.time() + 600
    try:
        while not (tmp_path / "log").exists() or len(shared_work.notes(run)) < 2:
            assert time.time() < until and parent.poll() is None
            time.sleep(0.1)
        if end == signal.SIGINT:
            os.killpg(parent.pid, end)  # as a terminal sends it, to all of them
        else:
            parent.kill()
        assert parent.wait(60) != 0
        if end == signal.SIGINT:
            assert parent.stderr.read().count(b"Traceback") == 1  # the parent's alone
        for pid, _ in shared_work.notes(run):
            while is_running(pid):
                assert time.time() < until
                time.sleep(0.1)
    finally:
        parent.kill()


def is_running(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it is gone
        return False


def test_cells_share_what_has_the_same_function(tmp_path):
    run, groups = call(tmp_path / "run"), Groups()
    named = [groups.of(cell) for cell in shared_work.table(run)]
    rows = [f"toy {row}-meet" for row in "abcd"]
    assert named == rows * 3 + ["toy alone", "toy alone-more"]


def test_one_group_needs_no_process(tmp_path, monkeypatch):
    run = replace(call(tmp_path / "run"), only="a-*")
    monkeypatch.setattr(jobs, "get_context", None)
    assert len(jobs.measure(run, shared_work.table, 8).measured) == 3
    assert {pid for pid, _ in shared_work.notes(run)} == {os.getpid()}
    assert not jobs.measure(run, shared_work.table, 8).measured  # nor none at all


def test_what_is_left_is_trainings_and_measurements():
    """Of a group not begun the mean training, of a cell the mean measurement."""
    ahead = Log(recorded=90)
    ahead.due.update(a=3, b=3, c=3, gone=1)
    for processes, share in ((1, 1), (2, 2), (8, 3)):
        progress = jobs.Progress(ahead, processes)
        assert (progress.bar.total, progress.bar.n) == (100, 90)
        progress.tell(Step("a", "", 100.0, 1.0))
        assert progress.left() == pytest.approx((3 * 100 + 9) / (4 if processes == 8 else share))
        progress.tell(Step("gone", "left out"))
        assert progress.left() == pytest.approx((2 * 100 + 8) / share)
        progress.tell(Step("a", "", 0.0, 5.0))
        assert progress.left() == pytest.approx((2 * 100 + 7 * 3) / share)
        progress.tell(Step("b", "", 60.0, 3.0))
        assert progress.left() == pytest.approx((80 + 6 * 3) / share)
        for group in "abbccc":
            progress.tell(Step(group, "", 0.0, 3.0))
        assert progress.left() == 0
    assert ahead.due.total() == 10


def test_the_bar_tells_how_many_are_done_and_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = call(tmp_path / "run")
    jobs.measure(replace(run, only="[ab]-clean"), shared_work.table)
    assert "2 of 2 cells" in capsys.readouterr().err
    jobs.measure(run, shared_work.table)
    said = capsys.readouterr()
    assert "2 of 14 cells" in said.err and "14 of 14 cells" in said.err
    assert ", about 00:00 left" in said.err and len(said.out.splitlines()) == 12


def test_every_experiment_can_be_sent_to_a_process():
    for experiment in command.EXPERIMENTS.values():
        assert repr(pickle.loads(pickle.dumps(experiment))) == repr(experiment)


SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "svhn": (3, 32, 32),
          "photographs": (3, 130, 340)}  # fmt: skip


OTHERS = {"iwd-photographs", "iwd-pictures"}  # read no data set of `load`, and once: their own test


@pytest.mark.parametrize("name", sorted(command.EXPERIMENTS.keys() - OTHERS))
def test_no_experiment_reads_a_data_set_twice(name, tmp_path, monkeypatch):
    """On noise, with trainings that learn nothing: what its cells are given and measured on."""
    read, fetched = Counter(), runner.loaded
    fetched.cache_clear()

    def noise(name, split="test", *given, **how):
        read[name, split] += 1
        return data.Images(name, torch.rand(20, *SHAPES.get(name, (1, 28, 28))),
                           torch.arange(20) % 10, list("0123456789"))  # fmt: skip

    def build(*given, **how):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    def fitted(model, *given, **how):
        return model, {}

    monkeypatch.setattr(data, "load", noise)
    monkeypatch.setattr(models, "build", build)
    monkeypatch.setattr(Run, "network", lambda run, file: build())
    monkeypatch.setattr(training, "fit", lambda *given, **how: training.Fit([{"gradients": 0}]))
    for module in (trials, strength, subramanyam, certificates, colour, yardstick):
        monkeypatch.setattr(module, "fitted", fitted)
    for file in {file for named in runner.NETWORKS.values() for file in named.values()}:
        (tmp_path / file).touch()
    run = Run(tmp_path, tmp_path, tmp_path / "out", 20, torch.device("cpu"), False)
    asked = 0
    for cell in command.EXPERIMENTS[name](run):
        try:
            cell.given()
        except Missing:  # of a training that another experiment makes
            continue
        if cell.run.dataset in data.NAMES and name != "iwd-critic":  # which is given its digit
            cell.run.test_images()
        asked += 1
    fetched.cache_clear()  # of noise
    assert asked and read and set(read.values()) == {1}, (asked, read)
