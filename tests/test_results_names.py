"""Records name experiments, cells, networks, attacks and data sets that the code still has.

The names come from the code: each experiment is gone through without measuring anything, and asked
which numbers it would record.
"""

import re
import shlex
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import wotlab
from wotlab import models, results, training
from wotlab.experiments import runner, strength, subramanyam
from wotlab.experiments.__main__ import ABOUT, EXPERIMENTS, OF_EPOCHS
from wotlab.experiments.reproductions import cells

ROOT = Path(__file__).resolve().parents[1]
RECORDS = results.read(folder=ROOT / "results")
OURS = [r for r in RECORDS if r.command.startswith("python -m wotlab.experiments ")]
BENCHMARKS = [r for r in RECORDS if r.command.startswith("python benchmarks/")]


@cache
def numbers(name, epochs):
    """An experiment's cells by (what, name), for so many epochs, on CPU and GPU."""
    return {(cell.what, cell.name): cell for cell in cells(name, epochs)}


def test_every_command_is_one_of_the_code():
    assert OURS and BENCHMARKS and len(OURS) + len(BENCHMARKS) == len(RECORDS)
    for record in OURS:
        assert shlex.split(record.command)[3] in EXPERIMENTS, record.command
    for record in BENCHMARKS:
        assert (ROOT / shlex.split(record.command)[1]).is_file(), record.command


def epochs_of(record) -> int | None:
    words = shlex.split(record.command)
    return int(words[words.index("--epochs") + 1]) if "--epochs" in words else None


def test_every_case_is_one_that_its_experiment_would_record():
    for record in OURS:
        name, epochs = shlex.split(record.command)[3], epochs_of(record)
        assert epochs is None or name in OF_EPOCHS, record.command
        cell = numbers(name, epochs).get((record.what, results.name(record.keys)))
        assert cell is not None and record.keys == cell.keys, (name, record.keys)
        assert (record.printed, record.source) == (cell.printed, cell.source), record.keys
        words = shlex.split(record.command)
        pattern = words[words.index("--only") + 1] if "--only" in words else "*"
        assert fnmatchcase(cell.name, pattern), (record.command, cell.name)


def test_every_folder_is_called_like_its_experiment_or_help_names_it():
    for name in EXPERIMENTS:
        for what in {what for what, _ in numbers(name, None)} - {name}:
            assert what in ABOUT[name], (name, what)


def test_every_command_in_prose_is_one_of_the_code():
    text = "".join(
        path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("book/*.[im][pd]*"))
    )
    named = re.findall(r"python -m wotlab\.experiments ([a-z][a-z0-9-]+)", text)
    assert len(named) > 5 and set(named) <= {*EXPERIMENTS, "zoo"}


def test_every_printed_number_is_the_papers():
    """A cell has what stands in the CSV of the paper and the table that its source names."""
    files = {title: paper for paper, title in runner.PAPERS.items()}
    printed = set()
    for name in EXPERIMENTS:
        for (what, of), cell in numbers(name, None).items():
            if cell.printed is None:
                assert cell.source is None
                continue
            title, _, place = cell.source.rpartition(", ")  # "table 3", or "text"
            rows = results.printed(files[title], table=place.removeprefix("table "))
            assert cell.printed in {float(row["value"]) for row in rows}, (what, of)
            printed.add(files[title])
    assert printed == set(runner.PAPERS)


def test_attacks_of_the_library_have_the_papers_settings():
    for name, (ball, options) in subramanyam.SETTINGS.items():
        rows = results.printed("subramanyam", table=7, attack=name)
        given = {"eps": ball.eps} | options
        for row in rows:
            key = row["metric"]
            if key in given and not (key == "eps" and ball is subramanyam.ANY):
                assert given[key] == float(row["value"]), (name, key)


def test_every_experiment_has_numbers():
    for name in EXPERIMENTS:
        assert numbers(name, None), name
    windows = {attack: strength.WINDOWS.get(attack, 5) for attack in strength.ATTACKS}
    assert windows["transport"] == 9 and windows["mirror"] == 5
    for data_set, budgets in strength.BUDGETS.items():
        what = strength.WHAT[data_set]
        assert {case for _, case in numbers(what, None)} == {
            f"{network}-{attack}-budget-{b}-window-{w}"
            for network in runner.NETWORKS[data_set] for attack, w in windows.items()
            for b in budgets
        }  # fmt: skip


def test_benchmarks_still_record_what_is_recorded():
    for record in BENCHMARKS:
        text = (ROOT / shlex.split(record.command)[1]).read_text()
        assert f'"{record.what}"' in text, record.what
        if record.what == "attack-table":
            assert f'"{record.keys["attack"]}"' in text, record.keys


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
        released = (name for names in runner.NETWORKS.values() for name in names)
        assert network in (*released, *models.names()), network
        if record.what in strength.WHAT.values():
            assert details["attack"] in strength.ATTACKS
        if "defense" in details:
            assert details["defense"] in training.__all__
        for key in ("ball", "budget", "defense_ball"):  # written as the code would write them
            if details.get(key) not in (None, "None"):
                assert repr(eval(details[key], vars(wotlab).copy())) == details[key]
