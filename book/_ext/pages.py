"""What the pages have in common that are made anew in each build: chapters read, Markdown parsed."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


@cache
def chapters() -> dict[Path, str]:
    """The notebooks of the chapters, as they are stored."""
    here = Path(__file__).parents[1]
    return {p: p.read_text() for p in sorted(here.glob("0*.ipynb"))}


def parse(
    directive: SphinxDirective, text: str, into: nodes.Element, page: str
) -> None:
    """Put Markdown that a directive has written into a node of its page."""
    lines = StringList(text.splitlines(), source=page)
    directive.state.nested_parse(lines, directive.content_offset, into)


def anew(page: str) -> Callable:
    """A listener that has the page made in each build: what it is made of may have changed."""

    def outdated(app, env, added, changed, removed) -> list[str]:
        return [page] if page in env.found_docs else []

    return outdated
