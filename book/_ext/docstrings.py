"""Docstrings are written for a terminal: |x| in them is mathematics, not a reST substitution."""

import re

CODE_OR_BAR = re.compile(r"``.+?``|`[^`]+`|(?<!\\)\|")


def escape_bars(app, what, name, obj, options, lines):
    text = CODE_OR_BAR.sub(lambda m: r"\|" if m[0] == "|" else m[0], "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app):
    app.connect(
        "autodoc-process-docstring", escape_bars, priority=900
    )  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
