"""The repository's address: where it is found, and what the site and the notebooks do with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from colab import write
from repository import address, fill_install_line, normalise, theme_options

ROOT = Path(__file__).resolve().parents[1]
FORGE = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "owner/name"}
URL = "https://github.com/owner/name"
COLAB = "https://colab.research.google.com/github/owner/name"


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/owner/name.git",
        "https://user:secret@github.com/owner/name",
        "git@github.com:owner/name.git",
        "ssh://git@github.com:22/owner/name.git",
        "git://github.com/owner/name/",
    ],
)
def test_every_form_of_a_remote_gives_the_https_address_without_credentials(remote):
    assert normalise(remote) == "https://github.com/owner/name"


@pytest.mark.parametrize("remote", ["/srv/name", "../name", "file:///srv/name", "host:name", ""])
def test_a_local_path_is_no_address(remote):
    assert normalise(remote) is None


def clone_of(remote: str, folder: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=folder, check=True)
    return folder


def test_forge_comes_before_remote_and_a_clone_without_either_has_no_address(tmp_path):
    clone = clone_of("git@gitlab.com:group/sub/name.git", tmp_path / "clone")
    assert address({}, clone) == "https://gitlab.com/group/sub/name"
    assert address(FORGE, clone) == "https://github.com/owner/name"
    assert address({}, clone_of("/srv/name", tmp_path / "local")) is None
    assert address({}, tmp_path) is None


def test_only_github_gets_a_colab_button():
    assert "launch_buttons" in theme_options("https://github.com/owner/name")
    assert "launch_buttons" not in theme_options("https://gitlab.com/owner/name")
    assert theme_options(None) == {}


def test_install_line_points_at_the_repository():
    cell = "try:\n    import wotlab\nexcept ImportError:\n    %pip install --quiet {}"
    known = cell.format(f"git+{URL}")
    assert fill_install_line(cell.format("wotlab"), URL) == fill_install_line(known, URL) == known


def test_the_branch_for_colab_differs_in_install_lines_and_links_alone(tmp_path):
    """Every install line names the repository, and every link to a page leads there."""
    write(tmp_path / "branch", URL)
    stored = sorted((ROOT / "book").glob("*.ipynb"))
    made = sorted((tmp_path / "branch" / "book").glob("*.ipynb"))
    assert [path.name for path in made] == [path.name for path in stored]
    there = f"{COLAB}/blob/colab/book/"
    for path, before in zip(made, stored, strict=True):
        new, old = (nbformat.read(p, as_version=4) for p in (path, before))
        code = [cell.source for cell in new.cells if cell.cell_type == "code"]
        assert code[0].count(f"    %pip install --quiet git+{URL}\n") == 1
        assert "".join(code).count("pip install") == 1
        for cell, was in zip(new.cells, old.cells, strict=True):
            for link in re.findall(r"\]\((\S+\.(?:ipynb|md))", cell.source):
                page = link.removeprefix(there).removeprefix(f"{URL}/blob/HEAD/book/")
                assert link.startswith("https://") and (ROOT / "book" / page).is_file(), link
            plain = cell.source.replace(there, "").replace(f"{URL}/blob/HEAD/book/", "")
            assert plain.replace(f"git+{URL}", "wotlab") == was.source
            assert {**cell, "source": ""} == {**was, "source": ""}
    assert f"({URL})" in (tmp_path / "branch" / "README.md").read_text()


@pytest.mark.parametrize("file", ["_static/book.css", "_static/fonts.css", "_root/index.html"])
def test_every_page_is_built_anew_where_its_look_has_changed(file):
    dry = ["make", "--dry-run", f"--what-if=book/{file}", "book"]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True)
    forgets, builds = (done.stdout.find(text) for text in ("rm -rf _build/.doctrees\n", "build -n"))
    assert 0 <= forgets < builds


@pytest.mark.parametrize("forge", [FORGE, {}], ids=["forge", "no address"])
def test_site_has_the_buttons_where_the_address_is_known_and_none_elsewhere(tmp_path, forge):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    extensions = {
        name: str(ROOT / "book" / "_ext") for name in config["sphinx"]["local_extensions"]
    }
    config["sphinx"]["local_extensions"] = extensions
    config["bibtex_bibfiles"] = [str(ROOT / "book" / "references.bib")]
    config["sphinx"]["config"] = {"extensions": config["sphinx"]["config"]["extensions"]}
    del config["logo"], config["html"]
    config["execute"]["execute_notebooks"] = "off"
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/page\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "page.ipynb").write_text(
        '{"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Page"}],'
        ' "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")} | forge
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    build = [jupyter_book, "build", "-n", "-W", str(tmp_path)]
    done = subprocess.run(build, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "_build" / "html" / "book" / "page.html").read_text()
    buttons = [
        f'href="{URL}"',
        f'href="{URL}/issues/new',
        f'href="{COLAB}/blob/colab/book/page.ipynb"',
    ]
    assert [button in page for button in buttons] == [bool(forge)] * 3
    assert "executablebooks/jupyter-book" not in page
    assert 'href="../_sources/book/page.ipynb"' in page
