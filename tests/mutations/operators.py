"""Plausible mistakes: what a tired author writes in place of what is there, one at a time."""

import ast
import copy
from collections.abc import Callable, Iterator

Change = tuple[str, ast.AST, float]  # name of the mistake, the node in its place, weight
GONE = ast.Pass  # in place of a statement

TWINS = [
    *[("max", "min"), ("amax", "amin"), ("argmax", "argmin"), ("maximum", "minimum")],
    *[("clamp_min", "clamp_max"), ("sum", "mean"), ("any", "all"), ("floor", "ceil")],
    *[("softmax", "log_softmax"), ("train", "eval"), ("softplus", "relu"), ("normal", "uniform")],
]
TWIN = {a: b for pair in TWINS for a, b in (pair, pair[::-1])}
# x.abs() -> x: calls whose result has the type of what they are called on
DROPPABLE = {
    *("abs", "sign", "sqrt", "square", "exp", "log", "neg", "detach", "clone", "flip", "t", "mT"),
    *("clamp", "clamp_min", "clamp_max", "round", "relu", "masked_fill", "roll", "cumsum"),
    *("sort", "double", "float", "log_softmax", "reciprocal"),
}
CHOICES = [("ce", "margin"), ("margin", "ce"), ("kl", "ce")]
WRONG = [*("xz", "xw", "zw", "pq", "ab", "uv"), ("x", "x_adv"), ("z", "x_adv")]
WRONG += [("lo", "hi"), ("low", "high"), ("first", "then"), ("before", "after")]
IDLE = {  # arguments that change how a result is made, not which
    *("progress", "disable", "leave", "desc", "device", "dtype", "batch_size", "processes"),
    *(
        "strict",
        "total",
        "persistent",
        "non_blocking",
        "num_workers",
        "pin_memory",
        "slots",
        "repr",
    ),
}
AXES = {"dim", "axis", "dims", "start_dim"}
REDUCTIONS = {"sum", "mean", "amax", "amin", "any", "all", "softmax", "log_softmax", "logsumexp"}
REDUCTIONS |= {"argmax", "argmin", "norm", "gather", "cumsum", "flip", "unbind", "max", "min"}
SYMMETRIC = {"maximum", "minimum", "isinstance", "range", "getattr", "setattr", "allclose", "max"}
SYMMETRIC |= {"min", "zip", "partial", "hasattr", "__init__"}
LAYOUT = {"flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "movedim", "permute"}


class Signatures(ast.NodeVisitor):
    """What the package's own functions need, so that no mistake is a mere TypeError."""

    def __init__(self):
        self.needed: dict[str, set[str]] = {}  # keyword arguments without a default, by function
        self.alike: set[str] = set()  # functions whose first two arguments have one type

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and s.value is None]
        names = {s.target.id for s in fields if isinstance(s.target, ast.Name)}
        self.needed.setdefault(node.name, set()).update(names)
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                self._note(node.name, part)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._note(node.name, node)
        self.generic_visit(node)

    def _note(self, name: str, node: ast.FunctionDef) -> None:
        own, bare = node.args, len(node.args.args) - len(node.args.defaults)
        needed = {a.arg for a in own.args[:bare]}
        pairs = zip(own.kwonlyargs, own.kw_defaults, strict=True)
        needed |= {a.arg for a, default in pairs if default is None}
        self.needed.setdefault(name, set()).update(needed)
        first = [a for a in own.args if a.arg not in ("self", "cls")][:2]
        types = [ast.unparse(a.annotation) for a in first if a.annotation is not None]
        if len(types) == 2 and types[0] == types[1]:
            self.alike.add(name)


def called(node: ast.AST) -> str:
    """The name of the function that a call calls: `sum` of `x.abs().sum(1)`."""
    f = node.func if isinstance(node, ast.Call) else None
    return f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""


def copy_with(node: ast.AST, **fields) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def negated(test: ast.AST) -> ast.AST:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.UnaryOp(ast.Not(), test)


def binary(node: ast.BinOp) -> Iterator[Change]:
    signs = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    bits = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
    kind = type(node.op)
    if any(isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.Dict | ast.Set)
           for side in (node.left, node.right)):  # fmt: skip
        return
    if kind in signs:
        yield "sign", copy_with(node, op=signs[kind]()), 1.0
        yield "term dropped", node.left, 0.7
        if kind in (ast.Add, ast.Mult):
            yield "term dropped", node.right, 0.5
        else:
            yield "sides swapped", copy_with(node, left=node.right, right=node.left), 0.5
    elif kind in bits:
        yield "and for or", copy_with(node, op=bits[kind]()), 1.0
        yield "term dropped", node.left, 0.7
        yield "term dropped", node.right, 0.7
    elif kind is ast.Pow:
        yield "term dropped", node.left, 0.7


def compare(node: ast.Compare) -> Iterator[Change]:
    near = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
    far = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
    far |= {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
    kind = type(node.ops[0])
    if len(node.ops) == 1:
        if kind in far:
            yield "comparison", copy_with(node, ops=[far[kind]()]), 0.7
        if kind in near:
            yield "boundary", copy_with(node, ops=[near[kind]()]), 0.2


def constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield "truth", ast.Constant(not value), 1.0
    elif isinstance(value, int):
        near = {value + 1, max(value - 1, 0)} if value < 5 else {2 * value, value // 2}
        for other in sorted(near - {value}):
            yield "number", ast.Constant(other), 0.4
    elif isinstance(value, float) and abs(value) > 1e-5:  # smaller ones guard a division
        yield "number", ast.Constant(2 * value), 0.3
        yield "number", ast.Constant(value / 2), 0.3
    elif isinstance(value, str):
        yield from (("choice", ast.Constant(b), 1.0) for a, b in CHOICES if a == value)


def call(node: ast.Call, known: Signatures) -> Iterator[Change]:
    f, name, args = node.func, called(node), node.args
    if name in TWIN:
        key = "id" if isinstance(f, ast.Name) else "attr"
        yield "twin", copy_with(node, func=copy_with(f, **{key: TWIN[name]})), 1.0
    if name in DROPPABLE and isinstance(f, ast.Attribute):
        torch = isinstance(f.value, ast.Name) and f.value.id in ("torch", "F", "np", "math")
        weight = 0.1 if name in ("detach", "clone", "double") else 0.7
        yield "call dropped", args[0] if torch and args else f.value, weight
    alike = name in known.alike or name in ("kl_div", "sub", "div", "cat")
    if alike and len(args) >= 2 and name not in SYMMETRIC:
        yield "arguments swapped", copy_with(node, args=[args[1], args[0], *args[2:]]), 1.0
    if name == "where" and len(args) == 3:
        yield "arguments swapped", copy_with(node, args=[args[0], args[2], args[1]]), 1.0
    for k, given in enumerate(node.keywords):
        rest = node.keywords[:k] + node.keywords[k + 1 :]
        if given.arg and given.arg not in IDLE | known.needed.get(name, set()):
            yield "keyword dropped", copy_with(node, keywords=rest), 0.5
        if given.arg in AXES and isinstance(given.value, ast.Constant):
            other = ast.keyword(given.arg, ast.Constant(0 if given.value.value else 1))
            yield "axis", copy_with(node, keywords=[*rest, other]), 0.7
    if name in REDUCTIONS and args and isinstance(args[0], ast.Constant):
        axis = args[0].value
        if type(axis) is int:
            wrong = ast.Constant(0 if axis else 1)
            yield "axis", copy_with(node, args=[wrong, *args[1:]]), 0.5


def name(node: ast.Name, bound: set[str]) -> Iterator[Change]:
    """The wrong one of two variables that are easily confused."""
    for a, b in WRONG:
        for mine, other in ((a, b), (b, a)):
            if node.id == mine and other in bound and isinstance(node.ctx, ast.Load):
                yield "variable", ast.Name(other, ast.Load()), 0.5


def statement(node: ast.stmt, bound: set[str]) -> Iterator[Change]:
    if isinstance(node, ast.AugAssign):
        yield "skipped", GONE(), 1.0
        other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.Mult: ast.Div}
        if type(node.op) in other:
            yield "sign", copy_with(node, op=other[type(node.op)]()), 0.7
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if called(node.value) == "__init__":
            return
        yield "skipped", GONE(), 0.1 if "checks" in ast.unparse(node.value.func) else 1.0
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        again = isinstance(target, ast.Name) and target.id in bound
        if again or isinstance(target, ast.Subscript):  # another would be a NameError
            yield "skipped", GONE(), 0.8
    elif isinstance(node, ast.If | ast.While):
        guard = isinstance(node.body[0], ast.Raise)
        if isinstance(node, ast.If):
            yield "negated", copy_with(node, test=negated(node.test)), 0.1 if guard else 1.0


def changes(node: ast.AST, bound: set[str], known: Signatures) -> Iterator[Change]:
    """What could stand in this node's place by mistake; `bound` are the names known there."""
    by_kind: dict[type, Callable[..., Iterator[Change]]] = {
        ast.BinOp: binary, ast.Compare: compare, ast.Constant: constant,
    }  # fmt: skip
    if isinstance(node, ast.stmt):
        yield from statement(node, bound)
    elif type(node) in by_kind:
        yield from by_kind[type(node)](node)
    elif isinstance(node, ast.Call):
        yield from call(node, known)
    elif isinstance(node, ast.Name):
        yield from name(node, bound)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        number = isinstance(node.operand, ast.Constant)
        yield "sign", node.operand, 0.2 if number else 1.0
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and for or", copy_with(node, op=other), 0.7
        yield "term dropped", node.values[0], 0.7
        yield "term dropped", node.values[-1], 0.7
    elif isinstance(node, ast.IfExp):
        yield "negated", copy_with(node, test=negated(node.test)), 1.0
