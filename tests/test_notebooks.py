"""The notebooks as they are stored. `make test` also runs each, alone, against its outputs."""

import re
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from execute import METADATA, execute, keep_figures

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# what a machine leaves behind: home and temporary folders, installed packages, drive letters
LOCAL = re.compile(r"/(home|root|Users|tmp|private|var|opt|work)/\w|site-packages|\b[A-Z]:\\\\?\w")
INSTALL = re.compile(
    r"^(?:try:\n    import wotlab\nexcept ImportError:.*"
    r'|if importlib\.util\.find_spec\("wotlab"\) is None:)\n    %pip install --quiet \S+$',
    re.M,
)


def cells(path: Path, kind: str) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def outputs(path: Path):
    return [(cell, output) for cell in cells(path, "code") for output in cell.outputs]


@EVERY_NOTEBOOK
def test_every_cell_was_run_in_order_and_without_complaint(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code) or not code
    for cell, output in outputs(path):
        assert output.output_type != "error" and output.get("name") != "stderr", cell.source


@EVERY_NOTEBOOK
def test_nothing_of_the_machine_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == METADATA
    for cell in notebook.cells:
        shown = [cell.source]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            shown += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
        text = re.sub(r"data:image/[^\"']+", "", "\n".join(shown))
        assert not LOCAL.search(text), LOCAL.search(text)[0]


@EVERY_NOTEBOOK
def test_every_figure_has_a_caption_and_alt_text(path):
    for cell, output in outputs(path):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            told = cell.metadata.get("mystnb", {})
            assert told.get("image", {}).get("alt", "").strip(), cell.source
            assert told.get("figure", {}).get("caption", "").strip(), cell.source
        for image in BeautifulSoup(data.get("text/html", ""), "html.parser").find_all("img"):
            assert image.get("alt", "").strip(), cell.source
    for cell in cells(path, "markdown"):
        assert not re.search(r"!\[\s*\]\(", cell.source), cell.source


@EVERY_NOTEBOOK
def test_code_cells_fit_a_screen(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 30, cell.source
        # nbval runs cells outside IPython's history, where a closing semicolon silences nothing
        assert not cell.source.rstrip().endswith(";"), f"end with plt.show() instead: {cell.source}"


def vector_figures(path: Path) -> list[str]:
    found = []
    for _, output in outputs(path):
        data = output.get("data", {})
        found += [data["image/svg+xml"]] if "image/svg+xml" in data else []
        for image in BeautifulSoup(data.get("text/html", ""), "html.parser").find_all("img"):
            start, _, code = image.get("src", "").partition(";base64,")
            if start == "data:image/svg+xml":
                found.append(b64decode(code).decode())
    return found


@EVERY_NOTEBOOK
def test_figures_are_narrow_enough_for_a_phone_to_show_their_text(path):
    for svg in vector_figures(path):
        width = re.search(r'<svg [^>]*\bwidth="([0-9.]+)pt"', svg)
        assert width, svg[:300]
        assert float(width[1]) <= 400, width[0]


@EVERY_NOTEBOOK
def test_lines_of_code_fit_the_page(path):
    for cell in cells(path, "code"):
        for line in cell.source.splitlines():
            assert len(line) <= 74, line


@EVERY_NOTEBOOK
def test_every_output_is_compared_but_that_of_the_versions(path):
    code = cells(path, "code")
    ignored = [
        k for k, cell in enumerate(code) if "nbval-ignore-output" in cell.metadata.get("tags", [])
    ]
    assert ignored in ([], [len(code) - 1])
    assert all("__version__" in code[k].source for k in ignored)


@EVERY_NOTEBOOK
def test_first_cell_installs_what_is_missing_and_nothing_else(path):
    code = [cell.source for cell in cells(path, "code")]
    if any("wotlab" in source for source in code):
        assert INSTALL.search(code[0]), code[0]
    assert sum(source.count("pip install") for source in code) <= 1


@EVERY_NOTEBOOK
def test_notebook_is_a_page_of_the_book(path):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    assert f"book/{path.stem}" in files | {toc["root"]}


def small_notebook(path: Path, *sources: str) -> Path:
    new = nbformat.v4.new_code_cell
    code = [new(source, id=f"cell-{k}") for k, source in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)
    return path


def test_execute_stores_the_same_bytes_again_and_nothing_of_the_moment(tmp_path):
    path = small_notebook(
        tmp_path / "small.ipynb",
        "import sys\nprint('one')\nprint('bar 100%', file=sys.stderr)\nprint('two', flush=True)",
        "import warnings\nwarnings.warn('noise')\n{'a': 1}",
    )
    execute(path)
    first = path.read_bytes()
    execute(path)
    assert path.read_bytes() == first
    one, two = cells(path, "code")
    assert [(one.id, one.execution_count), (two.id, two.execution_count)] == [
        ("cell-0", 1),
        ("cell-1", 2),
    ]
    assert [output.text for output in one.outputs] == ["one\ntwo\n"]
    assert [output.data["text/plain"] for output in two.outputs] == ["{'a': 1}"]
    assert nbformat.read(path, as_version=4).metadata == METADATA


def test_execute_takes_one_thread(tmp_path):
    path = small_notebook(tmp_path / "small.ipynb", "import os\nos.environ['OMP_NUM_THREADS']")
    execute(path)
    assert cells(path, "code")[0].outputs[0].data["text/plain"] == "'1'"


@pytest.mark.parametrize("source", ["1 / 0", "print(object())"], ids=["error", "address"])
def test_execute_fails_and_leaves_the_file_alone(tmp_path, source):
    path = small_notebook(tmp_path / "bad.ipynb", source)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"division by zero|address in memory"):
        execute(path)
    assert path.read_bytes() == before


def drawing(height: float, clip: str = "p0123456789") -> str:
    return f'<svg><path d="M 1.5 {height}" clip-path="url(#{clip})" fill="#b2182b"/></svg>'


def stored(kind: str, text: str) -> list:
    return [nbformat.v4.new_output("display_data", {kind: text})]


@pytest.mark.parametrize("kind", ["image/svg+xml", "text/html"])
def test_a_figure_stays_as_it_was_if_rounding_alone_has_changed(kind):
    def wrap(svg):
        data = b64encode(svg.encode()).decode()
        return svg if kind == "image/svg+xml" else f'<img src="data:image/svg+xml;base64,{data}">'

    old = stored(kind, wrap(drawing(20.160512)))
    for svg, kept in [
        (drawing(20.160513, "p9876543210"), True),
        (drawing(20.26), False),
        (drawing(20.160512).replace("b2182b", "b2182c"), False),
        (drawing(20.160512).replace("M", "L"), False),
    ]:
        new = stored(kind, wrap(svg))
        keep_figures(old, new)
        assert (new == old) == kept, svg
