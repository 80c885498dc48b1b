"""The ledger: one JSON file a measured number, with all that is needed to measure it again."""

import csv
import datetime
import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path

import torch

from wotlab._base.files import replacing

__all__ = [
    "Key",
    "Keys",
    "Record",
    "device",
    "find",
    "name",
    "printed",
    "provenance",
    "read",
    "table",
    "write",
]

Key = str | float | bool | None  #: The value of a key of a record.
Keys = dict[str, Key]  #: What tells a record from the others of its experiment.
KEBAB = re.compile(r"[a-z0-9][a-z0-9.-]*")
PACKAGES = ("torch", "torchvision", "POT", "numpy")
PATH = re.compile(r"(^|[\s=\"'])(/|~|[A-Za-z]:\\)\S*")  # of one machine, which nobody else has


@dataclass(frozen=True)
class Record:
    """One measured number.

    Attributes
    ----------
    what : str
        Which experiment this is of, in kebab case; its folder's name.
    keys : dict
        What tells it from the experiment's other numbers (network, attack, eps, seed, ...), each
        a word in kebab case, a number, a bool or None; `name` makes the file's name of them.
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

    Examples
    --------
    >>> from wotlab import results
    >>> keys, sample = {"attack": "pgd", "eps": 0.1}, "digits 0 to 9"
    >>> record = results.Record("demo", keys, 0.5, "share", sample, 0, "demo.py", 1.0)
    >>> record.value, record.printed  # no paper prints it
    (0.5, None)
    """

    what: str
    keys: Keys
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

    def __post_init__(self) -> None:
        words = {key: value for key, value in self.keys.items() if isinstance(value, str)}
        texts = {"what": self.what} | words | {"keys": name(self.keys)}
        for which, text in texts.items():
            if not isinstance(text, str) or not KEBAB.fullmatch(text):
                raise ValueError(f"{which} must be kebab case (a-z, 0-9, '.', '-'); got {text!r}")
        for which in ("value", "seconds"):
            number = getattr(self, which)
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{which} must be a finite number; got {number!r}")
        for which in ("unit", "samples", "command"):
            if not isinstance(getattr(self, which), str) or not getattr(self, which):
                raise ValueError(f"{which} must say something; got {getattr(self, which)!r}")
        if self.interval is not None and not self.interval[0] <= self.value <= self.interval[1]:
            raise ValueError(f"interval must hold the value {self.value}; got {self.interval}")
        for which in ("samples", "command", "note"):
            if PATH.search(getattr(self, which)):
                raise ValueError(
                    f"{which} must not hold a path of this machine; got {getattr(self, which)!r}"
                )


def name(keys: Keys) -> str:
    """The name of a cell: the values of its keys in their order, joined by "-".

    A word stands for itself, a number behind its key, True as its key; False and None are left
    out. `{"network": "ours", "attack": "transport", "eps": 0.1}` is "ours-transport-eps-0.1".

    Parameters
    ----------
    keys : dict

    Examples
    --------
    >>> from wotlab import results
    >>> results.name({"network": "ours", "attack": "transport", "eps": 0.1})
    'ours-transport-eps-0.1'
    """
    words = []
    for key, value in keys.items():
        if isinstance(value, str):
            words.append(value)
        elif value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f"{key}-{value:g}")
    return "-".join(words)


def write(record: Record, folder: str | Path = "results") -> Path:
    """Store a record as `folder`/WHAT/NAME.json, with commit, versions, device and date.

    The file is replaced whole or not at all. Returns its path.

    Parameters
    ----------
    record : Record
    folder : path

    Examples
    --------
    >>> import tempfile
    >>> from wotlab import results
    >>> keys, sample = {"attack": "pgd", "eps": 0.1}, "digits 0 to 9"
    >>> record = results.Record("demo", keys, 0.5, "share", sample, 0, "demo.py", 1.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = results.write(record, folder)
    ...     again = results.find("demo", keys, folder)
    >>> path.name, again.value
    ('pgd-eps-0.1.json', 0.5)
    """
    filled = asdict(record) | provenance()
    path = Path(folder) / record.what / f"{name(record.keys)}.json"
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        json.dump(filled, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return path


def find(what: str, keys: Keys, folder: str | Path | None = None) -> Record | None:
    """The record of a cell, if it is there; no other file is opened.

    Parameters
    ----------
    what : str
        The experiment.
    keys : dict
        All keys of the record, in its order, which its file is named by.
    folder : path, optional
        By default the records that ship with the package.

    Examples
    --------
    >>> from wotlab import results
    >>> keys = {"training": "chain-sign", "attack": "autoattack"}
    >>> results.find("linf-training", keys).unit
    '%'
    >>> results.find("linf-training", {"attack": "none"}) is None
    True
    """
    file = _place(folder).joinpath(what, f"{name(keys)}.json")
    return _parse(file) if file.is_file() else None


def read(what: str | None = None, folder: str | Path | None = None) -> list[Record]:
    """The records of a folder by experiment and keys; by default those that ship with the package.

    Parameters
    ----------
    what : str, optional
        Only the records of this experiment; no other folder is opened.
    folder : path, optional

    Raises
    ------
    ValueError
        For an experiment without records, and for a file that is no record; the message names
        those that there are, or file and field.

    Examples
    --------
    >>> from wotlab import results
    >>> record = results.read("linf-training")[0]
    >>> record.keys, record.unit
    ({'training': 'chain-sign', 'attack': 'autoattack'}, '%')
    """
    place = _place(folder)
    folders = place.iterdir() if what is None else [place.joinpath(what)]
    records = [_parse(file) for each in folders for file in _files(each)]
    if what is not None and not records:
        there = sorted(each.name for each in place.iterdir() if _files(each))
        raise ValueError(f"there are no records of {what!r}; there are some of {', '.join(there)}")
    return sorted(records, key=lambda r: (r.what, [_rank(v) for v in r.keys.values()]))


def table(
    what: str, *by: str, folder: str | Path | None = None, **where: Key
) -> dict[Key | tuple[Key, ...], Record]:
    """An experiment's records by their keys: `table("linf-training", "training", "attack")`.

    Parameters
    ----------
    what : str
        The experiment.
    *by : str
        The keys to look up by, such as rows and columns; with one its value alone.
    folder : path, optional
        By default the records that ship with the package.
    **where
        Only the records whose keys have these values. A key that a record lacks is None there.

    Raises
    ------
    ValueError
        For an experiment without records, a key that no record has, and where two records would
        stand in one place.

    Examples
    --------
    >>> from wotlab import results
    >>> found = results.table("linf-training", "training", attack="autoattack")
    >>> list(found)[:2], found["chain-sign"].unit
    (['chain-sign', 'fast'], '%')
    """
    records = read(what, folder)
    known = {key for record in records for key in record.keys}
    for key in (*by, *where):
        if key not in known:
            raise ValueError(f"no record of {what!r} has a key {key!r}; there are {sorted(known)}")
    found: dict[Key | tuple[Key, ...], Record] = {}
    for record in records:
        if any(record.keys.get(key) != value for key, value in where.items()):
            continue
        values = tuple(record.keys.get(key) for key in by)
        at = values[0] if len(by) == 1 else values
        if at in found:
            raise ValueError(
                f"two records of {what!r} stand at {at}: {name(found[at].keys)} and "
                f"{name(record.keys)}; look up by more keys, or say which"
            )
        found[at] = record
    return found


def printed(
    paper: str, keys: Mapping[str, Key] | None = None, **where: Key
) -> list[dict[str, str]]:
    """Numbers as a paper prints them: the rows of printed/PAPER.csv that have these entries.

    `keys`, those of a cell, count as far as the rows have such columns. Rows whose value is no
    number are left out: there the paper prints a dash, or the text that it was read from is broken.
    `certain` says whether a number was read with certainty, `note` why not.

    Parameters
    ----------
    paper : str
        A file of results/printed, such as "hu".
    keys : dict, optional
    **where
        Entries of columns, such as table=1.

    Raises
    ------
    ValueError
        For a paper whose numbers are not kept, and for a column that its rows lack.

    Examples
    --------
    >>> from wotlab import results
    >>> rows = results.printed("hu", table=4, network="standard", attack="clean")
    >>> [row["value"] for row in rows]
    ['98.9', '94.8']
    """
    place = _place().joinpath("printed", f"{paper}.csv")
    if not place.is_file():
        raise ValueError(f"there are no printed numbers of {paper!r}; see results/printed")
    rows = csv.DictReader(place.read_text().splitlines())
    columns = set(rows.fieldnames or ())
    if unknown := where.keys() - columns:
        raise ValueError(f"the rows of {paper!r} have no columns {sorted(unknown)}")
    where |= {key: value for key, value in (keys or {}).items() if key in columns}
    texts = {key: f"{value:g}" if isinstance(value, (int, float)) else value or ""
             for key, value in where.items()}  # fmt: skip
    return [row for row in rows if row["value"] not in "-?" and texts.items() <= row.items()]


def provenance() -> dict:
    """Commit, versions, device and date of this run, without a word on the machine's owner.

    Examples
    --------
    >>> from wotlab import results
    >>> sorted(results.provenance())
    ['commit', 'date', 'device', 'versions']
    """
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "device": device(),
        "date": datetime.date.today().isoformat(),
    }


def device() -> str:
    """The device in words: the GPU's name, or the processor with its threads.

    Examples
    --------
    >>> from wotlab import results
    >>> len(results.device()) > 0
    True
    """
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
    ask, here = ["git", "describe", "--always", "--dirty", "--abbrev=40"], Path(__file__).parent
    try:
        done = subprocess.run(ask, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _place(folder: str | Path | None = None) -> Traversable:
    return resources.files("wotlab.records") if folder is None else Path(folder)


def _files(folder: Traversable) -> list[Traversable]:
    """Those of its records; of what is no folder none."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return [file for file in inside if file.name.endswith(".json")]


def _rank(value: Key) -> tuple[float, str]:
    """Numbers by their size, before words by the alphabet."""
    return (value, "") if isinstance(value, (int, float)) else (math.inf, value or "")


def _parse(file: Traversable) -> Record:
    try:
        fields = json.loads(file.read_text())
        fields["interval"] = tuple(fields["interval"]) if fields["interval"] else None
        return Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # broken JSON, other fields
        raise ValueError(f"{file.name} is no record: {error}") from error
