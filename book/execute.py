"""Run notebooks in place and store their outputs: `python book/execute.py NOTEBOOK...`.

What is stored holds nothing of the machine or the moment, so that a second run without a change
leaves no difference: no times, no kernel version, no standard error, no progress bars; a vector
figure that differs in rounding alone stays as it was. One thread, since two add in another order,
and a plan with ties may then draw other arrows. A cell that fails, or that prints an object's
address in memory, stops the run and leaves the file alone.
"""

import os
import re
import sys
from base64 import b64decode
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {
        "name": "python",
        "file_extension": ".py",
        "pygments_lexer": "ipython3",
    },
}
MEMORY = re.compile(r" at 0x[0-9a-f]{6,}", re.IGNORECASE)
EMBEDDED = re.compile(r"data:image/svg\+xml;base64,([\w+/=]+)")
HASH = re.compile(
    r"(?<=[\"#])[a-z][0-9a-f]{10}\b"
)  # matplotlib's names of shapes
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
ROUNDING = 0.01  # of a point, in a figure


def execute(path: Path) -> None:
    """Run one notebook in its own folder and store it."""
    notebook = nbformat.read(path, as_version=4)
    before = deepcopy(notebook.cells)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name=METADATA["kernelspec"]["name"],
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    normalise(notebook)
    for old, new in zip(before, notebook.cells, strict=True):
        keep_figures(old.get("outputs", []), new.get("outputs", []))
    nbformat.write(notebook, path)


def normalise(notebook) -> None:
    """Drop from the outputs, in place, what another run would give otherwise."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for key in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        for output in cell.outputs:
            text = output.get("text", "") + str(
                output.get("data", {}).get("text/plain", "")
            )
            if MEMORY.search(text):
                raise ValueError(
                    f"a cell shows an address in memory: {text.strip()!r}; end it with plt.show() "
                    f"or print something else (a closing semicolon does not hide it from nbval):\n"
                    f"{cell.source}"
                )


def keep_figures(old: list, new: list) -> None:
    """Put the figures stored before back where the new ones differ in rounding alone."""
    for before, after in zip(old, new, strict=False):
        for kind in ("image/svg+xml", "text/html"):
            was, now = (
                output.get("data", {}).get(kind, "")
                for output in (before, after)
            )
            if was and now and same_picture(was, now):
                after.data[kind] = was


def same_picture(a: str, b: str) -> bool:
    """Whether two drawings agree but for the last digits of their coordinates."""
    a, b = (
        EMBEDDED.sub(lambda m: b64decode(m[1]).decode(), text)
        for text in (a, b)
    )
    a, b = HASH.sub("", a), HASH.sub("", b)
    if NUMBER.sub("", a) != NUMBER.sub("", b):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(
        x == y or abs(float(x) - float(y)) <= ROUNDING for x, y in pairs
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("running", name, flush=True)
        execute(Path(name))
