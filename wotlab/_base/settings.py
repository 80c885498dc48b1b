"""What a run is made of, in words that are the same in every process.

By them a file knows the run that wrote it.
"""

import dataclasses
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from wotlab._base.dataset import MapDataset

EPOCHS = [k / 4 for k in range(401)]  # where schedules are compared
LOOKS = 16  # images of a data set that are compared
PLAIN = (bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)

Words = dict[str, str]


def describe(name: str, thing: object, seen: tuple[int, ...] = ()) -> Words:
    """All settings within a thing, by their names: numbers, words, balls, attacks, schedules.

    Of an object these are its attributes, but for what changes as it works: tensors, networks,
    what its `state_dict` gives, and names that begin with an underscore.
    """
    if thing is None or isinstance(thing, PLAIN):
        return {name: of_number(thing)}
    if id(thing) in seen:
        return {}
    seen = (*seen, id(thing))
    parts: dict[Any, object]
    if isinstance(thing, partial):
        parts = {"": thing.func, **dict(enumerate(thing.args)), **thing.keywords}
    elif isinstance(thing, types.MethodType):
        parts = {"": thing.__func__, "self": thing.__self__}
    elif isinstance(thing, types.FunctionType):
        return {name: of_function(thing, seen)}
    elif isinstance(thing, (list, tuple)):
        parts = dict(enumerate(thing))
    elif isinstance(thing, dict):
        parts = thing
    elif isinstance(thing, torch.Generator):
        return {name: f"generator of seed {thing.initial_seed()}"}
    elif isinstance(thing, (type, types.BuiltinFunctionType)):
        return {name: thing.__name__}
    elif isinstance(thing, (Tensor, nn.Module)) or not hasattr(thing, "__dict__"):
        return {name: type(thing).__name__}
    else:
        parts = {"": type(thing), **dict(_attributes(thing))}
    words: Words = {}
    for key, part in parts.items():
        inner = f"{name}.{key}" if key != "" else name
        if key == "eps" and callable(part):
            words[inner] = over_epochs(part)
        else:
            words |= describe(inner, part, seen)
    return words


def differences(then: Words, now: Words) -> list[str]:
    """What two runs differ in, with both values."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [f"{name} (then {then.get(name)}, now {now.get(name)})" for name in names]


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    """Settings of an object. What it learns or remembers is not among them."""
    if dataclasses.is_dataclass(thing):
        yield from ((f.name, getattr(thing, f.name)) for f in dataclasses.fields(thing))
        return
    state = thing.state_dict() if hasattr(thing, "state_dict") else {}
    for name, value in sorted(vars(thing).items()):
        learned = value is None or isinstance(value, (Tensor, nn.Module, Optimizer))
        if not (learned or name in state or name.startswith("_")):
            yield name, value


def of_number(thing: object) -> str:
    """The same word for 6 and 6.0."""
    if isinstance(thing, (int, float, np.number)) and not isinstance(thing, bool):
        return repr(float(thing)).removesuffix(".0")
    return repr(thing)


def over_epochs(function: Callable | None) -> str:
    """A schedule by its values, since two ways to write it are one schedule."""
    if function is None:
        return "None"
    values = []
    for epoch in EPOCHS:
        try:
            values.append(repr(float(function(epoch))))
        except Exception as error:  # of a list, say, that has an entry an epoch
            values.append(type(error).__name__)
    return hashed(*values)


def of_function(function: types.FunctionType, seen: tuple[int, ...] = ()) -> str:
    """A function of a module by its name; another one by what it does, and with which numbers."""
    if "<" not in function.__qualname__ and function.__module__ != "__main__":
        return f"{function.__module__}.{function.__qualname__}"
    around = inspect.getclosurevars(function)
    given = {
        "defaults": function.__defaults__, **(function.__kwdefaults__ or {}),
        **around.globals, **around.nonlocals,
    }  # fmt: skip
    # lists, tensors and objects around a function may be where it writes, not what it reads
    kept = {k: v for k, v in given.items() if _is_setting(v)}
    code = _of_code(function.__code__)
    return hashed(*code, *sorted(map(str, describe("", kept, seen).items())))


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    kinds = (*PLAIN, types.FunctionType, partial)
    return isinstance(value, kinds) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _of_code(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield from (*code.co_names, *code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        else:  # the words of a set have another order in every process
            yield repr(sorted(map(repr, constant)) if type(constant) is frozenset else constant)


def of_data(data: MapDataset) -> str:
    """A data set by its length, its labels, and a few of its images."""
    every = max(1, len(data) // LOOKS)
    if isinstance(data, TensorDataset):
        x, y = data.tensors
        return f"{len(data)} images, {hashed(as_bytes(x[::every]), as_bytes(y))}"
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        looks = []
        for seed in range(2):
            torch.manual_seed(seed)
            looks.append([[as_bytes(part) for part in data[k]] for k in range(0, len(data), every)])
    one, other = looks
    if one != other:  # crops and flips by chance: their labels must do
        one = [[label] for _, label in one]
    return f"{len(data)} images, {hashed(repr(one))}"


def as_bytes(part: object) -> bytes:
    if isinstance(part, Tensor):
        kind = f"{part.dtype} {list(part.shape)} ".encode()
        return kind + part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return repr(part).encode()


def hashed(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
