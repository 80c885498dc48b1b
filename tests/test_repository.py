"""The repository's address: where it is found, and what the site and the notebooks do with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from repository import address, branch, fill_install_line, normalise, theme_options

ROOT = Path(__file__).resolve().parents[1]
FORGE = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "owner/name"}


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


def test_branch(tmp_path):
    assert branch({"GITHUB_REF": "refs/heads/next"}, tmp_path) == "next"
    assert branch({"GITHUB_REF": "refs/pull/7/merge"}, tmp_path) == "main"


def test_only_github_gets_a_colab_button():
    assert "launch_buttons" in theme_options("https://github.com/owner/name", "main")
    assert "launch_buttons" not in theme_options("https://gitlab.com/owner/name", "main")
    assert theme_options(None, "main") == {}


CELL = """import importlib.util

if importlib.util.find_spec("wotlab") is None:
    %pip install --quiet {}"""


def test_install_line_points_at_the_repository_where_it_is_known():
    known = CELL.format("git+https://github.com/owner/name")
    assert fill_install_line(CELL.format("wotlab"), "https://github.com/owner/name") == known
    assert fill_install_line(known, "https://github.com/owner/name") == known
    assert fill_install_line(known, None) == known
    assert fill_install_line(CELL.format("wotlab"), None) == CELL.format("wotlab")


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
        'href="https://github.com/owner/name"',
        'href="https://github.com/owner/name/issues/new',
        'href="https://colab.research.google.com/github/owner/name/blob/main/book/page.ipynb"',
    ]
    assert [button in page for button in buttons] == [bool(forge)] * 3
    assert "executablebooks/jupyter-book" not in page
    assert 'href="../_sources/book/page.ipynb"' in page
