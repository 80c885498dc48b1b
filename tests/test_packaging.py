"""What `pip install wotlab` gives a user who has never seen this repository."""

import os
import re
import subprocess
import sys
import tomllib
from email.parser import Parser
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest
import yaml
from alone import make_kernels
from jupyter_client.manager import start_new_kernel
from packaging.requirements import Requirement

import wotlab

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_requires_the_package_dependencies_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = [Requirement(r) for r in metadata.get_all("Requires-Dist")]
    unconditional = {r.name.lower() for r in required if r.marker is None}
    assert unconditional == {Requirement(r).name.lower() for r in PROJECT["dependencies"]}
    extras = {Requirement(r).name.lower() for e in ("book", "test") for r in extra(e)}
    assert not unconditional & extras


def extra(name: str) -> list[str]:
    return PROJECT["optional-dependencies"][name]


def test_wheel_holds_the_package_and_its_licence_alone(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert all(n.startswith(("wotlab/", f"wotlab-{PROJECT['version']}.dist-info/")) for n in names)
    for folder, package in (("wotlab", "wotlab"), ("results", "wotlab/records")):
        files = (p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc")
        assert {f"{package}/{p.relative_to(ROOT / folder)}" for p in files} <= set(names)
    assert any(n.endswith("LICENSE") for n in names)


def test_environment_sees_the_wheel_and_torch_but_not_the_checkout(alone, tmp_path):
    find = "from importlib.util import find_spec as f; print(f('wotlab').origin, f('torch').origin)"
    package, torch = map(Path, run(alone, find, tmp_path).split())
    assert package.is_relative_to(alone.parents[1]) and not package.is_relative_to(ROOT)
    assert torch == Path(find_spec("torch").origin)


def test_kernel_of_another_processor_computes_as_that_one(tmp_path, monkeypatch):
    make_kernels(tmp_path, Path(sys.executable))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager, client = start_new_kernel(kernel_name="elsewhere")
    said = []
    try:
        ask = (
            "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
        )
        client.execute_interactive(ask, timeout=60, output_hook=said.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert [m["content"]["text"] for m in said if m["msg_type"] == "stream"] == ["DEFAULT 1\n"]


def test_readme_examples_run_as_written(alone, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert blocks, "README.md shows no Python example"
    run(alone, "\n".join(blocks), tmp_path)


def test_map_of_readme_names_every_chapter_and_what_the_package_has():
    rows = re.findall(r"^\| (?:\[.*\]\((book/\d\d.*)\)|all) \|.*\| (.*) \|$", README, re.M)
    chapters = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
    assert [row[0] for row in rows] == [*(f"book/{path.name}" for path in chapters), ""]
    named = {name for _, last in rows for name in re.findall(r"`([\w.]+)`", last)}
    for name in named - {"experiments"}:
        attrgetter(name)(wotlab)
    modules = {m for m in wotlab.__all__ if isinstance(getattr(wotlab, m), ModuleType)}
    assert {name.split(".")[0] for name in named} == modules | {"experiments"}


CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_versions_and_their_date_agree():
    assert wotlab.__version__ == PROJECT["version"]  # of the installed metadata
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    newest = re.search(r"^## \[(.*)\] - (.*)$", CHANGELOG, re.M)
    assert newest.groups() == (PROJECT["version"], str(citation["date-released"]))


def test_citation_has_the_book_s_sources_as_its_bibliography_has_them():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entries = (ROOT / "book/references.bib").read_text().replace("{", "").replace("}", "")
    entries = re.sub(r"\s+", " ", entries).replace(r"$\infty$", "∞")
    assert len(citation["references"]) == 5
    for paper in citation["references"]:
        assert f"title = {paper['title']}," in entries
        names = [", ".join(author.values()) for author in paper["authors"]]
        assert f"author = {' and '.join(names)}," in entries
        assert paper.get("url", "") in entries


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_a_job_may_write_what_it_must_and_nothing_else():
    granted = set()
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for name, job in workflow["jobs"].items():
            rights = job.get("permissions", {}).items()
            granted |= {(path.stem, name, scope) for scope, right in rights if right == "write"}
    assert granted == {
        ("pages", "publish", "pages"), ("pages", "publish", "id-token"),
        ("pages", "colab", "contents"), ("release", "publish", "id-token"),
        ("release", "page", "contents"),
    }  # fmt: skip


def jobs(workflow: str) -> dict:
    return yaml.safe_load((ROOT / f".github/workflows/{workflow}.yml").read_text())["jobs"]


def test_oldest_python_is_tested_with_the_oldest_of_each_dependency():
    oldest, newest = jobs("tests")["test"]["strategy"]["matrix"]["supported"]
    assert f">={oldest['python']}" == PROJECT["requires-python"]
    script, place = oldest["pins"].split()
    assert script == "python"
    pins = subprocess.run([sys.executable, ROOT / place], capture_output=True, text=True).stdout
    found = [Requirement(line) for line in pins.splitlines()]
    assert [pin.name for pin in found] == [Requirement(r).name for r in PROJECT["dependencies"]]
    for pin, needed in zip(found, map(Requirement, PROJECT["dependencies"]), strict=True):
        (bound,), (exact,) = needed.specifier, pin.specifier
        assert (bound.operator, exact.operator) == (">=", "==") and bound.version == exact.version
    tried = jobs("release")["try"]["strategy"]["matrix"]["python"]
    assert tried[0] == oldest["python"] and tried[-1] == newest["python"]


def test_release_has_the_changelog_s_section_as_its_notes(tmp_path):
    """The step of the workflow as it is, with a `gh` that does nothing, and one version before."""
    version, step = PROJECT["version"], jobs("release")["page"]["steps"][-1]
    older = "\n## [0.0.1] - 2026-01-01\n\nAn older version.\n"
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG + older)
    (tmp_path / "gh").write_text('#!/bin/sh\necho "$@" > called\n')
    (tmp_path / "gh").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    names = os.environ | {"PATH": path, "GITHUB_REF_NAME": f"v{version}"}
    subprocess.run(["bash", "-euc", step["run"]], cwd=tmp_path, env=names, check=True)
    _, section, *_ = re.split(r"^## \[.*\n", CHANGELOG, flags=re.M)
    assert (tmp_path / "notes.md").read_text().strip() == section.strip()
    assert (tmp_path / "called").read_text().startswith(f"release create v{version} dist/")
    names["GITHUB_REF_NAME"] = "v9.9.9"  # nothing is said of that one
    assert subprocess.run(["bash", "-euc", step["run"]], cwd=tmp_path, env=names).returncode


@pytest.mark.parametrize("path", WORKFLOWS, ids=str)
def test_workflows_are_yaml_and_call_what_the_makefile_has(path):
    workflow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert set(re.findall(r"make (\w+)", step.get("run", ""))) <= targets


def test_conda_users_get_the_same_list():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["--editable .[book,test]"]}
