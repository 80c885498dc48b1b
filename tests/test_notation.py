"""The notation page gives names that exist; docstrings say what is taken; a paper has one year."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "book" / "notation.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and not line.startswith(("| symbol", "|---"))
]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[2])})


def resolve(path: str):
    """The object behind a dotted path; a dataclass's field counts, with or without a default."""
    first, *parts = path.split(".")
    found = importlib.import_module(first)
    for part in parts:
        if dataclasses.is_dataclass(found) and part in {f.name for f in dataclasses.fields(found)}:
            return part
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_name_in_code_exists(name):
    path, parameter = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", name).groups()
    found = resolve(path)
    if parameter:
        assert parameter in inspect.signature(found).parameters


def test_each_row_has_its_four_cells_and_each_symbol_stands_once():
    assert all(len(row) == 4 and row[0] and row[1] and row[3] for row in ROWS)
    symbols = [row[0] for row in ROWS]
    assert len(symbols) == len(set(symbols))


def test_a_wrong_name_is_found():
    with pytest.raises(AttributeError):
        resolve("wotlab.ot.sinkhron")


PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in map(importlib.import_module, ("wotlab", "wotlab.iwd.game", "wotlab.ot.marginals"))
    for name in module.__all__
}
PUBLIC |= {
    f"{path}.{name}": getattr(module, name)
    for path, module in tuple(PUBLIC.items()) if inspect.ismodule(module)
    for name in module.__all__
}  # fmt: skip


def test_every_public_name_says_what_it_takes():
    """But for a protocol, which nobody calls."""
    takes = {
        path: thing for path, thing in PUBLIC.items()
        if inspect.isfunction(thing) or inspect.isclass(thing)
        if set(inspect.signature(thing).parameters) - {"self"}
    }  # fmt: skip
    section = re.compile(r"^ *(Parameters|Attributes)\n *-+$", re.MULTILINE)
    silent = {path for path, thing in takes.items() if not section.search(thing.__doc__)}
    assert len(takes) > 90 and silent <= {"wotlab.training.Defense"}


def test_papers_have_the_years_of_the_bibliography():
    """In docstrings, comments, pages and records, wherever an author of the list is named."""
    root, years = PAGE.parents[1], {}
    entries = (PAGE.parent / "references.bib").read_text()
    for author, year in re.findall(r"author\s*= {([\w-]+),.*?year\s*= {(\d+)", entries, re.S):
        years.setdefault(author, set()).add(year)
    folders = ("wotlab/**/*.py", "tests/*.py", "benchmarks/*.py", "*.md", "book/*.md")
    files = [path for pattern in (*folders, "results/*/*.json") for path in root.glob(pattern)]
    dated = re.compile(r"\b([A-Z]\w+)(?: et al\.|(?:, \w+)* and \w+)?,?\s+\(?((?:19|20)\d\d)\b")
    found = {(path, *at) for path in files for at in dated.findall(path.read_text())}
    assert len(found) > 50
    assert not {at for at in found if at[1] in years and at[2] not in years[at[1]]}
