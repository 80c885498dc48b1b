import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from alone import build_wheel, make_environment
from browsing import BROWSER, DRIVER, SITE, served, started
from hypothesis import settings
from interpreter import begin

import wotlab
from wotlab import data, training
from wotlab.experiments import runner

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / place) for place in ("book", "book/_ext", "benchmarks")]
settings.register_profile("long", max_examples=2000, deadline=None)  # for tests that fuzz


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory, wheel) -> Path:
    """Python of an environment with that wheel and torch, without the checkout."""
    return make_environment(tmp_path_factory.mktemp("alone"), wheel)


@pytest.fixture(scope="module")
def address():
    """Where the built site is served."""
    with served(SITE) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip("no browser: install Debian's chromium and chromium-driver, or Chrome's")
    with started(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Forty images to train on, and their labels."""
    return wotlab.data.load("digits", "train").tensors(slice(0, 40))


@pytest.fixture
def network() -> torch.nn.Module:
    """A small network for them, not trained."""
    return wotlab.models.build("digits-small", seed=0)


@pytest.fixture(scope="module")
def unseen() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images that no network was trained on, and their labels."""
    return wotlab.data.load("digits", "test").tensors(slice(0, 8))


@pytest.fixture(scope="module")
def fitted() -> torch.nn.Module:
    """A small network, trained on all digits."""
    model = wotlab.models.build("digits-small", seed=0)
    train = wotlab.data.load("digits", "train").tensors()
    wotlab.training.fit(model, train, epochs=6, lr=0.05, progress=False)
    return model


@pytest.fixture
def single_thread():
    """One thread: faster for small tensors, and sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread():
    """Tensors are small here: a second thread only costs time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def apart():
    """A process of its own: Triton takes its interpreter, on the CPU, where asked on import."""
    with ProcessPoolExecutor(1, get_context("spawn"), begin) as pool:
        yield lambda *task: pool.submit(*task).result()


@pytest.fixture(scope="module")
def small():
    """Digits enlarged to 28x28, and Wong's network trained on them."""

    def enlarged(split, n):
        x, y = wotlab.data.load("digits", split).tensors(slice(0, n))
        return torch.nn.functional.interpolate(x, size=28, mode="bilinear"), y

    model = wotlab.models.build("wong-mnist", seed=0)
    training.fit(model, enlarged("train", 1500), epochs=2, lr=0.05, progress=False)
    return model.eval(), *enlarged("test", 6)


@pytest.fixture
def run(small, tmp_path):
    """A call of an experiment on six of them; the network stands for two that were released."""

    @dataclass(frozen=True)
    class Small(runner.Run):
        def load(self, split):
            x, y = small[1].repeat(10, 1, 1, 1), small[2].repeat(10)
            return data.Images(self.dataset, x, y, list("0123456789"))

        def test_images(self):
            return small[1][: self.images], small[2][: self.images]

        def network(self, name):
            return small[0] if name in ("standard", "hu2020") else super().network(name)

        def networks(self):
            return ["standard"]

    return Small(tmp_path, tmp_path, tmp_path / "out", 6, torch.device("cpu"), False)


@pytest.fixture
def files():
    """When each record of a call was written, by its path."""
    return lambda run: {p: p.stat().st_mtime_ns for p in run.out.rglob("*.json")}
