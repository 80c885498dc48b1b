"""A number stays on the line of its per cent sign: the space between them does not break."""

import re

from docutils import nodes

LOOSE = re.compile(r"(?<=\d) (?=%)")


def hold(app, doctree, docname) -> None:
    """Replace the spaces in a page's prose; code and mathematics are left alone."""
    for text in list(doctree.findall(nodes.Text)):
        kept = (nodes.literal, nodes.literal_block, nodes.math, nodes.raw)
        if LOOSE.search(text) and not isinstance(text.parent, kept):
            text.parent.replace(
                text, nodes.Text(LOOSE.sub("\u00a0", text))
            )


def setup(app) -> dict[str, bool]:
    app.connect("doctree-resolved", hold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
