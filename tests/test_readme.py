"""The README's numbers are those of the records."""

import math
import re
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pictures
import pytest

from wotlab import WassersteinBall, certify, plots, results
from wotlab.experiments import dro, strength

WHAT, BUDGETS = strength.WHAT["mnist"], strength.BUDGETS["mnist"]
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
read = partial(results.read, folder=ROOT / "results")  # those of this checkout
table_of = partial(results.table, folder=ROOT / "results")


def table(*heads: str) -> list[list[str]]:
    """The rows of README's table whose head begins with these cells."""
    lines = iter(README.splitlines())
    for line in lines:
        if line.startswith(f"| {' | '.join(heads)} |"):
            next(lines)  # the rule below the head
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    return rows
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
    raise AssertionError(f"README has no table of {heads}")


def strengths() -> dict[tuple[str, str], list[str]]:
    """Cells over the budgets by (network, attack), of measured and of printed values."""
    found: dict[tuple[str, str], list[str]] = {}
    records = table_of(WHAT, "network", "attack", "budget")
    for (network, attack, budget), record in records.items():
        shown = [(attack, record.value)]
        shown += [("printed", record.printed)] if record.printed is not None else []
        for name, value in shown:
            cells = found.setdefault((network, name), [""] * len(BUDGETS))
            cells[BUDGETS.index(budget)] = f"{value:.1f}"
    for network, record in table_of(strength.RADII, "network", side="attack").items():
        radii = [784 * (math.inf if r is None else r) for r in record.details["radii"]]
        found[network, "radius"] = [
            f"{100 * sum(r > budget for r in radii) / len(radii):.1f}" for budget in BUDGETS
        ]
    return found


def test_table_of_strength_is_the_records():
    """Each row is one series, and a label stands for one network or attack throughout."""
    rows, known = table("network", "attack", *map(str, BUDGETS)), strengths()
    named: dict[tuple[int, str], set[str]] = {}
    shown = set()
    for network, attack, *cells in rows:
        same = {key for key, values in known.items() if values == cells}
        assert same, f"no records give the row {network} | {attack} | {cells}"
        for place, label in enumerate((network, attack)):
            names = {key[place] for key in same}
            named[place, label] = named.get((place, label), names) & names
            assert named[place, label], f"{label} stands for several"
        shown |= same
    assert all(len(names) == 1 for names in named.values()), named
    assert len(set.union(*named.values())) == len(named)  # and no name has two labels
    networks = {network for network, _ in known}
    assert shown >= {(network, "transport") for network in networks}
    assert {r.samples for r in read(WHAT)} == {"MNIST test images 0 to 999"}
    assert "first 1,000 MNIST test images" in README


def test_the_picture_of_strength_shows_the_table():
    """The points to be drawn are the cells; an interval holds its value, and is of 1,000 images."""
    known, drawn = strengths(), pictures.curves()
    assert {key: [f"{p[1]:.1f}" for p in points] for key, points in drawn.items()} == {
        key: [cell for cell in cells if cell] for key, cells in known.items()
    }
    for (_, attack), points in drawn.items():
        budgets = [point[0] for point in points]
        assert budgets == sorted(budgets) and set(budgets) <= set(BUDGETS)
        for _, value, low, high in points if attack != "printed" else ():
            assert low <= value <= high and 0.3 < high - low < 6.3


def paths(svg: str) -> dict[str, list[float]]:
    """Coordinates of each curve, and of each mark of a series of points, by the curve's name."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        if " " in (name := group.get("id", "")):
            lines = [child.get("d", "") for child in group]
            marks = [f"{use.get('x')} {use.get('y')}" for use in group.iter() if use.get("x")]
            found[name] = [float(n) for n in re.findall(r"-?\d+\.?\d*", " ".join(lines + marks))]
    return found


def test_the_picture_in_the_repository_is_of_these_records(tmp_path):
    with plt.rc_context():
        plots.use_style()
        pictures.draw_strength().savefig(tmp_path / "now.svg")
        plt.close("all")
    stored, now = paths(pictures.STRENGTH.read_text()), paths((tmp_path / "now.svg").read_text())
    assert set(stored) == {" ".join(key) for key in strengths()}
    for name, numbers in now.items():
        assert len(numbers) >= 2 * 5 and numbers == pytest.approx(stored[name], abs=0.02), name


def test_what_is_said_of_the_attacked_digit_is_so():
    x, label, moved, read = pictures.attacked()
    assert f"![A digit {label}, " in README and f"reads as a {read}" in README and read != label
    assert certify(x, moved, WassersteinBall(pictures.EPS)).inside.all()
    assert f"eps = {pictures.EPS}" in README
    stored = pictures.ATTACK.read_text()
    assert f"a digit: {label}" in stored and f"read as: {read}" in stored


@pytest.mark.parametrize("data", ["cifar10", "fashion-mnist"])
def test_tables_of_other_data_sets_are_the_records(data):
    budgets, title = strength.BUDGETS[data], {"cifar10": "CIFAR-10"}.get(data, "Fashion-MNIST")
    found = table_of(strength.WHAT[data], "network", "attack", "budget")
    shown = table(f"{title} network", "attack", *map(str, budgets))
    assert len(shown) * len(budgets) == len(found)
    for network, label, *cells in shown:
        attack = {"`transport`": "transport", "`mirror_ascent`": "mirror"}[label]
        assert cells == [f"{found[network, attack, b].value:.1f}" for b in budgets]
    assert {r.samples for r in found.values()} == {f"{title} test images 0 to 999"}
    for network, _, budget in found:
        assert found[network, "transport", budget].value <= found[network, "mirror", budget].value


def test_radius_leaves_what_transport_leaves_at_every_budget_but_for_two_points():
    known = strengths()
    for network, attack in known:
        if attack == "radius":
            pairs = zip(known[network, "radius"], known[network, "transport"], strict=True)
            assert all(float(one) <= float(other) + 2 for one, other in pairs), network


def test_bounds_from_below_and_above_are_the_records():
    """Medians over the same images, and no proof beyond an attack."""
    found = table_of(strength.RADII, "network", "side")
    shown = []
    for network in {network for network, _ in found}:
        low, high = (
            [math.inf if r is None else r for r in found[network, side].details["radii"]]
            for side in ("proof", "attack")
        )
        same = high[: len(low)]
        assert len(low) == 50 and all(a <= b for a, b in zip(low, same, strict=True))
        shown.append([f"{784 * sorted(part)[24]:.1f}" for part in (low, same)])
    rows = table("network", "from below, by proof", "from above, by `radius`")
    assert sorted(row[1:] for row in rows) == sorted(shown)
    assert "medians over the first 50 MNIST test images" in README


def test_transport_leaves_at_most_what_the_others_leave():
    records = table_of(WHAT, "network", "budget", "attack")
    for where, group in groupby(sorted(records), key=lambda at: at[:2]):
        left = {attack: records[*where, attack].value for _, _, attack in group}
        assert left["transport"] <= min(left.values()), where


def test_union_is_the_records_and_leaves_no_more_than_any_attack():
    found, known = table_of(strength.EVERYBODY, "network", "budget"), strengths()
    rows = table("network", "eps * 784", "`transport`", "all together")
    shown = []
    for (network, budget), record in found.items():
        place, value = BUDGETS.index(budget), f"{record.value:.1f}"
        others = {key[1]: row[place] for key, row in known.items() if key[0] == network}
        assert all(record.value <= float(others[a]) + 1e-9 for a in ("transport", "radius"))
        assert "transport" in record.details["others"]
        shown.append([str(budget), others["transport"], value])
    assert sorted(row[1:] for row in rows) == sorted(shown)


def test_windows_are_the_records():
    """Each attack meets the images of the others, and a wide window is no smaller set of plans."""
    found = table_of(strength.WIDE, "network", "attack", "window")
    shown = [
        [str(strength.CRITICAL[n]), *(f"{found[n, a, size].value:.1f}" for size in strength.SIZES)]
        for n, a, size in found
        if size == strength.SIZES[0]
    ]
    rows = table("network", "eps * 784", "attack", "5x5", "9x9")
    assert sorted([row[1], *row[3:]] for row in rows) == sorted(shown)
    assert {r.samples for r in found.values()} == {"MNIST test images 0 to 199"}
    for network, attack, size in found:
        assert found[network, "transport", size].value <= found[network, attack, size].value


def test_rivals_as_published_are_the_records():
    found = table_of("attack-table", "attack")
    rows = [
        [f"`{attack}`", *(f"{value:.0f}" for value in (r.details["claimed"], r.value,
         r.details["inside"])), f"{r.details['largest_exact_w_over_eps']:.2f}"]
        for attack, r in found.items()
    ]  # fmt: skip
    shown = table("attack", "claims", "certified", "in the ball", "largest W / eps")
    assert sorted(shown) == sorted(rows) and "`art`" in {row[0] for row in shown}
    assert all(r.value >= r.details["claimed"] for r in found.values())
    assert min(found, key=lambda attack: found[attack].value) == "transport"


def test_every_success_is_certified():
    for record in read(WHAT):
        assert record.details.get("largest_exact_w_over_eps", 0) <= 1 + 1e-5, record.keys
        assert record.details.get("refused_by_exact_lp", 0) == 0, record.keys


def test_speed_of_attacks_is_the_records():
    shown = [r for r in read("radius-speed") if r.keys["rival"] == "repaired"]
    shown += [r for r in read("attack-speed") if r.keys["steps"] == 100]
    assert len(shown) == 12
    for record in shown:
        theirs, ours = (record.details[f"{w}_seconds"] for w in ("theirs", "ours"))
        assert f"{record.value:.1f} times ({theirs:.0f} s to {ours:.1f} s" in README, record.keys
    cost = table_of("attack-cost", "network")
    assert all(f"{record.value:.1f} (" in README for record in cost.values()) and len(cost) == 3
    published = [r for r in read("radius-speed") if r.keys["rival"] == "published"]
    # with no image inside its ball the mean is that of the largest budget
    assert all(r.details["theirs_mean_certified"] == 2 for r in published)


def test_memory_of_attacks_is_the_records():
    """10,000 digits, and a photograph; what all steps take of a batch is not much more."""
    digits, photograph = (table_of("attack-memory", "images")[count] for count in (10_000, 1))
    assert f"{digits.value:.0f} MiB" in README and f"{photograph.value:.0f} MiB" in README
    assert digits.value < 1024 and photograph.value < 500
    few, default = (digits.details[f"first_batch_mebibytes{d}"] for d in ("", "_by_default"))
    assert abs(default - few) < 30


def test_numbers_of_a_gpu_are_the_records():
    found = {r.keys["task"]: r for r in read("gpu-speed") if set(r.keys) == {"task"}}
    assert {r.device for r in read("gpu-speed")} == {"NVIDIA H200"} and "NVIDIA H200" in README
    attacked, radii, solved = (found[task] for task in ("transport", "radius", "sinkhorn"))
    seconds = {
        "`transport` at eps * 784 = 100, by default": attacked.value,
        "`radius` by default": radii.value,
        "`ot.sinkhorn` of each with another": solved.value,
        "the same by PyTorch": solved.details["torch_seconds"],
        "`certify`": found["certificates"].value,
        "`iwda`, 100 images": found["iwda"].value,
        "`WassersteinAT`, 12 epochs": found["wasserstein-at"].value,
    }
    for head, value in seconds.items():
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {head}"))
        assert line.endswith(f" {figure(value)} |"), line
    for record in (attacked, radii):
        assert f"| the same, no step recorded | {record.details['host_seconds']:.1f} |" in README
    assert f"{attacked.details['accuracy']:.1f} % stand" in README
    assert f"{attacked.details['mib']:.0f} MiB for the batch" in README
    assert f"{found['kernel'].value:.1f} times as fast as in PyTorch" in README
    (rival,) = (r for r in read("gpu-speed") if "rival" in r.keys)
    assert f"{rival.value:.0f} times as fast as POT's batch solver in the log domain" in README
    assert max(rival.details["ours_error"], solved.details["error"]) <= 1e-6
    shown = {"standard": "no attack", "fast": "`FastAT`", "pgd-40": "40 steps"}
    for name, word in shown.items():
        (record,) = (r for r in read("gpu-speed") if r.keys.get("defense") == name)
        value = f"{record.value:.1f}" if record.value < 10 else f"{record.value:.0f}"
        assert f"{value} s ({word})" in README


def test_the_trained_network_is_the_record():
    (trained,) = read("wasserstein-at")
    assert f"{trained.value:.2f} %" in README
    assert trained.details["sha256"][:12] in README


def figure(value: float) -> str:
    """Two digits of a small number, all of a large one."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def test_table_of_speeds_holds_each_record():
    for record in read("sinkhorn-speed"):
        theirs, ours = (record.details[f"{who}_seconds"] for who in ("theirs", "ours"))
        errors = [record.details[f"{who}_error"] for who in ("theirs", "ours")]
        cell = (
            f"{figure(record.value)} times ({figure(theirs)} s to {figure(ours)} s; "
            f"error {errors[0]:.0e} to {errors[1]:.0e})"
        )
        assert cell in README, record.keys
        # compared at one error; one rival cannot be told to reach it
        assert max(errors) <= 1e-6 or record.keys["rival"] == "geomloss-solve"


def test_the_headline_is_the_fastest_rival():
    for reg in (0.5, 0.1):
        ratios = [r.value for r in table_of("sinkhorn-speed", "rival", reg=reg).values()]
        assert f"{figure(min(ratios))} times (reg {reg})" in README


def test_exact_speed_and_memory_are_the_records():
    (exact,) = read("exact-speed")
    (memory,) = read("sinkhorn-memory")
    assert f"{exact.details['ours_seconds']:.2g} s" in README
    assert f"{memory.value:,.0f} MiB" in README
    assert memory.value < 1024


def test_numbers_of_the_changelog_are_those_of_the_readme():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    (measured,) = re.findall(r"^### Measured\n(.*?)^### ", changelog, re.M | re.S)
    numbers = re.findall(r"\d+\.\d+", measured)
    assert len(numbers) >= 8 and [n for n in numbers if not re.search(rf"\b{n}", README)] == []


def test_table_of_training_is_the_records():
    """Each row is one defense of its class over the seeds, the best first; none is left out."""
    found = table_of("linf-over-seeds", "training", "attack", "seed")
    whole = {name for name, kind, seed in found if (kind, seed) == ("autoattack", max(dro.SEEDS))}
    rows, shown = table("defense", "clean", "PGD-100", "AutoAttack"), set()
    for label, *cells in rows:
        (name,) = {name for name in whole if over_seeds(found, name) == cells}
        assert label.startswith(f"`{type(dro.DEFENSES[name][0](1)).__name__}`"), name
        shown.add(name)
    assert shown == whole and len(rows) == len(whole)
    last = [float(row[3]) for row in rows]
    assert last == sorted(last, reverse=True)


def over_seeds(found: dict, name: str) -> list[str]:
    """The cells of a defense."""
    kinds = ("clean", "pgd-100", "autoattack")
    values = {kind: [found[name, kind, seed].value for seed in dro.SEEDS] for kind in kinds}
    by_seed = ", ".join(f"{value:.1f}" for value in values["autoattack"])
    return [*(f"{mean(values[kind]):.1f}" for kind in kinds), by_seed]


def test_ranking_is_the_records():
    """Every attack that met all networks, the best first; names of networks as in the records."""
    found = table_of("attack-ranking", "attack", "network", passes=400)
    everywhere = {attack: r for (attack, network), r in found.items() if network == "all"}
    (names,) = {tuple(record.details["networks"]) for record in everywhere.values()}
    best = sorted(everywhere, key=lambda attack: -everywhere[attack].value)
    rows = [[f"`{attack}`", *(f"{found[attack, name].value:.1f}" for name in (*names, "all"))]
            for attack in best]  # fmt: skip
    assert table("attack", *names) == rows
    assert {r.samples for r in found.values()} == {"MNIST test images 0 to 49"}
    assert "first 50 MNIST test images; each attack gets 400 propagations" in README
