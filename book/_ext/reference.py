"""`api`: the page of a module, a table of all that it exports and then an entry for each."""

import importlib
import inspect
import re
import sys

from docstrings import described, finish, home, homes
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


class Api(SphinxDirective):
    """The names of a module in groups, a line each: `Title: name name`.

    First the module's own words, then a table of each group with the first paragraph of every
    docstring, then the entries in the same order. With `:table:` the table alone, for names that
    have their entries elsewhere. A name left out, or one too many, is an error.
    """

    required_arguments = 1
    has_content = True
    option_spec = {  # noqa: RUF012, docutils reads it
        "table": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        path = self.arguments[0]
        groups = [
            line.rpartition(":") for line in self.content if line.strip()
        ]
        named = [name for _, _, names in groups for name in names.split()]
        module, alone = (
            importlib.import_module(path),
            "table" in self.options,
        )
        wanted = module.__all__ if alone else own(path)
        if sorted(named) != sorted(wanted):
            wrong = sorted(set(named) ^ set(wanted)) or sorted(
                n for n in named if named.count(n) > 1
            )
            raise self.error(
                f"{path} exports {wrong}, or does not, or twice"
            )
        lines = [] if alone else [f".. automodule:: {path}", ""]
        for name in named:
            self.env.note_dependency(
                source(getattr(module, name), module)
            )
        for title, _, names in groups:
            lines += (
                [f".. rubric:: {title}", ""] if len(groups) > 1 else []
            )
            lines += table(path, names.split())
        for name in [] if alone else named:
            lines += entry(path, name)
        box = nodes.Element()
        self.state.nested_parse(
            StringList(lines, source=path), self.content_offset, box
        )
        return box.children


def own(path: str) -> list[str]:
    """Names that are documented as this module's."""
    return [
        n.rpartition(".")[2]
        for n in homes()
        if n.rpartition(".")[0] == path
    ]


def source(thing: object, module) -> str:
    """The file whose change changes the page."""
    return (
        inspect.getsourcefile(inspect.unwrap(thing))
        if documented(thing)
        else module.__file__
    )


def table(path: str, names: list[str]) -> list[str]:
    lines = [
        ".. list-table::",
        "   :class: api-table",
        "   :widths: 30 70",
        "",
    ]
    for name in names:
        said = "\n".join(summary(path, name)).replace("\n", "\n       ")
        lines += [
            f"   * - :py:obj:`{name} <{home(f'{path}.{name}')}>`",
            f"     - {said}",
        ]
    return [line for each in lines for line in each.split("\n")] + [""]


def summary(path: str, name: str) -> list[str]:
    """The first paragraph on an object, with its links."""
    thing = getattr(importlib.import_module(path), name)
    target = home(f"{path}.{name}")
    said = inspect.getdoc(thing) if documented(thing) else comment(target)
    lines = re.split(r"\n\s*\n", said)[0].split("\n")
    finish(None, "", target, thing, None, lines)
    return lines


def documented(thing: object) -> bool:
    return inspect.ismodule(thing) or described(thing)


def entry(path: str, name: str) -> list[str]:
    full, thing = (
        f"{path}.{name}",
        getattr(importlib.import_module(path), name),
    )
    if not documented(thing):
        value = worded(thing)
        lines = [comment(full)]
        finish(None, "", full, thing, None, lines)
        shown = [f"   :value: {value}"] if value else []
        return [
            f".. py:data:: {name}",
            *shown,
            "",
            *(f"   {line}" for line in lines),
            "",
        ]
    if inspect.isclass(thing):
        return [f".. autoclass:: {full}", "   :members:", ""]
    return [f".. autofunction:: {full}", ""]


def worded(value: object) -> str:
    """A constant, if it is one that can be read."""
    if isinstance(value, str | int | float) or (
        isinstance(value, tuple) and len(value) < 4
    ):
        return repr(value)
    union = hasattr(value, "__args__")
    return re.sub(r"(\w+\.)+", "", str(value)) if union else ""


def comment(full: str) -> str:
    """What `#:` says of a constant where it is defined."""
    path, _, name = full.rpartition(".")
    for module in sorted(sys.modules):
        if module == path or module.startswith(f"{path}."):
            said = (
                ModuleAnalyzer.for_module(module)
                .find_attr_docs()
                .get(("", name))
            )
            if said:
                return " ".join(said).strip()
    raise ValueError(f"{full} has no comment that begins with #:")


class Modules(SphinxDirective):
    """A table of modules, each with the first sentence of its docstring and a link to its page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = [
            ".. list-table::",
            "   :class: api-table",
            "   :widths: 30 70",
            "",
        ]
        for path in self.content:
            module = importlib.import_module(path)
            self.env.note_dependency(module.__file__)
            said = re.split(r"(?<=\.)\s", inspect.getdoc(module))[
                0
            ].split("\n")
            finish(None, "", path, module, None, said)
            lines += [
                f"   * - :py:mod:`{path}`",
                f"     - {' '.join(said)}",
            ]
        box = nodes.Element()
        self.state.nested_parse(
            StringList(lines, source="modules"), self.content_offset, box
        )
        return box.children


def setup(app):
    app.add_directive("api", Api)
    app.add_directive("api-modules", Modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
