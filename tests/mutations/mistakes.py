"""Where the mistakes are made: one `Mistake` for each, in a fixed order, spread over the code."""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mutations.operators import IDLE, LAYOUT, REDUCTIONS, Signatures, called, changes

ROOT = Path(__file__).resolve().parents[2]
WHERE = ["attacks", "training", "projections", "evaluate", "ot", "iwd", "balls", "plans", "_base"]
WHERE += ["smoothing"]
FILES = ["gibbs.py", "transformations.py"]
SKIPPED_CALLS = {"tqdm", "perf_counter", "warn", "ValueError", "TypeError", "type", "isinstance"}
FORM = {"len", "shape", "dtype", "device", "ndim", "size", "numel", "zeros_like", "ones_like"}
FORM |= {"full_like", "empty_like", "finfo"}
EVEN = ("abs(", "norm(", "square(", "**", "!=", "norm_sq")  # of a difference either way round


@dataclass
class Mistake:
    """One change of one file, and how to make it."""

    file: str
    function: str
    line: int
    what: str
    lines: range | None  # whose tests may notice; None: outside functions, the whole file's
    before: str
    after: str
    weight: float
    site: tuple = field(repr=False)  # the tree, and the parent, field, place and node to put there

    @property
    def key(self) -> str:
        return f"{self.file} | {self.function} | {self.before} -> {self.after}"

    def code(self):
        """The changed file, compiled."""
        tree, parent, name, place, node = self.site
        old = getattr(parent, name)
        if place is None:
            setattr(parent, name, node)
        else:
            old = old[place]
            getattr(parent, name)[place] = node
        try:
            path = str(ROOT / self.file)
            return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        finally:
            if place is None:
                setattr(parent, name, old)
            else:
                getattr(parent, name)[place] = old


def sources(only: str = "") -> list[Path]:
    """The files in which mistakes are made."""
    found = [p for folder in WHERE for p in sorted((ROOT / "wotlab" / folder).glob("*.py"))]
    found += [ROOT / "wotlab" / name for name in FILES]
    skipped = "__init__.py", "_fused.py"  # kernels run in a process of their own
    return [p for p in found if p.name not in skipped and only in str(p.relative_to(ROOT))]


def signatures() -> Signatures:
    known = Signatures()
    for path in (ROOT / "wotlab").rglob("*.py"):
        known.visit(ast.parse(path.read_text()))
    return known


def mistakes(path: Path, known: Signatures) -> list[Mistake]:
    """All that can be made in one file; of several with one text in one function the first."""
    tree = ast.parse(path.read_text())
    made = Walk(tree, str(path.relative_to(ROOT)), known).all()
    return list({m.key: m for m in reversed(list(made))}.values())[::-1]


def chosen(only: str = "", count: int = 0, seed: int = 0) -> list[Mistake]:
    """`count` of all (0: all), evenly from files, and in each evenly from functions.

    A larger count adds to a smaller one's.
    """
    known, turns = signatures(), []
    for path in sources(only):
        rng, by_function = random.Random(f"{seed} {path.relative_to(ROOT)}"), {}
        for m in mistakes(path, known):
            by_function.setdefault(m.function, []).append(m)
        for own in by_function.values():
            own.sort(key=lambda m: rng.random() ** (1 / m.weight), reverse=True)
        names = list(by_function)
        rng.shuffle(names)
        rounds = max(map(len, by_function.values()), default=0)
        turns.append(
            [by_function[n][k] for k in range(rounds) for n in names if k < len(by_function[n])]
        )
    longest = max(map(len, turns), default=0)
    order = [own[k] for k in range(longest) for own in turns if k < len(own)]
    return order[: count or None]


class Walk:
    """Every node of a file that is worth a mistake, with the function and names around it."""

    def __init__(self, tree: ast.Module, file: str, known: Signatures):
        self.tree, self.file, self.known = tree, file, known
        functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
        self.functions = [range(f.body[0].lineno, f.end_lineno + 1) for f in functions]

    def inside(self, line: int) -> bool:
        return any(line in lines for lines in self.functions)

    def all(self) -> Iterator[Mistake]:
        yield from self._block(self.tree, [], set())

    def _block(self, owner: ast.AST, where: list[str], bound: set[str]) -> Iterator[Mistake]:
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(owner, name, [])
            if not isinstance(statements, list):
                continue
            for place, node in enumerate(statements):
                yield from self._statement(node, owner, name, place, where, bound)
                bound |= _assigned(node)
        for handler in getattr(owner, "handlers", []):
            yield from self._block(handler, where, bound)

    def _statement(self, node, owner, name, place, where, bound) -> Iterator[Mistake]:
        if _is_idle(node):
            return
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            if node.name == "__repr__":
                return
            inner = [*where, node.name]
            if isinstance(node, ast.FunctionDef):
                args = node.args
                every = [*args.args, *args.kwonlyargs]
                bound = bound | {a.arg for a in every} | {a.arg for a in [args.vararg] if a}
                for values in ("defaults", "kw_defaults"):
                    names = args.args[-len(args.defaults) :] if values == "defaults" else None
                    for k, value in enumerate(getattr(args, values)):
                        idle = (names or args.kwonlyargs)[k].arg in IDLE
                        if value is not None and not idle:
                            yield from self._expression(value, args, values, k, node, inner, bound)
            yield from self._block(node, inner, set(bound))
            return
        for what, new, weight in changes(node, bound, self.known):
            yield self._make(what, weight, node, where, (owner, name, place, new))
        if isinstance(node, ast.Raise):
            return
        heads = ("test", "iter", "items", "value", "targets", "exc", "cases", "subject", "msg")
        for part in heads:
            value = getattr(node, part, None)
            if isinstance(value, ast.AST):
                yield from self._expression(value, node, part, None, node, where, bound)
            for k, one in enumerate(value if isinstance(value, list) else []):
                yield from self._expression(one, node, part, k, node, where, bound)
        yield from self._block(node, where, bound)

    def _expression(self, node, owner, name, place, around, where, bound) -> Iterator[Mistake]:
        checked = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("checks.")
        if isinstance(node, ast.JoinedStr) or called(node) in SKIPPED_CALLS or checked:
            return
        if isinstance(node, ast.keyword) and node.arg in IDLE:
            return
        guard = isinstance(around, ast.If) and isinstance(around.body[0], ast.Raise)
        for what, new, weight in changes(node, bound, self.known):
            if _is_shape(node, owner) or (what == "sides swapped" and _is_even(node, around)):
                continue
            if what == "variable" and _is_form(owner):
                continue
            site = (owner, name, place, new)
            yield self._make(what, weight * (0.2 if guard else 1), around, where, site)
        for part, value in ast.iter_fields(node):
            if part in ("annotation", "returns", "ctx", "op", "ops"):
                continue
            if isinstance(value, ast.AST):
                yield from self._expression(value, node, part, None, around, where, bound)
            elif isinstance(value, list) and not _is_axes(node):
                for k, one in enumerate(value):
                    if isinstance(one, ast.AST):
                        yield from self._expression(one, node, part, k, around, where, bound)

    def _make(self, what, weight, around, where, site) -> Mistake:
        owner, name, place, new = site
        function = isinstance(around, ast.FunctionDef)
        before = _head(around)
        lines = range(around.lineno, around.end_lineno + 1) if function else _lines(around)
        inside = function or self.inside(around.lineno)
        made = Mistake(
            self.file, ".".join(where) or "module", around.lineno, what,
            lines if inside else None, before, "", weight, (self.tree, *site),
        )  # fmt: skip
        if getattr(owner, name) is around or (place is not None and _at(site) is around):
            after = "pass" if isinstance(new, ast.Pass) else _head(new)
        else:
            old = _at(site)
            _put(site, new)
            after = _head(around)
            _put(site, old)
        made.before, made.after = _difference(before, after)
        return made


def _at(site) -> ast.AST:
    owner, name, place, _ = site
    return getattr(owner, name) if place is None else getattr(owner, name)[place]


def _put(site, node: ast.AST) -> None:
    owner, name, place, _ = site
    if place is None:
        setattr(owner, name, node)
    else:
        getattr(owner, name)[place] = node


def _lines(node: ast.stmt) -> range:
    body = getattr(node, "body", None)
    last = max(body[0].lineno - 1, node.lineno) if body else node.end_lineno
    return range(node.lineno, last + 1)


def _head(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef):
        return f"def {node.name}({ast.unparse(node.args)})"
    text = ast.unparse(ast.fix_missing_locations(node))
    return text.split("\n")[0] if getattr(node, "body", None) else " ".join(text.split())


def _difference(before: str, after: str, around: int = 30) -> tuple[str, str]:
    """Both texts, cut to what differs and some context."""
    shorter = min(len(before), len(after))
    left = next((k for k in range(shorter) if before[k] != after[k]), shorter)
    right = next(
        (k for k in range(shorter - left) if before[-1 - k] != after[-1 - k]), shorter - left
    )
    left, right = max(left - around, 0), max(right - around, 0)
    return tuple(t[left : len(t) - right] for t in (before, after))


def _assigned(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)
             and isinstance(n.ctx, ast.Store)}  # fmt: skip
    return names if not isinstance(node, ast.FunctionDef | ast.ClassDef) else {node.name}


def _is_idle(node: ast.stmt) -> bool:
    """Imports, documentation, and the measuring of time."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass | ast.Global):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    text = ast.unparse(node) if isinstance(node, ast.Assign) else ""
    return "perf_counter" in text or text.startswith("__all__")


def _is_shape(node: ast.AST, owner: ast.AST) -> bool:
    """An axis or a place, where a wrong number is a crash at once."""
    where = called(owner) in LAYOUT | REDUCTIONS or isinstance(owner, ast.Slice | ast.Subscript)
    return isinstance(node, ast.Constant) and (where or _is_axes(owner))


def _is_even(node: ast.AST, around: ast.AST) -> bool:
    """A difference whose sign is lost."""
    text = ast.unparse(around)
    return isinstance(node.op, ast.Sub) and any(word in text for word in EVEN)


def _is_form(owner: ast.AST) -> bool:
    """Where a tensor is asked for its size or kind alone, which two variables share."""
    name = owner.attr if isinstance(owner, ast.Attribute) else called(owner)
    return name.startswith("new_") or name in FORM


def _is_axes(node: ast.AST) -> bool:
    return isinstance(node, ast.Tuple) and all(
        isinstance(e, ast.Constant | ast.UnaryOp | ast.Slice) for e in node.elts
    )
