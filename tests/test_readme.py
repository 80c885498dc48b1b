"""The README's numbers are those of the records."""

from pathlib import Path

from wotlab import results

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


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
