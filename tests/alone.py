"""An environment as a reader has it: torch and the wheel of this project, no checkout in sight.

`python tests/alone.py FOLDER NOTEBOOK...` makes it in FOLDER, as a Jupyter kernel named `alone`,
and lays each notebook into an empty folder of its own beside it.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of what goes into it, so that nothing stale slips in."""
    source = folder / "source"
    for name in ("wotlab", "results"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(source)], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def make_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel that sees what is installed here; its python.

    A path from a .pth file is searched, but .pth files found there are not read: the editable
    install of this checkout stays out.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    here = sysconfig.get_paths()
    (site / "outer.pth").write_text(f"{here['purelib']}\n{here['platlib']}\n")
    return python


def make_kernel(folder: Path, python: Path) -> None:
    """A kernel named `alone` for JUPYTER_PATH=folder."""
    kernel = folder / "kernels" / "alone"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "alone", "language": "python", "env": {"PYTHONPATH": ""}}
    (kernel / "kernel.json").write_text(json.dumps(spec))


def main(folder: Path, notebooks: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_kernel(folder, make_environment(folder / "python", build_wheel(folder)))
    for notebook in notebooks:
        (folder / notebook.stem).mkdir()
        shutil.copy(notebook, folder / notebook.stem)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]])
