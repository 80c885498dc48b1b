"""An environment as a reader has it: torch and the wheel of this project, no checkout in sight.

`python tests/alone.py FOLDER NOTEBOOK...` makes it in FOLDER, as the Jupyter kernels of `KERNELS`,
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
KERNELS = {
    "alone": {"OMP_NUM_THREADS": "1"},
    # a processor without wide instructions, where sums run in another order
    "elsewhere": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "threads": {"OMP_NUM_THREADS": "2"},
}


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


def make_kernels(folder: Path, python: Path) -> None:
    """The kernels of `KERNELS`, for JUPYTER_PATH=folder."""
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    for name, settings in KERNELS.items():
        kernel = folder / "kernels" / name
        kernel.mkdir(parents=True)
        env = {"PYTHONPATH": ""} | settings
        spec = {"argv": argv, "display_name": name, "language": "python", "env": env}
        (kernel / "kernel.json").write_text(json.dumps(spec))


def main(folder: Path, notebooks: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_kernels(folder, make_environment(folder / "python", build_wheel(folder)))
    for notebook in notebooks:
        (folder / notebook.stem).mkdir()
        shutil.copy(notebook, folder / notebook.stem)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]])
