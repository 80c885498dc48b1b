"""Docstrings are written for a terminal. Here they become pages: links, types, signatures.

A name in `backquotes` links to the object that it names, if that is public, and stays code if not;
so does a type in a list of parameters. A signature shows types by their short names and defaults
as one would write them. |x| is mathematics, not a reST substitution, and <= is one sign.
"""

import dataclasses
import importlib
import inspect
import re
from functools import cache, cached_property, partial

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.inspect import stringify_signature

PACKAGE = "wotlab"
ASIDE = (
    "wotlab.ot.marginals",
    "wotlab.iwd.game",
)  # modules of a package, on its page
TYPED = ("Parameters", "Attributes", "Returns")
SIGNS = {
    " >= ": " ≥ ",
    " <= ": " ≤ ",
    " != ": " ≠ ",
    " -> ": " → ",
    " <- ": " ← ",
}
INDEX = re.compile(r"(?<!\w)([A-Za-z])_(\w{1,2})(?!\w)")
TERM = re.compile(  # |x|_1 and |i - j|, x_i and C_ij, pixels^p: short enough to be recognised
    r"""(?<![\w.^=+*~|\\])(?:
        \\?\|(?P<bars>[\w(](?:[\w\ +./()-]{0,14}[\w)])?)\\?\|(?P<norm>_[12])?
        | (?P<of>[A-Za-z])_(?P<index>[a-z0-9]{1,2})
        | (?P<base>[A-Za-z]+)\^(?P<power>\w)
    )(?=[\s)\]}>/:.,;!?'"-]|$)""",
    re.VERBOSE,
)
LITERAL = re.compile(
    r"(?<!`)(:[\w:]+:)?(``.+?``|`[^`]+`)(?!`)", re.DOTALL
)
CALL = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", re.DOTALL)


@cache
def modules() -> tuple[str, ...]:
    """Modules with a page, those that lie inside of one last."""
    top = importlib.import_module(PACKAGE)
    inside = [n for n in top.__all__ if inspect.ismodule(getattr(top, n))]
    return (*(f"{PACKAGE}.{name}" for name in inside), *ASIDE)


def described(thing: object) -> bool:
    """Whether it has a docstring of its own: a constant has none."""
    return inspect.isclass(thing) or inspect.isroutine(thing)


@cache
def homes() -> dict[str, object]:
    """Every public object by the one name under which it is documented."""
    found, seen = {}, set()
    for path in modules():
        module = importlib.import_module(path)
        for name in module.__all__:
            thing = getattr(module, name)
            known = described(thing) and id(thing) in seen
            if not inspect.ismodule(thing) and not known:
                found[f"{path}.{name}"] = thing
                seen.add(id(thing))
    return found


@cache
def _names() -> dict[int, str]:
    return {
        id(thing): name
        for name, thing in homes().items()
        if described(thing)
    }


def home(path: str) -> str | None:
    """Where the object behind a dotted path is documented: its full name, or that of its class."""
    if path in modules() or path == PACKAGE:
        return path
    head, _, name = path.rpartition(".")
    if not head:
        return None
    if path in homes():
        return path
    if head in modules() or head == PACKAGE:
        module = importlib.import_module(head)
        public = name in module.__all__
        return _names().get(id(getattr(module, name))) if public else None
    owner = home(head)
    cls = homes().get(owner)
    return member(cls, name) if inspect.isclass(cls) else None


def member(cls: type, name: str) -> str | None:
    """Where a method is documented: with the class that defines it; a field with its class."""
    for base in cls.__mro__:
        if (
            id(base) in _names()
            and name in vars(base)
            and not hidden(base, name)
        ):
            part = vars(base)[name]
            own = getattr(part, "__func__", getattr(part, "fget", part))
            return (
                f"{_names()[id(base)]}.{name}"
                if inspect.getdoc(own)
                else _names()[id(base)]
            )
    fields = (
        {f.name for f in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else ()
    )
    made = isinstance(vars(cls).get(name), cached_property)
    return _names().get(id(cls)) if name in fields or made else None


def hidden(cls: type, name: str) -> bool:
    """Whether a member has no entry on the page: its class lists it among its attributes."""
    part = vars(cls).get(name)
    field = dataclasses.is_dataclass(cls) and name in {
        f.name for f in dataclasses.fields(cls)
    }
    methods = (property, staticmethod, classmethod)
    return field or not (
        inspect.isfunction(part) or isinstance(part, methods)
    )


@cache
def _alone() -> dict[str, str]:
    """Names that only one public object has, wherever it lies."""
    last = [name.rpartition(".")[2] for name in homes()]
    return {name.rpartition(".")[2]: name for name in homes()
            if last.count(name.rpartition(".")[2]) == 1}  # fmt: skip


def resolve(
    text: str, scope: tuple[str, ...] = (), parameters=()
) -> str | None:
    """The full name of the public object that `text` names, seen from within `scope`."""
    called = CALL.fullmatch(text)
    if not called or (called[1] in parameters and not called[2]):
        return None
    for place in (*scope, PACKAGE):
        if found := home(f"{place}.{called[1]}"):
            return found
    first, dot, rest = called[1].partition(".")
    return home(called[1]) or home(_alone().get(first, "") + dot + rest)


def scope_of(name: str) -> tuple[tuple[str, ...], set[str]]:
    """Where to look for names that the docstring of `name` uses; and its own parameters."""
    parts = name.split(".")
    places = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    scope = tuple(place for place in places if home(place))
    own: set[str] = set()
    for place in scope:
        thing = homes().get(place)
        if inspect.isroutine(thing):
            own |= set(inspect.signature(thing).parameters)
        elif inspect.isclass(thing) and dataclasses.is_dataclass(thing):
            own |= {f.name for f in dataclasses.fields(thing)}
    owner = homes().get(name.rpartition(".")[0])
    if inspect.isclass(owner):
        method = getattr(owner, parts[-1], None)
        own |= (
            set(inspect.signature(method).parameters)
            if inspect.isroutine(method)
            else set()
        )
    return scope, own


def link_types(app, what, name, obj, options, lines):
    """Public classes in the types of parameters, attributes and results become names."""
    words = sorted(
        {
            n.rpartition(".")[2]
            for n, t in homes().items()
            if inspect.isclass(t)
        }
    )
    known = re.compile(rf"(?<![\w`.])({'|'.join(words)})(?![\w`.(])")
    section = ""
    for k, line in enumerate(lines):
        if k + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[k + 1]):
            section = line
        elif section in TYPED and re.match(r"\S", line):
            start, colon, kind = line.partition(" : ")
            if colon:
                lines[k] = start + colon + known.sub(r"`\1`", kind)
            elif section == "Returns":
                lines[k] = known.sub(r"`\1`", line)


def term(match: re.Match) -> str:
    """What is written plainly in a docstring, as mathematics."""
    if inner := match["bars"]:
        mark, norm = ("V", match["norm"]) if match["norm"] else ("v", "")
        inner = INDEX.sub(r"\1_{\2}", inner)
        return rf":math:`\l{mark}ert {inner} \r{mark}ert{norm}`"
    if match["of"]:
        return f":math:`{match['of']}_{{{match['index']}}}`"
    base = (
        match["base"]
        if len(match["base"]) == 1
        else rf"\mathrm{{{match['base']}}}"
    )
    return f":math:`{base}^{match['power']}`"


def rewrite(text: str, name: str) -> str:
    """Links, bars and signs of a docstring's reST; code and mathematics stay as they are."""
    scope, own = scope_of(name)

    def literal(match):
        inner = match[2].strip("`")
        if match[1] or match[2].startswith("``"):
            return match[0]
        target = resolve(inner, scope, own)
        return (
            f":py:obj:`{inner} <{target}>`"
            if target and target != name
            else match[0]
        )

    def prose(part):
        for plain, sign in SIGNS.items():
            part = part.replace(plain, sign)
        done, last = "", 0
        for match in TERM.finditer(part):
            done += escaped(part[last : match.start()]) + term(match)
            last = match.end()
        return done + escaped(part[last:])

    def escaped(part):
        return re.sub(r"(?<!\\)\|", r"\|", part)

    done, last = [], 0
    for match in LITERAL.finditer(text):
        done += [prose(text[last : match.start()]), literal(match)]
        last = match.end()
    return "".join(done) + prose(text[last:])


def blocks(lines: list[str]):
    """A docstring's lines in parts: prose, and what is set as it is (mathematics, examples)."""
    part, kept, indent = [], False, 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        starts = re.match(r"\s*(>>> |\.\. math::)", line)
        ends = kept and line.strip() and depth <= indent and not starts
        example = kept and part and part[0].lstrip().startswith(">>>")
        ends = not line.strip() if example else ends
        if (starts and not kept) or ends:
            if part:
                yield kept, part
            part, kept, indent = [], bool(starts), depth
        part.append(line)
    if part:
        yield kept, part


def finish(app, what, name, obj, options, lines):
    text = []
    for kept, part in blocks(lines):
        text += (
            part if kept else rewrite("\n".join(part), name).split("\n")
        )
    lines[:] = text


class Written:
    """A default as one would write it."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def written(value, field=None) -> object:
    if (
        field is not None
        and field.default_factory is not dataclasses.MISSING
    ):
        made = field.default_factory
        return Written(
            {list: "[]", dict: "{}"}.get(made) or f"{made.__name__}()"
        )
    if isinstance(value, partial):
        bound = (
            f"{key}={written(part)!r}"
            for key, part in value.keywords.items()
        )
        return Written(
            f"partial({', '.join([value.func.__name__, *bound])})"
        )
    if inspect.isfunction(value) or inspect.isclass(value):
        named = value.__name__.isidentifier()
        return Written(value.__name__ if named else "...")
    return value


def sign(app, what, name, obj, options, signature, returned):
    """The signature, with short types and readable defaults."""
    if what not in ("class", "function", "method") or signature is None:
        return None
    if getattr(obj, "_is_protocol", False):
        return "()", None
    try:
        known = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    parameters = list(known.parameters.values())
    if (
        what == "method"
        and parameters
        and parameters[0].name in ("self", "cls")
    ):
        parameters = parameters[1:]
    fields = (
        {f.name: f for f in dataclasses.fields(obj)}
        if dataclasses.is_dataclass(obj)
        else {}
    )
    empty = inspect.Parameter.empty
    parameters = [
        p
        if p.default is empty
        else p.replace(default=written(p.default, fields.get(p.name)))
        for p in parameters
    ]
    shown = known.replace(parameters=parameters)
    text = stringify_signature(
        shown, show_return_annotation=False, unqualified_typehints=True
    )
    result = stringify_signature(
        shown, unqualified_typehints=True
    ).removeprefix(text)
    return text, result.removeprefix(" -> ") if what != "class" else None


def skip(app, what, name, obj, skipped, options):
    """Defaults of a dataclass's fields are no methods of it, whatever they are."""
    owner = app.env.temp_data.get(
        "autodoc:class"
    ) or app.env.ref_context.get("py:class")
    cls = homes().get(f"{app.env.ref_context.get('py:module')}.{owner}")
    fields = (
        dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    )
    return True if name in {f.name for f in fields} else None


def link_code(app, doctree):
    """`wotlab.x.y` in the prose of any page links to its entry."""
    for node in list(doctree.findall(nodes.literal)):
        text, parent = node.astext(), node.parent
        apart = isinstance(
            parent, nodes.title | nodes.reference | pending_xref
        )
        if (
            apart
            or "xref" in node.get("classes", ())
            or not text.startswith(f"{PACKAGE}.")
        ):
            continue
        if target := resolve(text):
            link = pending_xref(
                "", node.deepcopy(), refdomain="py", reftype="obj", reftarget=target,
                refdoc=app.env.docname, refexplicit=True, refwarn=True,
            )  # fmt: skip
            node.replace_self(link)


def setup(app):
    app.connect(
        "autodoc-process-docstring", link_types, priority=400
    )  # before napoleon
    app.connect(
        "autodoc-process-docstring", finish, priority=900
    )  # after it
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
