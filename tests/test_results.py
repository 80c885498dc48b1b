"""The ledger keeps numbers whole, and says nothing of who measured them."""

import csv
import getpass
import json
import platform
from pathlib import Path

import pytest

from wotlab import results
from wotlab.experiments.runner import PAPERS
from wotlab.results import Record

ROOT = Path(__file__).resolve().parents[1]


def record(**changes):
    fields = {
        "what": "toy", "keys": {"eps": 0.1}, "value": 0.5, "unit": "share",
        "samples": "digits 0 to 9", "seed": 0, "command": "python -m toy", "seconds": 1.5,
        "interval": (0.4, 0.6), "printed": 0.7, "source": "Hu et al., Table 1",
        "details": {"steps": 3},
    } | changes  # fmt: skip
    return Record(**fields)


def test_round_trip_selection_and_order(tmp_path):
    cells = [{"attack": a, "eps": e} for a in "ab" for e in (0.5, 2, 10)]
    for keys in reversed(cells):
        results.write(record(keys=keys), tmp_path)
    results.write(record(what="other"), tmp_path)
    read = results.read("toy", tmp_path)
    assert [r.keys for r in read] == cells  # numbers by their size
    assert read[0].details == {"steps": 3} and read[0].interval == (0.4, 0.6)
    assert read[0].versions["torch"] and read[0].device and read[0].date
    assert len(results.read(folder=tmp_path)) == 7
    assert results.find("toy", cells[1], tmp_path) == read[1]
    assert results.find("toy", {"attack": "c"}, tmp_path) is None


def test_a_name_is_made_of_the_keys():
    keys = {"network": "ours", "eps": 0.1, "seed": 0, "within": True, "whole": False, "of": None}
    assert results.name(keys) == "ours-eps-0.1-seed-0-within"
    assert results.name({"budget": 1600, "tau": 1.0}) == "budget-1600-tau-1"


def test_a_table_is_looked_up_by_keys(tmp_path):
    for attack, eps, value in (("a", 1, 0.5), ("a", 2, 0.45), ("b", 1, 0.55)):
        results.write(record(keys={"attack": attack, "eps": eps}, value=value), tmp_path)
    results.write(record(keys={"attack": "b", "eps": 1, "seed": 3}), tmp_path)
    found = results.table("toy", "attack", "eps", folder=tmp_path, seed=None)
    assert {at: r.value for at, r in found.items()} == {
        ("a", 1): 0.5, ("a", 2): 0.45, ("b", 1): 0.55
    }  # fmt: skip
    assert list(results.table("toy", "eps", folder=tmp_path, attack="a")) == [1, 2]
    with pytest.raises(ValueError, match=r"two records of 'toy' stand at.*b-eps-1 and b-eps"):
        results.table("toy", "attack", "eps", folder=tmp_path)
    for bad in ({"by": "network"}, {"by": "eps", "network": "ours"}):
        with pytest.raises(ValueError, match="no record of 'toy' has a key 'network'"):
            results.table("toy", bad.pop("by"), folder=tmp_path, **bad)


def test_only_the_files_of_a_measurement_are_opened(tmp_path):
    """A folder of many hundred records is read many times."""
    results.write(record(), tmp_path)
    for name in ("toy-2", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eps-0.1.json").write_text("{")
    assert [r.what for r in results.read("toy", tmp_path)] == ["toy"]


def test_the_same_record_is_the_same_bytes(tmp_path):
    one = results.write(record(), tmp_path / "1").read_bytes()
    assert results.write(record(), tmp_path / "2").read_bytes() == one


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    path = results.write(record(), tmp_path)
    before = path.read_bytes()

    def half(content, file, **options):
        file.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", half)
    with pytest.raises(OSError, match="disk full"):
        results.write(record(value=0.45), tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_nothing_of_the_machine_is_kept(tmp_path):
    text = results.write(record(), tmp_path).read_text()
    for word in (getpass.getuser(), platform.node(), str(Path.home()), str(tmp_path)):
        assert f'"{word}"' not in text and f"{word}/" not in text


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("what", "Two Words"),
        ("keys", {}),
        ("keys", {"of": None}),
        ("value", "0.5"),
        ("value", float("nan")),
        ("seconds", None),
        ("unit", ""),
        ("samples", "/data/mnist"),
        ("command", "python -m toy --data ~/mnist"),
        ("interval", (0.6, 0.7)),
    ],
)
def test_bad_fields_are_named(field, bad):
    with pytest.raises(ValueError, match=f"{field} must"):
        record(**{field: bad})


@pytest.mark.parametrize("text", ["{", "{}", '{"what": "toy", "interval": null}', "[1]"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        results.read(folder=tmp_path)


def test_words_of_keys_are_kebab_case():
    with pytest.raises(ValueError, match="attack must be kebab case"):
        record(keys={"attack": "Frank Wolfe"})


def test_what_papers_print():
    row = {"table": 1, "network": "resnet101", "attack": "adef", "kind": "targeted"}
    assert [r["value"] for r in results.printed("iwd", **row)] == ["87.26"]
    assert len(results.printed("iwd")) == 87  # and two dashes
    with pytest.raises(ValueError, match="no printed numbers of 'other'"):
        results.printed("other")
    with pytest.raises(ValueError, match=r"rows of 'iwd' have no columns \['eps'\]"):
        results.printed("iwd", eps=0.1)


def test_all_cells_of_the_papers_tables_are_there():
    """Dashes included; no cell stands twice."""
    rows = {}
    for paper in PAPERS:
        text = (ROOT / "results" / "printed" / f"{paper}.csv").read_text()
        rows[paper] = list(csv.DictReader(text.splitlines()))
    counts = {paper: len(each) for paper, each in rows.items()}
    assert counts == {"iwd": 89, "hu": 216, "got": 380, "regniez": 51, "subramanyam": 222}
    assert sum(counts.values()) == 958
    for each in rows.values():
        cells = {tuple(v for k, v in row.items() if k not in ("value", "certain", "note"))
                 for row in each}  # fmt: skip
        assert len(cells) == len(each)
        assert {row["certain"] for row in each} <= {"yes", "uncertain", "suspicious"}
        for row in each:
            assert row["value"] in ("-", "?") or float(row["value"]) >= 0


def test_records_ship_with_the_package():
    shipped = results.read()
    files = {path.relative_to(ROOT / "results") for path in (ROOT / "results").rglob("*.json")}
    assert files == {Path(r.what, f"{results.name(r.keys)}.json") for r in shipped}
    assert {r.what for r in shipped} >= {"sinkhorn-speed", "exact-speed", "sinkhorn-memory"}


def test_an_experiment_without_records_is_named():
    with pytest.raises(ValueError, match=r"no records of 'got-table-3'; .*mnist-robust-accuracy"):
        results.table("got-table-3", "training")
    with pytest.raises(ValueError, match=r"no records of 'strength'; .*mnist-robust-accuracy"):
        results.read("strength")
