"""The README's numbers are those of the records."""

from pathlib import Path

from wotlab import results
from wotlab.experiments.strength import BUDGETS, WHAT

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
NETWORKS = {
    "standard": "standard",
    "wong2019": "Wong et al., robust",
    "hu2020": "Hu et al., robust",
    "ours": "`WassersteinAT`",
}
ATTACKS = {
    "transport": "`transport`",
    "mirror": "`mirror_ascent`",
    "frank-wolfe": "`frank_wolfe`, repaired",
}


def strength_rows() -> list[str]:
    """The README's table of accuracies, from the records and their printed values."""
    found = {r.case: r for r in results.read(WHAT)}
    rows = []

    def add(network: str, attack: str, values: list) -> None:
        cells = ["" if v is None else f"{v:.1f}" for v in values]
        rows.append(f"| {NETWORKS[network]} | {attack} | {' | '.join(cells)} |")

    for network in NETWORKS:
        for attack, name in ATTACKS.items():
            records = [found.get(f"{network}-{attack}-eps-{b}") for b in BUDGETS]
            if any(records):
                add(network, name, [r.value for r in records])
            if any(r and r.printed for r in records):
                add(network, "Hu et al., as printed", [r.printed for r in records])
    return rows


def test_table_of_strength_holds_each_record():
    rows = strength_rows()
    assert len(rows) > 4
    assert {r.samples for r in results.read(WHAT)} == {"MNIST test images 0 to 999"}
    for row in rows:
        assert row in README, row


def test_transport_leaves_at_most_what_the_others_leave():
    found = {r.case: r.value for r in results.read(WHAT)}
    for case, left in found.items():
        for other in ("mirror", "frank-wolfe"):
            assert found[case.replace(f"-{other}-", "-transport-")] <= left, case


def test_every_success_is_certified():
    for record in results.read(WHAT):
        assert record.details.get("largest_exact_w_over_eps", 0) <= 1 + 1e-5, record.case
        assert record.details.get("refused_by_exact_lp", 0) == 0, record.case


def test_speed_of_attacks_is_the_records():
    for what in ("radius-speed", "attack-speed"):
        records = results.read(what)
        assert records
        for record in records:
            if what == "radius-speed" or record.case.endswith("quick"):
                theirs, ours = (record.details[f"{w}_seconds"] for w in ("theirs", "ours"))
                cell = f"{record.value:.1f} times ({theirs:.0f} s to {ours:.1f} s"
                assert cell in README, cell
    (memory,) = results.read("attack-memory")
    assert f"{memory.value / 1024:.1f} GiB" in README
    assert memory.value < 2 * 1024


def test_the_trained_network_is_the_record():
    (trained,) = results.read("wasserstein-at")
    assert f"{trained.value:.2f} %" in README
    assert trained.details["sha256"][:12] in README


def test_table_of_speeds_holds_each_record():
    for record in results.read("sinkhorn-speed"):
        seconds = record.details["theirs_seconds"], record.details["ours_seconds"]
        cell = f"{record.value:,.0f} times ({seconds[0]:,.0f} s to {seconds[1]:.2g} s"
        assert cell in README, record.case


def test_exact_speed_and_memory_are_the_records():
    (exact,) = results.read("exact-speed")
    (memory,) = results.read("sinkhorn-memory")
    assert f"{exact.details['ours_seconds']:.2g} s" in README
    assert f"{memory.value:,.0f} MiB" in README
    assert memory.value < 1024


TRAINED = {
    "pgd-40": "`PGDAT`, 40 steps",
    "chain-sign": "`AdversarialTransport`",
    "fast": "`FastAT`",
    "free-8": "`FreeAT`, 8 repeats",
    "pgd-7": "`PGDAT`, 7 steps",
    "chain-reflected": "`AdversarialTransport`, reflected chain",
    "standard": "`Standard`",
}


def test_table_of_training_holds_each_record():
    found = {r.case: r for r in results.read("linf-training")}
    rows = {case.rsplit("-autoattack")[0] for case in found if case.endswith("-autoattack")}
    assert rows >= {"pgd-40", "chain-sign", "standard"}
    for name in rows:
        cells = [f"{found[f'{name}-{kind}'].value:.1f}" for kind in ("clean", "pgd-100")]
        auto = found[f"{name}-autoattack"]
        low, high = auto.interval
        cells.append(f"{auto.value:.1f} ({low:.1f} to {high:.1f})")
        row = f"| {TRAINED[name]} | {' | '.join(cells)} |"
        assert row in README, row
