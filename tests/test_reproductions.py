"""The page of what the papers print beside ours: every number once, with ours or with a reason."""

import csv
import re
from collections import Counter
from pathlib import Path

import overview
import pytest
import reproductions as page
from bs4 import BeautifulSoup

from wotlab import results
from wotlab.experiments import got, hu, reproductions
from wotlab.experiments.__main__ import EXPERIMENTS
from wotlab.experiments.reproductions import FULL, MISSING, NOTHING, REASONS, REDUCED, Row
from wotlab.experiments.runner import PAPERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {paper: page.rows(paper) for paper in page.CHAPTERS}


@pytest.fixture(scope="module")
def every(rows) -> list[Row]:
    return [row for some in rows.values() for row in some]


def test_every_entry_of_every_table_is_there_once(rows, every):
    for paper, some in rows.items():
        file = ROOT / "results" / "printed" / f"{paper}.csv"
        wanted = [{"paper": paper} | row for row in csv.DictReader(file.open())]
        assert [row.entry for row in some] == wanted
    assert len(every) == 958
    assert sum(row.entry["value"] not in "-?" for row in every) == 911


def test_each_has_ours_or_a_reason_and_never_both(every):
    for row in every:
        measured = row.state in (FULL, REDUCED)
        assert bool(row.readings) is measured and bool(row.why) is not measured, row.entry
        assert not row.command or row.state == MISSING
        assert measured or not row.near
        empty = row.entry["value"] in "-?"
        setting = (row.entry["paper"], row.entry["table"]) == ("subramanyam", "7")
        assert (row.state == NOTHING) is (empty or setting)


def test_no_reason_is_left_over(every):
    told = {row.why for row in every}
    assert not [why for why, _ in REASONS if why not in told]


def test_every_command_is_one_of_the_code(every):
    for row in every:
        if row.command:
            name = re.fullmatch(
                r"python -m wotlab\.experiments ([a-z0-9-]+) --data FOLDER( --device cuda)?",
                row.command,
            )
            assert name and name[1] in EXPERIMENTS, row.command


def test_every_record_with_a_printed_number_answers_an_entry(every):
    """With the number that the record has beside its own."""
    answered = {}
    for row in every:
        for reading in row.readings:
            record = reading.record
            key = record.what, results.name(record.keys)
            answered.setdefault(key, set()).add(float(row.entry["value"]))
    longer = {(r.what, *without(r)) for r in results.read() if "epochs" in r.keys}
    for record in results.read():
        key = record.what, results.name(record.keys)
        if record.printed is not None and (record.what, *without(record)) not in longer:
            assert record.printed in answered[key], key


def without(record) -> tuple:
    """Its keys but those of the training's length."""
    return tuple((k, v) for k, v in record.keys.items() if k not in ("epochs", "whole"))


def test_a_number_that_is_printed_twice_has_one_answer(every):
    found: dict = {}
    for row in every:
        ours = [r.value for r in row.readings]
        assert found.setdefault(reproductions.question(row.entry), ours) == ours
    three = [r for r in every if (r.entry["paper"], r.entry["table"]) == ("regniez", "3")]
    assert sum(bool(row.readings) for row in three) == 8  # all but the training's own images


def entry(value: str, **words: str) -> dict[str, str]:
    empty = {"paper": "hu", "table": "4", "data": "mnist", "metric": "accuracy", "network": ""}
    return empty | {"certain": "yes", "note": "", "value": value} | words


def record(value: float, images: int = 10_000, **options) -> results.Record:
    keys = options.pop("keys", {"network": "standard"})
    given = {"what": "demo", "keys": keys, "unit": "%", "seed": 0, "command": "c", "seconds": 1.0}
    return results.Record(
        **given, value=value, samples=f"MNIST test images 0 to {images - 1}", **options
    )


@pytest.mark.parametrize(
    ("printed", "value", "interval", "near"),
    [
        ("90", 92.0, None, True),  # two points
        ("90", 92.1, None, False),
        ("90", 95.0, (89.9, 97.0), True),  # within the interval
        ("90", 95.0, (90.1, 97.0), False),
    ],
)
def test_a_percentage_is_repeated_within_its_interval_or_two_points(printed, value, interval, near):
    found = reproductions.reading(entry(printed), record(value, interval=interval))
    assert (found.near, found.state) == (near, FULL)


@pytest.mark.parametrize(
    ("printed", "value", "near"),
    [("2.0", 2.1, True), ("2.0", 2.11, False), ("0.5", 0.549, True), ("0.5", 0.56, False)],
)
def test_a_distance_is_repeated_within_five_per_cent_or_its_rounding(printed, value, near):
    found = reproductions.reading(entry(printed, metric="w"), record(value))
    assert found.near is near


def test_what_was_less_is_said():
    epochs = got.WHOLE.epochs
    where = {"paper": "got", "table": "1", "training": "trades", "attack": "autoattack"}
    whole = {"epochs": epochs, "training_images": 60_000, "autoattack_parts": "standard"}
    printed = entry("90", **where)
    keys = {"training": "trades", "attack": "autoattack"}
    assert reproductions.reading(printed, record(90.0, keys=keys, details=whole)).state == FULL
    for change, said in (
        ({"epochs": epochs - 1}, f"{epochs - 1} of {epochs} epochs"),
        ({"training_images": 500}, "500 of 60,000 training images"),
        ({"autoattack_parts": ["apgd-ce"]}, "of AutoAttack only apgd-ce"),
    ):
        less = reproductions.reading(printed, record(90.0, keys=keys, details=whole | change))
        assert (less.state, less.less) == (REDUCED, (said,))
    few = reproductions.reading(printed, record(90.0, 200, keys=keys, details=whole))
    assert few.less == ("200 of 10,000 test images",)


def test_the_longest_training_counts():
    entries = reproductions.entries("got")
    wanted = next(e for e in entries if (e["training"], e["attack"]) == ("trades", "clean"))
    keys = {"training": "trades", "whole": False, "attack": "clean"}
    long = {"training": "trades", "whole": True, "epochs": 20, "attack": "clean"}
    lengths = [(keys, 1, float(wanted["value"])), (long, 20, 50.0)]
    short, longer = (
        record(value, keys=each, details={"epochs": epochs, "training_images": 60_000})
        for each, epochs, value in lengths
    )
    known = {
        ("got-table-1", "trades-clean"): [short],
        ("got-table-1", "trades-whole-clean"): [longer],
    }
    row = reproductions.row_of(wanted, known)
    assert [reading.record for reading in row.readings] == [longer] and not row.near
    assert row.readings[0].less == (f"20 of {got.WHOLE.epochs} epochs",)


def test_another_attack_is_no_reading_of_the_papers_own(every):
    budget = entry("90", attack="hu", budget="5")
    other = record(3.0, keys={"attack": "transport", "budget": 5}, interval=(2, 4))
    assert reproductions.reading(budget, other).other == "attack transport"
    for row in every:
        kinds = [bool(reading.other) for reading in row.readings]
        assert kinds == sorted(kinds) and kinds[:1] in ([], [False])


def test_radii_answer_budgets():
    radii = [0.0, 0.05, 0.2, None]  # one misread from the start, and one that never breaks
    found = {budget: hu.standing(radii, budget).value for budget in (1, 39.2, 40, 1000)}
    assert found == {1: 0.75, 39.2: 0.5, 40: 0.5, 1000: 0.25}
    share = reproductions.reading(
        entry("50", attack="hu", budget="40"),
        record(0.1, keys={"attack": "hu"}, details={"radii": radii}),
    )
    assert share.value == 50 and share.interval[0] < 50 < share.interval[1]


def test_the_tables_of_the_page_have_every_printed_number_once(rows):
    shown: Counter = Counter()
    wanted: Counter = Counter()
    for paper, some in rows.items():
        for name in dict.fromkeys(row.entry["table"] for row in some):
            table = [row for row in some if row.entry["table"] == name]
            assert name == "text" or page.TITLES_OF[paper][name]
            html = BeautifulSoup(page.table(table), "html.parser")
            for cell in html.select("td.printed"):
                for mark in cell.select("abbr"):
                    mark.decompose()
                shown[paper, name, cell.text] += 1
            wanted.update((paper, name, row.entry["value"].replace("-", "–")) for row in table)
            signs = [td.text for td in html.select("td.repeats span, td.differs span")]
            assert len(signs) == sum(bool(row.readings) for row in table)
    assert shown == wanted and shown.total() == 958


def test_the_bars_add_up(rows):
    html = BeautifulSoup(overview.bars(rows), "html.parser")
    *lines, total = [
        [int(cell.text) for cell in line.select("td")] for line in html.select("tbody tr:not(.bar)")
    ]
    assert [sum(column) for column in zip(*lines, strict=True)] == total
    assert all(sum(line[:-1]) == line[-1] for line in [*lines, total]) and total[-1] == 958
    for line, paper in zip(lines, page.CHAPTERS, strict=True):
        counts = Counter(row.state for row in rows[paper])
        assert line == [*(counts[state] for state in reproductions.STATES), len(rows[paper])]
    assert set(page.CHAPTERS) == set(PAPERS)


def test_the_scatter_has_a_point_a_measured_percentage(rows, every):
    html = BeautifulSoup(overview.scatter(rows, page.words), "html.parser")
    shown = [row for row in every if row.readings and reproductions.share(row.entry)]
    assert len(html.select("circle")) == len(shown) > 100
    for point in html.select("circle"):
        assert 0 <= float(point["cx"]) <= 100 and 0 <= float(point["cy"]) <= 100
