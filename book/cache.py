"""Execute the notebooks that the book's cache lacks, several at once.

    python book/cache.py NOTEBOOK...

`jupyter-book build` takes them from there; by itself it runs one after the other. It tries again
what fails here, and says how it failed.
"""

import sys
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

CACHE = Path(__file__).resolve().parents[1] / "_build" / ".jupyter_cache"


def main(notebooks: list[str]) -> None:
    cache = get_cache(str(CACHE))
    for name in reversed(notebooks):  # the later chapters take longer
        cache.add_nb_to_project(str(Path(name).resolve()))
    load_executor("local-parallel", cache).run_and_cache(timeout=600)


if __name__ == "__main__":
    main(sys.argv[1:])
