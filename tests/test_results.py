"""The ledger keeps numbers whole, and says nothing of who measured them."""

import getpass
import json
import platform
from pathlib import Path

import pytest

from wotlab import results
from wotlab.results import Record


def record(**changes):
    fields = {
        "what": "toy", "case": "eps-0.1", "value": 0.5, "unit": "share",
        "samples": "digits 0 to 9", "seed": 0, "command": "python -m toy", "seconds": 1.5,
        "interval": (0.4, 0.6), "printed": 0.7, "source": "Hu et al., Table 1",
        "details": {"steps": 3},
    } | changes  # fmt: skip
    return Record(**fields)


def test_round_trip_selection_and_order(tmp_path):
    for case in ("b", "a"):
        results.write(record(case=case), tmp_path)
    results.write(record(what="other"), tmp_path)
    read = results.read("toy", tmp_path)
    assert [r.case for r in read] == ["a", "b"]
    assert read[0].details == {"steps": 3} and read[0].interval == (0.4, 0.6)
    assert read[0].versions["torch"] and read[0].device and read[0].date
    assert len(results.read(folder=tmp_path)) == 3


def test_only_the_files_of_a_measurement_are_opened(tmp_path):
    """A folder of many hundred records is read many times."""
    results.write(record(), tmp_path)
    for name in ("toy-2--eps-0.1.json", "other--toy--case.json", "toy.json"):
        (tmp_path / name).write_text("{")
    assert [r.what for r in results.read("toy", tmp_path)] == ["toy"]
    assert results.read("to", tmp_path) == []


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
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_of_the_machine_is_kept(tmp_path):
    text = results.write(record(), tmp_path).read_text()
    for word in (getpass.getuser(), platform.node(), str(Path.home()), str(tmp_path)):
        assert f'"{word}"' not in text and f"{word}/" not in text


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("what", "Two Words"),
        ("case", ""),
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
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        results.read(folder=tmp_path)


def test_what_papers_print():
    row = {"table": "1", "network": "resnet101", "attack": "adef", "kind": "targeted"}
    assert [r["value"] for r in results.printed("iwd", **row)] == ["87.26"]
    assert len(results.printed("iwd")) == 87
    with pytest.raises(ValueError, match="no printed numbers of 'other'"):
        results.printed("other")


def test_records_ship_with_the_package():
    shipped = results.read()
    assert {r.what for r in shipped} >= {"sinkhorn-speed", "exact-speed", "sinkhorn-memory"}
