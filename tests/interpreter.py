"""Triton's interpreter, which shows on a CPU what a kernel computes."""

import os
from contextlib import contextmanager
from importlib import metadata, util

import pytest
import torch

WANTED = 3, 7  # older interpreters know another NumPy
THERE = metadata.version("triton") if util.find_spec("triton") else "0.0"
needs_triton = pytest.mark.skipif(
    tuple(map(int, THERE.split(".")[:2])) < WANTED, reason="needs Triton 3.7 or later"
)


def begin() -> None:
    """What a process does first, before it imports Triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@contextmanager
def barriers_only():
    """What is written is seen after the next barrier, no earlier."""
    from triton.runtime.interpreter import interpreter_builder as builder

    store, waiting = builder.create_masked_store, []

    def flush():
        for one in waiting:
            store(*one)
        waiting.clear()

    builder.create_masked_store = lambda *one: waiting.append(one)
    builder.create_barrier = flush
    yield
    flush()
    builder.create_masked_store, builder.create_barrier = store, lambda: None
