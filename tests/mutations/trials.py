"""Which tests execute which line, and whether they notice a mistake; each run is a fork.

The parent has imported everything but the package under test, so that a fork need not.
"""

import hashlib
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from mutations.mistakes import ROOT, Mistake

TESTS = ROOT / "tests"
LEFT_OUT = {  # what cannot notice: tests of the book, of the records, of the wheel, of a GPU
    *("site", "packaging", "notebooks", "readme", "repository", "notation", "plots", "results"),
    *("gpu", "experiments", "experiments_call", "experiments_digits", "experiments_iwd"),
    *("results_names", "zoo"),
}
MEMORY = 12 * 2**30
OPTIONS = ["-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", "-p", "no:xdist"]
OPTIONS += ["--hypothesis-seed=0", "--rootdir", str(ROOT)]


def preload() -> None:
    """Import what the package and its tests import; `fork` copies it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()
    for name in ("torch", "torchvision", "numpy", "scipy.optimize", "ot", "sklearn.datasets",
                 "skimage", "joblib", "matplotlib.pyplot", "safetensors.torch", "pyautoattack",
                 "lightning_fabric", "lightning.fabric", "hypothesis", "cvxpy", "coverage",
                 "torchattacks", "tqdm.auto"):  # fmt: skip
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    import torch
    from hypothesis import Phase, settings

    assert "wotlab" not in sys.modules
    torch.set_num_threads(1)
    # a mistake need not be reduced to its smallest example
    settings.register_profile(
        "mutations", database=None, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutations")


class Forked:
    """A child that runs `work` and writes what it returns; one that never ends is killed."""

    def __init__(self, work: Callable[[], object], seconds: float):
        sys.stdout.flush()
        self.file = Path(tempfile.mkstemp(suffix=".json")[1])
        self.started, self.limit = time.monotonic(), 10 * seconds + 60
        self.pid = os.fork()
        if self.pid == 0:
            self._child(work, seconds)

    def _child(self, work, seconds: float) -> None:
        os.setsid()
        limit = int(seconds) + 1  # of the processor's time: others may be at work too
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        try:
            self.file.write_text(json.dumps(work()))
        finally:
            os._exit(0)

    def done(self) -> bool:
        """Whether it has ended; what it wrote is `result` then, None if it crashed."""
        over = time.monotonic() - self.started > self.limit
        if over:
            os.killpg(self.pid, signal.SIGKILL)
        pid, _ = os.waitpid(self.pid, 0 if over else os.WNOHANG)
        if pid == 0:
            return False
        text = self.file.read_text()
        self.file.unlink()
        self.result, self.seconds = json.loads(text) if text else None, time.monotonic()
        self.seconds -= self.started
        return True


class Watch:
    """A pytest plugin: the outcome and the seconds of each test."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.passed = 0

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)
        self.passed += report.passed and report.when == "call"

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Contexts(Watch):
    """Coverage under the name of each test, or of the file's fixture that several tests share."""

    def __init__(self, coverage):
        super().__init__()
        self.coverage, self.fixtures, self.now = coverage, {}, ""

    def _switch(self, name: str) -> None:
        self.now = name
        if sys.gettrace() is None:  # an attack of another library has switched it off
            self.coverage.stop()
            self.coverage.start()
        self.coverage.switch_context(name)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._switch(nodeid)

    def pytest_runtest_setup(self, item) -> None:
        self.fixtures[item.nodeid] = list(item.fixturenames)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before = self.now
        if fixturedef.scope != "function":
            self._switch(f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self._switch(before)

    def pytest_runtest_logfinish(self) -> None:
        self._switch("")


def _covered(path: Path) -> dict:
    """For one file of tests: seconds of each, the lines that each executes, what fails."""
    import coverage

    watch = coverage.Coverage(data_file=None, source=[str(ROOT / "wotlab")], config_file=False)
    watch.start()
    plugin = Contexts(watch)
    pytest.main([*OPTIONS, str(path)], plugins=[plugin])
    watch.stop()
    data, lines = watch.get_data(), {}
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in filter(None, contexts):
                one = lines.setdefault(context, {})
                one.setdefault(str(Path(file).relative_to(ROOT)), []).append(line)
    tests = {
        test: {
            "seconds": plugin.seconds[test],
            "contexts": [test, *(f"fixture {name}" for name in plugin.fixtures.get(test, []))],
        }
        for test in plugin.seconds
        if test not in plugin.failed
    }
    return {"tests": tests, "lines": lines, "failed": plugin.failed}


def _digest(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:20]


class Coverage:
    """Which tests execute a line. Measured once for each state of the files, then remembered."""

    def __init__(self, say: Callable[[str], None]):
        cache = Path(tempfile.gettempdir()) / f"wotlab-mutations-{os.getuid()}"
        cache.mkdir(exist_ok=True)
        code = [*sorted((ROOT / "wotlab").rglob("*.py")), TESTS / "conftest.py"]
        self.seconds: dict[str, float] = {}
        self.by_line: dict[tuple[str, int], set[str]] = {}
        for path in sorted(TESTS.glob("test_*.py")):
            if path.stem.removeprefix("test_") in LEFT_OUT:
                continue
            kept = cache / f"{path.stem}-{_digest([*code, path])}.json"
            if not kept.exists():
                fork = Forked(lambda path=path: _covered(path), 1200)
                while not fork.done():
                    time.sleep(0.05)
                if fork.result is None:
                    raise RuntimeError(f"{path.name} crashes without a mistake; run it alone")
                say(
                    f"{path.name}: lines of {len(fork.result['tests'])} tests, {fork.seconds:.0f} s"
                )
                kept.write_text(json.dumps(fork.result))
            found = json.loads(kept.read_text())
            if found["failed"]:
                say(f"left out, since they fail as things are: {', '.join(found['failed'])}")
            self._add(found)

    def _add(self, found: dict) -> None:
        for test, about in found["tests"].items():
            self.seconds[test] = about["seconds"]
            for context in about["contexts"]:
                for file, lines in found["lines"].get(context, {}).items():
                    for line in lines:
                        self.by_line.setdefault((file, line), set()).add(test)

    def tests(self, mistake: Mistake, budget: float) -> list[str]:
        """The tests that execute the mistake, at most `budget` seconds of them, in this order:

        the quickest first, where tests of that module and of formulas count a quarter.
        """
        module = Path(mistake.file).stem

        def order(test: str) -> tuple[float, str]:
            about = Path(test.split("::")[0]).stem
            near = module in about or "formulas" in about
            return self.seconds[test] * (0.25 if near else 1), test

        if mistake.lines is None:
            places = [place for place in self.by_line if place[0] == mistake.file]
        else:
            places = [(mistake.file, line) for line in mistake.lines]
        found = set().union(*(self.by_line.get(place, ()) for place in places))
        if not found and mistake.lines is None:  # a file without functions: any test may notice
            found = set(self.seconds)
        if found:  # what reads signatures executes none of the lines that it holds to account
            found |= {test for test in self.seconds if "test_formulas_defaults" in test}
        chosen, spent = [], 0.0
        for test in sorted(found, key=order):
            spent += self.seconds[test]
            if chosen and spent > budget:
                break
            chosen.append(test)
        return chosen

    def spent(self, tests: list[str]) -> float:
        """The seconds that these tests take without a mistake."""
        return sum(self.seconds[test] for test in tests)


class Changed(SourceFileLoader):
    """Loads the code with the mistake in place of the file's."""

    code = None

    def get_code(self, fullname):
        return self.code


def _try(mistake: Mistake, tests: list[str]) -> dict:
    path = ROOT / mistake.file
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    class Finder:
        @staticmethod
        def find_spec(name, path_, target=None):
            if name != module:
                return None
            loader = Changed(name, str(path))
            loader.code = mistake.code()
            return importlib.util.spec_from_file_location(name, path, loader=loader)

    sys.meta_path.insert(0, Finder)
    watch = Watch()
    status = int(pytest.main(["-x", *OPTIONS, *tests], plugins=[watch]))
    return {"status": status, "by": watch.failed[:1], "passed": watch.passed}


def trial(mistake: Mistake, tests: list[str], seconds: float) -> Forked:
    """Run these tests with the mistake made, in a fork."""
    return Forked(lambda: _try(mistake, tests), seconds)
