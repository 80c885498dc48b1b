"""The benchmark of a GPU, tried on a CPU: what it records, and what it leaves out."""

import subprocess
import sys
from pathlib import Path

import pytest

from wotlab import results

pytestmark = pytest.mark.slow  # PyTorch and all that is measured are imported anew
ROOT = Path(__file__).resolve().parents[1]
CHEAP = ("transport", "radius", "sinkhorn", "kernel", "defenses", "certificates", "iwda")


def run(out: Path, *more: str) -> str:
    pytest.importorskip("threadpoolctl")
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--dry", "--out", out, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_cheap_row_records_what_it_measured(tmp_path):
    said = run(tmp_path, "--data", str(tmp_path), "--rows", *CHEAP)
    assert "kernel: left out, no kernel" in said
    found = results.table("gpu-speed", "task", "defense", folder=tmp_path)
    tasks = {task for task, _ in found}
    assert tasks == {"training", *CHEAP} - {"kernel", "defenses"}
    for record in found.values():
        assert record.value > 0 and 0 < record.seconds < 600 and record.device
        assert record.note == "tried on a CPU, small" and "scikit-learn" in record.samples
        assert record.command.startswith("python benchmarks/gpu.py --dry --out FOLDER")
    details = {task: found[task, None].details for task in tasks - {"training"}}
    assert 0 <= details["transport"]["accuracy"] <= 100 and details["transport"]["gradients"] > 0
    assert all(details[task]["host_seconds"] > 0 for task in ("transport", "radius"))
    assert 0 <= details["radius"]["accuracy"] <= 100 and details["radius"]["found"] > 0
    assert details["sinkhorn"]["error"] <= 1e-6 and details["certificates"]["inside"] == 100
    passes = {name: found["training", name].details["back_propagations"]
              for task, name in found if task == "training"}  # fmt: skip
    assert passes["standard"] == 1 and passes["pgd-40"] == 41 and passes["wasserstein-at"] == 7
    for record in found.values():
        if record.keys["task"] == "training":  # of the whole training set, from a part
            assert record.value == pytest.approx(record.details["measured_seconds"] * 60_000 / 50)


def test_no_row_begins_that_may_end_too_late(tmp_path):
    said = run(tmp_path, "--seconds", "30", "--rows", "radius", "certificates")
    assert said.count("left out, it may take") == 2 and not list(tmp_path.iterdir())
