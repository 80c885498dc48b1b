"""The table of strength, radii and their union, on a few small images."""

import json
from dataclasses import replace
from functools import partial

import pytest

import wotlab
from wotlab import attacks, evaluate, results
from wotlab.experiments import strength
from wotlab.experiments.runner import perform

ROWS = dict(strength.ATTACKS)


@pytest.fixture(autouse=True)
def quick(single_thread, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    monkeypatch.setitem(strength.BUDGETS, "mnist", (20, 200, 1600))
    monkeypatch.setattr(
        strength, "ATTACKS", {"transport": partial(attacks.transport, steps=10, restarts=1)}
    )


def test_strength_falls_with_the_budget_and_is_certified(run, small):
    perform(run, strength.robust_accuracy("mnist", run))
    records = results.table(strength.WHAT["mnist"], "budget", "window", folder=run.out)
    found = {b: record for (b, _), record in records.items()}
    assert sorted(found) == [20, 200, 1600]
    assert set(found[1600].details["left"]) <= set(found[200].details["left"])
    assert set(found[200].details["left"]) <= set(found[20].details["left"])
    values = [found[b].value for b in (20, 200, 1600)]
    assert values[0] >= values[1] >= values[2] and values[2] < values[0]
    for record in found.values():
        assert record.value == pytest.approx(100 * len(record.details["left"]) / 6)
        assert record.interval[0] <= record.value <= record.interval[1]
        assert record.keys["window"] == 9
        if record.details["broken"]:
            assert record.details["refused_by_exact_lp"] == 0
            assert record.details["largest_exact_w_over_eps"] <= 1 + 1e-5


def test_what_is_recorded_is_not_measured_again(run, files, monkeypatch):
    perform(run, strength.robust_accuracy("mnist", run))
    (last, *_), before = sorted(files(run)), set(files(run))
    value = json.loads(last.read_text())["value"]
    last.unlink()  # as if killed before it
    calls = []
    measure = strength.measure
    monkeypatch.setattr(strength, "measure", lambda *a: calls.append(a) or measure(*a))
    perform(run, strength.robust_accuracy("mnist", run))
    assert len(calls) == 1 and set(files(run)) == before
    assert json.loads(last.read_text())["value"] == pytest.approx(value)


def test_a_budget_alone_is_tried_on_all_images(run):
    alone = replace(run, only="*-budget-200-window-9")
    perform(alone, strength.robust_accuracy("mnist", alone))
    (record,) = results.read(strength.WHAT["mnist"], run.out)
    assert record.keys["budget"] == 200 and record.details["total"] == 6
    assert record.details["broken"] + record.details["count"] == 6


def test_radii_lie_between_a_proof_and_an_attack(run, small, monkeypatch):
    monkeypatch.setitem(strength.SIDES, "proof", (strength.below, 3))
    perform(run, strength.radii(run))
    found = results.table(strength.RADII, "network", "side", folder=run.out)
    attack, proof = (found["standard", side] for side in ("attack", "proof"))
    assert attack.samples.endswith("0 to 5") and proof.samples.endswith("0 to 2")
    radii = attack.details["radii"]
    assert [r == 0 for r in radii] == (~evaluate.are_right(*small)[:6]).tolist()
    assert all(low <= high for low, high in zip(proof.details["radii"], radii, strict=False))
    assert max(proof.details["radii"]) > 0
    assert attack.value == pytest.approx(784 * sorted(radii)[2], rel=1e-5)


def test_an_image_that_nothing_breaks_has_no_radius(run, small, monkeypatch):
    monkeypatch.setattr(strength, "LARGEST", wotlab.WassersteinBall(1e-6))
    value, details = strength.above(*small)
    assert set(details["radii"]) == {0.0, None} and value in (0, float("inf"))


def test_frank_wolfe_is_also_run_as_published():
    rows = [ROWS[name] for name in ("frank-wolfe", "frank-wolfe-published")]
    assert [row.func for row in rows] == [attacks.frank_wolfe] * 2
    assert [row.keywords for row in rows] == [{"steps": 300}, {"steps": 300, "published": True}]


def test_windows_limit_every_attack(run, monkeypatch):
    """In a window of one pixel nothing moves."""
    monkeypatch.setattr(strength, "SIZES", (1, 9))
    monkeypatch.setitem(strength.CRITICAL, "standard", 1600)
    for attack, few in (("mirror", attacks.mirror_ascent), ("frank-wolfe", attacks.frank_wolfe)):
        monkeypatch.setitem(strength.ATTACKS, attack, partial(few, steps=10))
    perform(run, strength.windows(run))
    found = results.table(strength.WIDE, "attack", "window", folder=run.out)
    assert len(found) == 6
    for attack in ("transport", "mirror", "frank-wolfe"):
        still, wide = found[attack, 1], found[attack, 9]
        assert still.details.get("largest_exact_w_over_eps", 0) == 0
        assert wide.value < still.value and wide.keys["budget"] == 1600


@pytest.fixture
def together(monkeypatch):
    """The further attacks of the union: one that finds nothing, one as strong as in the table."""
    monkeypatch.setattr(
        strength, "FURTHER",
        {"idle": partial(attacks.mirror_ascent, steps=1, step_size=1e-9),
         "transport": partial(attacks.transport, steps=10, restarts=1)},
    )  # fmt: skip


def test_the_union_leaves_what_no_attack_breaks(run, together):
    perform(run, strength.robust_accuracy("mnist", run))
    perform(replace(run, only="*-attack"), strength.radii(run))
    perform(run, strength.union(run))
    found = results.table(strength.EVERYBODY, "budget", folder=run.out, network="standard")
    alone = results.table(strength.WHAT["mnist"], "budget", folder=run.out, network="standard")
    radii = results.find(
        strength.RADII, {"network": "standard", "side": "attack"}, run.out
    ).details["radii"]
    before = set(range(6))
    for budget, record in found.items():
        left = set(record.details["left"])
        far = {i for i, eps in enumerate(radii) if eps is None or eps > budget / 784}
        start = before & far & set(alone[budget].details["left"])
        assert left <= start and record.details["broken"]["others"] == 6 - len(start)
        assert record.details["broken"]["idle"] == 0
        assert sum(record.details["broken"].values()) == 6 - len(left)
        assert record.value == pytest.approx(100 * len(left) / 6)
        assert record.details["others"] == ["transport"]
        before = left


def test_the_union_needs_no_record(run, together):
    perform(run, strength.union(run))
    found = results.table(strength.EVERYBODY, "budget", folder=run.out, network="standard")
    assert all(record.details["others"] == [] for record in found.values())
    assert found[1600].value < found[20].value
