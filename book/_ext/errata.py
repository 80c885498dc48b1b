"""`errata`: what is wrong in the papers, from the metadata of the chapters' cells, at each build.

An erratum stands with the cell that shows it, under "errata", where no reader of the chapter sees
it: `{"paper": "hu2020", "place": "Equation 3", "wrong": "One sentence.", "shown": "proof"}`. With
"right", another sentence, where the mistake can be mended, and "target" where the link is to lead
elsewhere than to the cell's own or the nearest name above it: a section, a theorem, a figure.
The directive with `counts` is a sentence on all of them, with a paper's key its table.
"""

import re
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path

import nbformat
from docutils import nodes
from myst_parser.mdit_to_docutils.base import default_slugify
from pages import anew, chapters, parse
from sphinx.util.docutils import SphinxDirective

PAGE = "book/errata"
SHOWN = {  # how, and in the sentence of counts
    "proof": "by a proof",
    "run": "by a run",
    "printed numbers": "by printed numbers alone",
    "reading": "by reading",
}
ENDS = re.compile(r"[.?!]$")
NEXT = re.compile(r"(?<!et al)[.?!] +[A-Z]")  # another sentence
KEY = re.compile(r"^@\w+\{([\w-]+),", re.MULTILINE)
CODE = re.compile(r"^```python\n.*?^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(
    r"^\((?P<section>[\w-]+)\)=\n+#+ (?P<named>.+)$"
    r"|^#+ (?P<heading>.+)$"
    r"|^[:`]{3,}\{prf:\w+\}.*\n:label: (?P<theorem>[\w-]+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Erratum:
    """What a cell says against a paper, and the Markdown of a link to where it says it."""

    paper: str
    place: str
    wrong: str
    shown: str
    right: str = ""
    target: str = ""
    link: str = ""


WORDS = [field.name for field in fields(Erratum) if field.name != "link"]
NEEDED = [f.name for f in fields(Erratum) if f.default is MISSING]


@cache
def papers() -> tuple[str, ...]:
    """The keys of the bibliography."""
    file = Path(__file__).parents[1] / "references.bib"
    return tuple(KEY.findall(file.read_text()))


@cache
def errata() -> tuple[Erratum, ...]:
    """All of them, in the order of the book."""
    return tuple(
        erratum
        for path, text in chapters().items()
        for erratum in of(path.name, nbformat.reads(text, as_version=4))
    )


def of(name: str, notebook: nbformat.NotebookNode) -> list[Erratum]:
    """The errata of one notebook; a ValueError names the cell of a broken one."""
    links = targets(name, notebook.cells)
    found, nearest = [], ""
    for k, cell in enumerate(notebook.cells):
        nearest = next(
            (t for t, (at, _) in reversed(links.items()) if at == k),
            nearest,
        )
        for entry in cell.metadata.get("errata", []):
            if reason := broken(entry, links):
                raise ValueError(f"{name}, cell {cell.id}: {reason}")
            target = entry.get("target", nearest)
            if not target:
                raise ValueError(
                    f"{name}, cell {cell.id}: nothing above the cell can "
                    "be linked to; put a heading there"
                )
            found.append(Erratum(**entry, link=links[target][1]))
    return found


def broken(entry: dict, links: dict) -> str | None:
    """What is wrong with an entry itself, and what to do."""
    if not isinstance(entry, dict):
        return f"an erratum must be a dictionary, not {entry!r}"
    if lacking := [word for word in NEEDED if not entry.get(word)]:
        return f"an erratum lacks {', '.join(lacking)}: {entry}"
    if strange := [word for word in entry if word not in WORDS]:
        return f"{strange[0]!r} must be one of {', '.join(WORDS)}"
    if entry["paper"] not in papers():
        return f"paper must be a key of references.bib, not {entry['paper']!r}"
    if entry["shown"] not in SHOWN:
        return (
            f"shown must be one of {', '.join(SHOWN)}, "
            f"not {entry['shown']!r}"
        )
    for word in ("wrong", "right"):
        text = entry.get(word)
        if text and (not ENDS.search(text) or NEXT.search(text)):
            return f"{word} must be one sentence, not {text!r}"
    if entry.get("target", "") not in {"", *links}:
        return (
            f"target must be a section, theorem or figure of the chapter, "
            f"not {entry['target']!r}"
        )
    return None


def targets(name: str, cells: list) -> dict[str, tuple[int, str]]:
    """What a chapter's page can be linked to, with the cell's place and the link, in order."""
    found: dict[str, tuple[int, str]] = {}
    slugs: set[str] = set()
    chapter = f"chapter {int(name[:2])}"
    for k, cell in enumerate(cells):
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure.get("name"):
            found[figure["name"]] = k, f"{{numref}}`{figure['name']}`"
        if cell.cell_type != "markdown":
            continue
        for match in NAME.finditer(CODE.sub("", cell.source)):
            section, theorem = match["section"], match["theorem"]
            if theorem:
                found[theorem] = k, f"{{prf:ref}}`{theorem}`"
                continue
            slug = unique(match["named"] or match["heading"], slugs)
            if section:
                found[section] = k, f"{chapter}, {{ref}}`{section}`"
            else:
                found[slug] = k, f"{chapter}, []({name}#{slug})"
    return found


def unique(title: str, slugs: set[str]) -> str:
    """The anchor that MyST gives to a heading; it is kept in `slugs`."""
    slug, k = default_slugify(title.strip().replace("`", "")), 1
    while slug in slugs:
        slug, k = f"{slug}-{k}", k + 1
    slugs.add(slug)
    return slug


# The page


class Errata(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        which, made = self.arguments[0], nodes.Element()
        try:
            some = errata()
            text = (
                counts(some) if which == "counts" else table(which, some)
            )
        except ValueError as error:
            raise self.error(str(error)) from error
        parse(self, text, made, PAGE)
        return made.children


def counts(some: tuple[Erratum, ...]) -> str:
    """How many there are, and how they were shown, as a sentence."""
    number = Counter(erratum.shown for erratum in some)
    told = [f"{number[how]} {words}" for how, words in SHOWN.items()]
    told[0] = told[0].replace(" by", " are shown by")
    return (
        f"Below are {len(some)} errors, gaps and doubtful numbers in "
        f"{len({each.paper for each in some})} papers, of which "
        f"{', '.join(told[:-1])} and {told[-1]}."
    )


def table(paper: str, some: tuple[Erratum, ...]) -> str:
    """A paper's errata as Markdown, a row each."""
    rows = [["where", "what is wrong", "shown by"]]
    for each in some:
        if each.paper == paper:
            right = f"\n\n    *Right:* {each.right}" if each.right else ""
            how = f"{each.shown}: {each.link}"
            rows.append([each.place, each.wrong + right, how])
    if len(rows) == 1:
        raise ValueError(f"no erratum names the paper {paper!r}")
    lines = ["```{list-table}", ":header-rows: 1", ":class: errata", ""]
    for first, *others in rows:
        lines += [f"* - {first}", *(f"  - {text}" for text in others)]
    return "\n".join([*lines, "```"])


def setup(app):
    app.add_directive("errata", Errata)
    app.connect("env-get-outdated", anew(PAGE))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
