"""The page of errata: each can be linked to its cell, and a broken one is refused."""

import re
from collections import Counter
from pathlib import Path

import errata as page
import nbformat
import pytest
from browsing import SITE
from bs4 import BeautifulSoup
from execute import execute

BOOK = Path(__file__).resolve().parents[1] / "book"
BUILT = SITE / "book" / "errata.html"
GOOD = {"paper": "hu2020", "place": "Equation 3", "wrong": "It is $x$.", "shown": "proof"}


def cell(kind: str, source: str, **metadata) -> nbformat.NotebookNode:
    name = re.sub(r"\W+", "-", f"{kind} {source}")[:30]
    return getattr(nbformat.v4, f"new_{kind}_cell")(source, id=name, metadata=metadata)


def one(entry: object, *above: nbformat.NotebookNode) -> page.Erratum:
    """The erratum of a small chapter's last cell."""
    cells = [*above, cell("code", "1", errata=[entry])]
    (found,) = page.of("02_small.ipynb", nbformat.v4.new_notebook(cells=cells))
    return found


HEADING = cell("markdown", "# A chapter\n\n(sec-one)=\n## One\n\n### Two of `x`\n\n### Two of x")
THEOREM = cell("markdown", "## Four\n\n````{prf:theorem} A name\n:label: thm-one\nText.\n````")
FIGURE = {"figure": {"caption": "A caption.", "name": "fig-one"}}


def test_every_erratum_of_the_book_is_whole():
    stored = [
        entry
        for path in BOOK.glob("*.ipynb")
        for each in nbformat.read(path, as_version=4).cells
        for entry in each.metadata.get("errata", [])
    ]
    found = page.errata()
    assert len(found) == len(stored) > 60
    assert len({(e.paper, e.place, e.wrong) for e in found}) == len(found)
    bibliography = (BOOK / "references.bib").read_text()
    for each in found:
        assert f"{{{each.paper},\n" in bibliography
        assert each.place and each.link and each.shown in page.SHOWN
        assert each.wrong.endswith((".", "?")) and not each.wrong[0].islower()


def test_every_link_leads_to_a_name_of_the_book():
    """As a plain search of the notebooks finds it."""
    texts = {path.name: path.read_text() for path in BOOK.glob("0*.ipynb")}
    every = "".join(texts.values())
    for each in page.errata():
        if role := re.search(r"\{(numref|ref|prf:ref)\}`([\w-]+)`$", each.link):
            written = {"numref": '"name": "%s"', "ref": "(%s)=\\n", "prf:ref": ":label: %s\\n"}
            assert written[role[1]] % role[2] in every, each
        else:
            name, slug = re.search(r"\[\]\((0\w+\.ipynb)#([\w-]+)\)$", each.link).groups()
            heads = re.findall(r'"#+ (.+?)(?:\\n)?"', texts[name])
            assert re.sub(r"-1$", "", slug) in {page.unique(head, set()) for head in heads}, each


def test_the_page_has_a_table_for_each_paper_with_every_erratum_once():
    named = re.findall(r"^```\{errata\} (\S+)$", (BOOK / "errata.md").read_text(), re.MULTILINE)
    some = page.errata()
    assert named[0] == "counts" and set(named[1:]) == {each.paper for each in some}
    assert len(named) == len(set(named))
    for paper in named[1:]:
        table = page.table(paper, some)
        mine = [each for each in some if each.paper == paper]
        assert Counter(re.findall(r"^\* - (.+)$", table, re.MULTILINE)) == Counter(
            ["where", *(each.place for each in mine)]
        )
        for each in mine:
            assert f"  - {each.wrong}\n" in table and f"  - {each.shown}: {each.link}" in table
            assert not each.right or f"\n\n    *Right:* {each.right}\n" in table


def test_the_sentence_counts():
    made = [page.Erratum(p, "A", "B.", how) for p, how in (("x", "proof"), ("y", "run"))]
    assert page.counts((*made, made[1])) == (
        "Below are 3 errors, gaps and doubtful numbers in 2 papers, of which 1 are shown by a "
        "proof, 2 by a run, 0 by printed numbers alone and 0 by reading."
    )
    numbers = [int(n) for n in re.findall(r"(?<!\w)\d+", page.counts(page.errata()))]
    assert numbers[0] == sum(numbers[2:]) == len(page.errata())


@pytest.mark.skipif(not BUILT.exists(), reason="no built site: run `make book` first")
def test_the_built_page_has_a_row_with_a_link_for_each():
    html = BeautifulSoup(BUILT.read_text(), "html.parser")
    rows = html.select("table.errata tbody tr")
    assert len(rows) == len(page.errata())
    assert page.counts(page.errata()) in html.get_text()
    for row in rows:
        assert [len(row.select("td")), bool(row.select("td:last-child a[href*='#']"))] == [3, True]
        text = row.get_text()
        assert not re.search(r"[$`{]", re.sub(r"\\\(.*?\\\)", "", text)), text  # all was parsed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"paper": "hu2021"}, "paper must be a key of references.bib, not 'hu2021'"),
        ({"shown": "numbers"}, "shown must be one of proof, run, printed numbers, reading"),
        ({"place": ""}, "an erratum lacks place"),
        ({"wrong": "Two of them. They are short."}, "wrong must be one sentence"),
        ({"wrong": "No end"}, "wrong must be one sentence"),
        ({"right": "One. Two."}, "right must be one sentence"),
        ({"target": "fig-none"}, "target must be a section, theorem or figure of the chapter"),
        ({"remark": "more"}, "'remark' must be one of paper, place, wrong, shown, right, target"),
    ],
)
def test_a_broken_erratum_is_refused(change, says):
    with pytest.raises(ValueError, match=re.escape(says)) as told:
        one(GOOD | change, HEADING)
    assert str(told.value).startswith("02_small.ipynb, cell code-1: ")


def test_what_is_no_erratum_is_refused():
    with pytest.raises(ValueError, match="must be a dictionary, not 'text'"):
        one("text", HEADING)
    with pytest.raises(ValueError, match="nothing above the cell can be linked to"):
        one(GOOD)
    with pytest.raises(ValueError, match="no erratum names the paper 'got'"):
        page.table("got", (one(GOOD, HEADING),))


def test_the_link_leads_to_the_nearest_name():
    chapter = "chapter 2, [](02_small.ipynb#"
    assert one(GOOD, HEADING).link == chapter + "two-of-x-1)"
    assert one(GOOD | {"target": "two-of-x"}, HEADING).link == chapter + "two-of-x)"
    assert one(GOOD | {"target": "sec-one"}, HEADING).link == "chapter 2, {ref}`sec-one`"
    assert one(GOOD, HEADING, THEOREM).link == "{prf:ref}`thm-one`"
    plotted = cell("code", "2", mystnb=FIGURE)
    assert one(GOOD, HEADING, plotted).link == "{numref}`fig-one`"
    plotted.metadata["errata"] = [GOOD]
    cells = [HEADING, plotted, THEOREM]
    (own,) = page.of("02_small.ipynb", nbformat.v4.new_notebook(cells=cells))
    assert own.link == "{numref}`fig-one`"
    program = cell("markdown", "## Code\n\n```python\n# no heading\n```")
    assert one(GOOD, program).link == chapter + "code)"


def test_metadata_outlives_a_run(tmp_path):
    path = tmp_path / "02_small.ipynb"
    cells = [HEADING, cell("code", "print(1)", errata=[GOOD])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    execute(path)
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[1].metadata == {"errata": [GOOD]} and stored.cells[1].outputs
    assert len(page.of(path.name, stored)) == 1
