import sys
from pathlib import Path

import pytest
import torch
from alone import build_wheel, make_environment

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "book" / "_ext")]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory, wheel) -> Path:
    """Python of an environment with that wheel and torch, without the checkout."""
    return make_environment(tmp_path_factory.mktemp("alone"), wheel)


@pytest.fixture
def single_thread():
    """One thread: faster for small tensors, and sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
