"""How long does `import wotlab` take, beside `import torch`? Processor seconds of fresh processes.

A module is imported in a fresh process after a first one that warmed the disk's cache; modules take
turns, and the medians of the rounds are compared.

    python benchmarks/imports.py [--rounds 9]
"""

import subprocess
import sys
from statistics import median

from common import options, parse, save

LOOK = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
MODULES = ("torch", "wotlab")


def seconds(module: str) -> float:
    """Processor time that a fresh process needs to import a module."""
    command = [sys.executable, "-c", LOOK.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(rounds=9)
    given = parse(parser)
    for module in MODULES:
        seconds(module)
    rounds = [[seconds(module) for module in MODULES] for _ in range(given.rounds)]
    torch, wotlab = map(median, zip(*rounds, strict=True))
    save(
        given.out, "import-time", {"module": "wotlab"}, wotlab / torch,
        "times the seconds of import torch", "fresh processes, in turns", sum(map(sum, rounds)),
        torch_seconds=torch, wotlab_seconds=wotlab, rounds=given.rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
