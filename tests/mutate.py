"""Mistakes on purpose: do the tests notice?

    .venv/bin/python tests/mutate.py [--count N] [--seed S] [--seconds T] [--out FILE] [--again]

makes plausible mistakes in the attacks, defenses, projections, evaluations and solvers, one at a
time, runs the tests that execute the changed line, and lists the mistakes that no test noticed.
Results are kept in FILE, one JSON a line: a second run goes on where the first one stopped.
`mutations/harmless.txt` names the mistakes that change nothing, each with a reason.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # the package of this checkout

from mutations import trials  # noqa: E402
from mutations.mistakes import Mistake, chosen  # noqa: E402

LONGEST = 4.0  # times the seconds of the tests: who takes longer counts as noticed
HARMLESS = HERE / "mutations" / "harmless.txt"


def harmless() -> dict[str, str]:
    """Mistakes that change nothing: `file | function | before -> after | reason`, one a line."""
    lines = HARMLESS.read_text().splitlines()
    pairs = (line.rsplit(" | ", 1) for line in lines if line and not line.startswith("#"))
    return {key: reason for key, reason in pairs}


def say(text: str) -> None:
    print(text, flush=True)


def record(mistake: Mistake, tests: list[str], result: dict | None, seconds: float) -> dict:
    """What is kept of one mistake. Status 0: all tests passed; None: no answer, a crash."""
    noticed = bool(tests) and (result is None or result["status"] != 0)
    by = "crash or time" if result is None else (result["by"] or ["import"])[0]
    return {
        "key": mistake.key,
        "line": mistake.line,
        "what": mistake.what,
        "noticed": noticed,
        "by": by if noticed else None,
        "tests": len(tests),
        "seconds": round(seconds, 1),
    }


def run(todo: list[Mistake], out: Path, processes: int, seconds: float) -> None:
    """Try the mistakes, `processes` at a time, and append each one's record to the file."""
    lines = trials.Coverage(say)
    begin, queue, running, done = time.monotonic(), list(todo), [], 0

    def keep(kept: dict) -> None:
        nonlocal done
        with out.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        done += 1
        rate = (time.monotonic() - begin) / done
        mark = "noticed " if kept["noticed"] else "SURVIVED"
        say(f"{done}/{len(todo)} {rate:.1f} s each  {mark} {shown(kept)}")

    while queue or running:
        while queue and len(running) < processes:
            mistake = queue.pop(0)
            tests = lines.tests(mistake, seconds)
            if not tests:  # pytest without a test would run them all
                keep(record(mistake, tests, None, 0.0))
                continue
            trial = trials.trial(mistake, tests, LONGEST * max(seconds, lines.spent(tests)))
            running.append((mistake, tests, trial))
        time.sleep(0.02)
        for one in [r for r in running if r[2].done()]:
            running.remove(one)
            mistake, tests, fork = one
            if fork.result and fork.result["status"] not in (0, 1, 2, 4):
                raise RuntimeError(f"pytest itself failed on {mistake.key}: {fork.result}")
            keep(record(mistake, tests, fork.result, fork.seconds))


def shown(kept: dict) -> str:
    file, function, change = kept["key"].split(" | ", 2)
    return f"{file}:{kept['line']} {function}: {change}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--count", type=int, default=220, help="how many mistakes; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="another choice of mistakes")
    parser.add_argument("--out", type=Path, default=HERE.parent / "_build" / "mutations.jsonl")
    parser.add_argument("--processes", type=int, default=2, help="mistakes at a time")
    parser.add_argument("--seconds", type=float, default=25, help="of tests for each mistake")
    parser.add_argument("--again", action="store_true", help="try the survivors once more")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = harmless()
    every = [m for m in chosen(given.only, 0, given.seed) if m.key not in known]
    wanted = every[: given.count or None]
    kept = read(given.out)
    todo = [m for m in wanted if m.key not in kept or (given.again and not kept[m.key]["noticed"])]
    start = time.monotonic()
    if todo:
        trials.preload()
        run(todo, given.out, given.processes, given.seconds)
    report(wanted, read(given.out), known, time.monotonic() - start)
    return 0


def read(path: Path) -> dict[str, dict]:
    """The latest record of each mistake."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {one["key"]: one for one in map(json.loads, lines)}


def report(wanted: list[Mistake], kept: dict[str, dict], known: dict, seconds: float) -> None:
    tried = [kept[m.key] | {"line": m.line} for m in wanted if m.key in kept]
    survivors = sorted((k for k in tried if not k["noticed"]), key=lambda k: (k["key"], k["line"]))
    say(f"\n{len(tried)} mistakes, {len(tried) - len(survivors)} noticed, "
        f"{len(survivors)} survived; {seconds:.0f} s")  # fmt: skip
    for one in survivors:
        say(f"  {shown(one)}" + ("" if one["tests"] else "   (no test executes it)"))
    if known:
        say(f"{len(known)} known to change nothing are left out:")
    for key, reason in known.items():
        say(f"  {key} | {reason}")


if __name__ == "__main__":
    sys.exit(main())
