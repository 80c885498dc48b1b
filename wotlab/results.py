"""The ledger: one JSON file a measured number, with all that is needed to measure it again."""

import csv
import datetime
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "POT", "numpy")
PATH = re.compile(
    r"(^|[\s=\"'])(/|~|[A-Za-z]:\\)\S*"
)  # a path of one machine, which nobody else has


@dataclass(frozen=True)
class Record:
    """One measured number.

    Attributes
    ----------
    what : str
        Which measurement this is, in kebab case; `read` selects by it.
    case : str
        Which case of it: method, setting, eps.
    value : float
    unit : str
    samples : str
        What it was measured on, with the indices.
    seed : int or None
    command : str
        What to run to measure it again.
    seconds : float
        How long the measurement took.
    interval : (float, float) or None
        95 % confidence interval, where the value is a share.
    printed : float or None
        The paper's value.
    source : str or None
        Where the paper prints it (paper, table, row).
    note : str
        What a reader must know beside the number.
    details : dict
        Further numbers of the same measurement.
    commit, versions, device, date
        Filled in by `write`.
    """

    what: str
    case: str
    value: float
    unit: str
    samples: str
    seed: int | None
    command: str
    seconds: float
    interval: tuple[float, float] | None = None
    printed: float | None = None
    source: str | None = None
    note: str = ""
    details: dict = field(default_factory=dict)
    commit: str | None = None
    versions: dict = field(default_factory=dict)
    device: str = ""
    date: str = ""

    def __post_init__(self):
        for name in ("what", "case"):
            text = getattr(self, name)
            if not isinstance(text, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", text):
                raise ValueError(f"{name} must be kebab case (a-z, 0-9, '.', '-'); got {text!r}")
        for name in ("value", "seconds"):
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number; got {number!r}")
        for name in ("unit", "samples", "command"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must say something; got {getattr(self, name)!r}")
        if self.interval is not None and not self.interval[0] <= self.value <= self.interval[1]:
            raise ValueError(f"interval must hold the value {self.value}; got {self.interval}")
        for name in ("samples", "command", "note"):
            if PATH.search(getattr(self, name)):
                raise ValueError(
                    f"{name} must not hold a path of this machine; got {getattr(self, name)!r}"
                )


def write(record: Record, folder: str | Path = "results") -> Path:
    """Store a record as `folder`/what--case.json, with commit, versions, device and date.

    The file is replaced whole or not at all. Returns its path.
    """
    filled = asdict(record) | provenance()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.what}--{record.case}.json"
    part = path.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(filled, file, indent=2, ensure_ascii=False)
            file.write("\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read(what: str | None = None, folder: str | Path | None = None) -> list[Record]:
    """The records of a folder, sorted by file name; by default those that ship with the package.

    Parameters
    ----------
    what : str, optional
        Only the records of this measurement; no other file is opened.
    folder : path, optional

    Raises
    ------
    ValueError
        For a file that is no record; the message names file and field.
    """
    place = resources.files("wotlab.records") if folder is None else Path(folder)
    start = "" if what is None else f"{what}--"  # so that only these files are opened
    files = [f for f in place.iterdir() if f.name.startswith(start) and f.name.endswith(".json")]
    files.sort(key=lambda f: f.name)
    records = [_parse(f.name, f.read_text()) for f in files]
    return [r for r in records if what in (None, r.what)]


def printed(paper: str, **where: str) -> list[dict[str, str]]:
    """Numbers as a paper prints them: the rows of printed-PAPER.csv that have these entries.

    Raises
    ------
    ValueError
        For a paper whose numbers are not kept.
    """
    place = resources.files("wotlab.records").joinpath(f"printed-{paper}.csv")
    if not place.is_file():
        raise ValueError(f"there are no printed numbers of {paper!r}; see results/printed-*.csv")
    rows = csv.DictReader(place.read_text().splitlines())
    return [row for row in rows if where.items() <= row.items()]


def provenance() -> dict:
    """Commit, versions, device and date of this run, without a word on the machine's owner."""
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "device": device(),
        "date": datetime.date.today().isoformat(),
    }


def device() -> str:
    """The device in words: the GPU's name, or the processor with its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"model name\s*:\s*(.+)", info.read_text())
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """Commit of the checkout that this file lies in; None for an installed package."""
    ask = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _parse(name: str, text: str) -> Record:
    try:
        fields = json.loads(text)
        fields["interval"] = tuple(fields["interval"]) if fields["interval"] else None
        return Record(**fields)
    except (ValueError, TypeError, KeyError) as error:  # broken JSON, other fields
        raise ValueError(f"{name} is no record: {error}") from error
