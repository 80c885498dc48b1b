"""The notebooks as Colab opens them: `python book/colab.py FOLDER`, what the branch `colab` holds.

Their first cell installs `wotlab` from the repository that this runs in, and their links lead to one
another in Colab and, for pages that are no notebooks, to the repository. All else is as it is here.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from repository import COLAB, COLAB_BRANCH, address, fill_install_line

BOOK = Path(__file__).parent
PAGE = re.compile(r"\]\(([\w-]+\.(?:ipynb|md))((?:#[^)]*)?)\)")
README = """The notebooks of [{url}]({url}), with the line that installs `wotlab` from there.
The workflow that publishes the site writes this branch anew; change the notebooks on `main`.
"""


def for_colab(notebook: str, url: str) -> str:
    """A stored notebook, with its install line and its links."""

    def link(match: re.Match) -> str:
        page, anchor = match.groups()
        if page.endswith(".ipynb"):
            path = url.removeprefix("https://github.com/")
            there = (
                f"{COLAB}/github/{path}/blob/{COLAB_BRANCH}/book/{page}"
            )
        else:
            there = f"{url}/blob/HEAD/book/{page}"
        return f"]({there}{anchor})"

    stored = json.loads(notebook)
    for cell in stored["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = fill_install_line(source, url)
        else:
            source = PAGE.sub(link, source)
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(stored, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, url: str) -> None:
    """Lay the branch's files into a folder."""
    (folder / "book").mkdir(parents=True)
    (folder / "README.md").write_text(README.format(url=url))
    for path in sorted(BOOK.glob("*.ipynb")):
        text = for_colab(path.read_text("utf-8"), url)
        (folder / "book" / path.name).write_text(text, "utf-8")


if __name__ == "__main__":
    here = address(folder=BOOK)
    if here is None:
        sys.exit(
            "the address of this repository is not known: there is no forge and no remote"
        )
    write(Path(sys.argv[1]), here)
