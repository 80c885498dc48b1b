"""Prints the oldest versions that pyproject.toml allows of what the package needs, for pip."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print(*(need.replace(">=", "==") for need in project["dependencies"]), sep="\n")
