"""What the benchmarks share: their options, images, clocks and records."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from wotlab import data, models, results
from wotlab.experiments.runner import NETWORKS

PATHS = ("--data", "--checkpoints", "--out")  # of one machine: records do not name them


def options(text: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=text.split("\n")[0])
    parser.add_argument("--data", help="folder of the data sets; default: WOTLAB_DATA")
    parser.add_argument("--out", default="results", help="folder of the records")
    parser.add_argument("--rounds", type=int, default=3, help="ours and theirs take turns")
    parser.add_argument("--threads", type=int, default=1, help="of everybody")
    return parser


def options_of_networks(text: str) -> argparse.ArgumentParser:
    """The same for scripts that attack networks which others released."""
    parser = options(text)
    parser.add_argument(
        "--checkpoints", default=os.environ.get("WOTLAB_CHECKPOINTS", "checkpoints"),
        help="folder of the released networks; default: WOTLAB_CHECKPOINTS",
    )  # fmt: skip
    return parser


def released(name: str, folder: str) -> nn.Module:
    """One of MNIST's networks; FileNotFoundError where its weights are not."""
    if not (file := Path(folder) / NETWORKS["mnist"][name]).exists():
        raise FileNotFoundError(f"{file.name} is not in --checkpoints")
    return models.load_weights(models.build("wong-mnist"), file).eval()


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given; from here on everybody has that many threads."""
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    threadpool_limits(given.threads)
    return given


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave.

    On one thread processor time, which other work on the machine does not lengthen; on several,
    or on a GPU, time on the wall, for a machine that does nothing else.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    wait()
    start = clock()
    done = work()
    wait()
    return clock() - start, done


def wait() -> None:
    """Until the GPU, where there is one, has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(rounds: int, works: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, Any]]:
    """Median seconds of each call, all of them once a round, and what each gave last."""
    taken = {name: [] for name in works}
    given = {}
    for _ in range(rounds):
        for name, work in works.items():
            seconds, given[name] = timed(work)
            taken[name].append(seconds)
    return {name: (median(taken[name]), given[name]) for name in works}


def mnist(split: str, part: slice, folder: str | None = None) -> tuple[Tensor, Tensor, str]:
    """MNIST's images where they are at hand, else scikit-learn's digits enlarged; their name."""
    try:
        x, y = data.load("mnist", split, folder, download=False).tensors(part)
        name = f"MNIST {'training' if split == 'train' else split} images"
    except (OSError, ValueError):
        x, y = data.load("digits", split).tensors(part)
        x = torch.nn.functional.interpolate(x, size=28, mode="bilinear")
        name = f"scikit-learn digits, enlarged to 28x28, {split} images"
    return x, y, f"{name} {part.start} to {part.start + len(x) - 1}"


def save(
    out: str, what: str, keys: results.Keys, value: float, unit: str, samples: str, seconds: float,
    *, seed: int | None = None, note: str = "", **details,
) -> None:  # fmt: skip
    """Write a record of this run, and print it."""
    record = results.Record(
        what=what, keys=keys, value=value, unit=unit, samples=samples, seed=seed,
        command=command(), seconds=seconds, note=note, details=details,
    )  # fmt: skip
    results.write(record, out)
    short = {key: value for key, value in details.items() if not isinstance(value, list)}
    print(f"{what} {results.name(keys)}: {value:.3g} {unit} {short}", flush=True)


def command() -> str:
    """How to run this again, without the paths of this machine."""
    words = [f"python benchmarks/{Path(sys.argv[0]).name}"]
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        words.append("FOLDER" if before in PATHS else word)
    return " ".join(words)
