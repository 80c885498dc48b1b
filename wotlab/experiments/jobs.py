"""An experiment in one process or in several, with a bar that says how long it may take.

Every process walks through all cells of the experiment. The first one that comes to a group of
cells claims it, by a file in a folder of all, and measures the group; the others pass it by. So the
work is dealt out as it is done, and no cell has to travel between processes.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import torch
from tqdm.auto import tqdm

from wotlab.experiments.runner import Cell, Log, Refused, Run, Step, perform

Experiment = Callable[[Run], Iterator[Cell]]
BAR = "{n_fmt} of {total_fmt} cells |{bar}| {elapsed}{postfix}"


class Progress:
    """A bar of the cells, and an estimate of the time that those which are left will take.

    What a group shares, such as a training, takes far longer than most of its measurements, and
    cells that were recorded before take nothing. So the estimate is of each group that has not
    begun the mean time of those that have, and of each cell that is left the mean time of a
    measurement, divided among the processes that still find a group to work at.
    """

    def __init__(self, ahead: Log, jobs: int = 1):
        self.due, self.jobs = ahead.due.copy(), jobs
        self.begun: set[str] = set()
        self.said: set[str] = {""}
        self.shared, self.seconds, self.measured = 0.0, 0.0, 0
        self.bar = tqdm(
            total=ahead.recorded + self.due.total(), initial=ahead.recorded, bar_format=BAR,
            disable=None,  # where nobody sees it, as in a file
        )  # fmt: skip

    def tell(self, step: Step) -> None:
        """Say what has become of a cell, and what is left."""
        if step.line not in self.said:
            self.said.add(step.line)
            with tqdm.external_write_mode():
                print(step.line, flush=True)
        self.due -= {step.group: 1}  # keeps what is above zero
        if step.seconds is not None:
            self.begun.add(step.group)
            self.shared, self.seconds = self.shared + step.shared, self.seconds + step.seconds
            self.measured += 1
            left = tqdm.format_interval(self.left())
            self.bar.set_postfix_str(f"about {left} left", refresh=False)
        self.bar.update()

    def left(self) -> float:
        """Seconds, once a cell has been measured."""
        shared = len(self.due.keys() - self.begun) * self.shared / len(self.begun)
        own = self.due.total() * self.seconds / self.measured
        return (shared + own) / max(1, min(self.jobs, len(self.due)))


def measure(run: Run, experiment: Experiment, jobs: int = 1) -> Log:
    """Measure what is asked for and not recorded yet; with several jobs in so many processes.

    Parameters
    ----------
    run : Run
    experiment : function
        Its cells, of a run. With several jobs a function that can be imported by its name.
    jobs : int
        No more processes are started than there are groups of cells to measure, and none for one.

    Returns
    -------
    Log

    Raises
    ------
    Refused
        With several jobs for whatever ended one of them; the others went on to their end. With one
        job an error is passed on as it is.
    """
    ahead = perform(run, experiment(run), claim=lambda group: False)
    jobs = min(jobs, len(ahead.due))
    if not jobs:
        return ahead
    progress = Progress(ahead, jobs)
    with progress.bar:
        if jobs == 1:
            return perform(run, experiment(run), tell=progress.tell)
        return deal_out(run, experiment, jobs, progress, ahead)


def deal_out(run: Run, experiment: Experiment, jobs: int, progress: Progress, log: Log) -> Log:
    """Start the processes and hear them to their end, which an interrupt makes their end, too."""
    spawn, workers, failed = get_context("spawn"), {}, []
    with TemporaryDirectory() as claims:
        try:
            with as_children(max(1, torch.get_num_threads() // jobs)):
                for _ in range(jobs):
                    ours, theirs = spawn.Pipe(duplex=False)
                    worker = spawn.Process(target=work, args=(run, experiment, claims, theirs))
                    worker.start()
                    theirs.close()
                    workers[ours] = worker
            while workers:
                ready = wait(list(workers))
                for pipe in [each for each in workers if each in ready]:
                    try:
                        said = pipe.recv()
                    except EOFError:  # it has ended
                        worker = workers.pop(pipe)
                        worker.join()
                        if worker.exitcode:
                            failed.append(f"a process ended with exit code {worker.exitcode}")
                        continue
                    if isinstance(said, Step):
                        progress.tell(said)
                    elif isinstance(said, Log):
                        log.measured |= said.measured
                        log.missing |= said.missing
                    else:
                        failed.append(said)
        finally:
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.join()
    if failed:
        raise Refused("; ".join(dict.fromkeys(failed)))
    return log


@contextmanager
def as_children(threads: int) -> Iterator[None]:
    """Processes started here take so many threads, and leave an interrupt to their parent."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), str(threads))
    before = {name: os.environ.get(name) for name in limits}
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(limits)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def work(run: Run, experiment: Experiment, claims: str, pipe: Connection) -> None:
    """One process: it measures the groups that it is the first to claim."""
    Thread(target=end_with_parent, daemon=True).start()
    mine: set[str] = set()

    def claim(group: str) -> bool:
        if group not in mine:
            try:
                Path(claims, group).touch(exist_ok=False)
            except FileExistsError:
                return False
            mine.add(group)
        return True

    try:
        pipe.send(perform(run, experiment(run), claim, pipe.send))
    except (FileNotFoundError, Refused) as error:
        pipe.send(str(error))
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{Path(last.filename).name}, line {last.lineno}"
        pipe.send(f"{type(error).__name__} in {where}: {error}")


def end_with_parent() -> None:
    """A parent that is killed takes its processes along."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
