"""Experiments that processes of their own can import, and that write down what they do."""

import os
import signal
import time
from functools import cache, partial
from multiprocessing import parent_process
from pathlib import Path

import torch

from wotlab import evaluate, training
from wotlab.experiments.runner import Cell, Refused, Run
from wotlab.experiments.trials import fitted


def note(run: Run, what: str) -> None:
    """A line of the run's log, with the process that wrote it."""
    with (run.data / "log").open("a") as file:  # short lines are appended whole
        file.write(f"{os.getpid()} {what}\n")


def notes(run: Run) -> list[tuple[int, str]]:
    lines = (run.data / "log").read_text().splitlines()
    return [(int(pid), what) for pid, what in (line.split() for line in lines)]


def network(run: Run, row: str) -> tuple[int, str]:
    note(run, f"trained-{row}")
    return torch.get_num_threads(), row


def accuracy(run: Run, column: str, threads: int, row: str) -> tuple[evaluate.Share, dict]:
    """With several processes the first column waits until there is work in two of them."""
    note(run, f"{row}-{column}")
    until, several = time.monotonic() + 60, parent_process() is not None
    while several and column == "meet" and len({pid for pid, _ in notes(run)}) < 2:
        assert time.monotonic() < until, "nobody else came"
        time.sleep(0.02)
    return evaluate.share(len(row + column), 20), {"threads": threads, "row": row}


def table(run: Run, rows: str = "abcd", columns: tuple[str, ...] = ("meet", "clean", "pgd")):
    """Rows that share a network, column by column, so that groups are interleaved."""
    given = {row: cache(partial(network, run, row)) for row in rows}
    for column in columns:
        for row in rows:
            yield Cell(
                "toy", {"row": row, "attack": column}, run, partial(accuracy, run, column),
                given[row], seed=3,
            )  # fmt: skip
    yield Cell("toy", {"row": "alone"}, run, partial(note_alone, run), unit="s")
    yield Cell("toy", {"row": "alone", "more": True}, run, partial(note_alone, run), unit="s")


def note_alone(run: Run) -> float:
    note(run, "alone")
    return 1.5


def ending(run: Run):
    """Three rows that end their processes, and two that do not."""
    for row in ("refused", "wrong", "killed", "a", "b"):
        yield Cell("toy", {"row": row}, run, partial(end, run, row))


def end(run: Run, row: str) -> float:
    note(run, row)
    if row == "refused":
        raise Refused("no such images")
    if row == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1 / (len(row) - len("wrong"))


def started(run: Run):
    """Four rows that go on from one training, for which they all ask at once."""
    for row in "abcd":
        yield Cell("toy", {"row": row}, run, passed, cache(partial(start, run)))


class Noting(training.Standard):
    """Training that writes down its minibatches."""

    def __init__(self, run: Run):
        self._run = run

    def loss(self, *given):
        note(self._run, "minibatch")
        time.sleep(0.05)
        return super().loss(*given)


def start(run: Run) -> tuple[dict]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    images = (
        torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(12) % 2,
    )
    _, took = fitted(
        model, images, Noting(run), Path(run.checkpoints, "start.safetensors"), epochs=2,
        batch_size=3,
    )  # fmt: skip
    return (took,)


def passed(took: dict) -> tuple[float, dict]:
    return took["last_loss"], {"back_propagations": took["back_propagations"]}


def forever(run: Run):
    """Two cells that never end."""
    for row in "ab":
        yield Cell("toy", {"row": row}, run, partial(sleep, run))


def sleep(run: Run) -> float:
    note(run, "sleeps")
    while True:
        time.sleep(1)
