"""What may import what, as CONTRIBUTING draws it; and what `import wotlab` brings along."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wotlab"
FLOORS = (  # each imports from those before it; those of one floor leave one another alone
    ("_base",),
    ("ot", "gibbs"),
    ("plans",),
    ("iwd", "projections"),
    ("balls",),
    ("transformations", "smoothing"),
    ("attacks",),
    ("training", "evaluate"),
    ("data", "models", "plots", "results", "exercises"),
    ("experiments",),
)
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
HEAVY = ["ot", "scipy", "torchvision", "sklearn", "skimage", "matplotlib", "pyautoattack"]
HEAVY += ["lightning_fabric", "cvxpy"]


def imports(path: Path) -> list[str]:
    """The modules of wotlab that a file imports, by their names below it; "" for wotlab itself."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in parts]
        else:
            continue
        found += [n.partition(".")[2] for n in names if n.partition(".")[0] == "wotlab"]
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_up(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if path.stem == "__main__":  # a command stands above all floors
        return
    for name in imports(path):
        package, *inside = name.split(".")
        if package != own:  # what wotlab exports at the top is for those above everything
            floor = FLOOR[package] if package else FLOOR["experiments"] - 0.5
            assert floor < FLOOR[own], f"{path} imports wotlab.{name}"
            if package != "_base":
                private = [part for part in inside if part.startswith("_")]
                assert not private, f"{path} imports what is private to wotlab.{package}: {name}"


def test_every_module_has_a_floor_and_contributing_names_it():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {"__init__", "__pycache__", "records", "py"} == set(FLOOR)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = [
        tuple(re.findall(r"`(\w+)`", row.split("|")[1]))
        for row in re.findall(r"^\| `.*", text, re.M)
    ]
    assert drawn == list(reversed(FLOORS))


def test_files_stay_short():
    assert not [path for path in FILES if len(path.read_text().splitlines()) >= 400]


MODULES = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "wotlab.")]
PUBLIC = [name for name in MODULES if not re.search(r"\._|\.(experiments|records)", name)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_all_that_it_defines_and_all_that_others_take_from_it(name):
    module = importlib.import_module(name)
    wanted = {n for n, thing in vars(module).items()
              if (inspect.isfunction(thing) or inspect.isclass(thing))
              and thing.__module__.startswith(name)}  # fmt: skip
    inside = ROOT.joinpath(*name.split("."))
    for path in FILES:
        if inside not in path.parents:
            taken = [node for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.ImportFrom) and node.module == name]  # fmt: skip
            wanted |= {alias.name for node in taken for alias in node.names}
    wanted = {n for n in wanted if not n.startswith("_") and not is_module(f"{name}.{n}")}
    wanted = {n for n in wanted if get_origin(vars(module)[n]) is None}  # names of types are free
    assert wanted <= set(module.__all__) <= set(vars(module))


LOOK = f"""
import sys, wotlab
print(*(name for name in {HEAVY} if name in sys.modules))
assert wotlab.data.load and wotlab.plots.SOURCE and not hasattr(wotlab, "nonsense")
assert set(wotlab.__all__) < set(dir(wotlab))
from wotlab import *
assert models.load and "torchvision" in sys.modules
"""


def test_import_wotlab_brings_nothing_heavy_and_the_rest_comes_on_first_use():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stdout + done.stderr
