"""The repository's address: found in one place, used by the site's buttons and by `colab.py`.

It comes from the forge that runs the build or from the git remote. A clone of a local path has
none; then the site goes without the buttons that need it.
"""

import os
import re
import subprocess

HOST = r"(?:[^@/\s]+@)?(?P<host>[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*)"
PATH = r"(?P<path>[\w.~-]+(?:/[\w.~-]+)+)/?"
REMOTES = (
    re.compile(
        rf"(?:https|ssh|git)://{HOST}(?::\d+)?/{PATH}", re.IGNORECASE
    ),
    re.compile(rf"{HOST}:{PATH}", re.IGNORECASE),  # git@host:owner/name
)
COLAB = "https://colab.research.google.com"
COLAB_BRANCH = "colab"  # of notebooks that install from this repository; `colab.py` makes it
INSTALL = re.compile(r"^(\s*%pip install --quiet )\S+$", re.MULTILINE)


def address(environment=os.environ, folder=".") -> str | None:
    """Where the repository lives, as https://host/owner/name, or None where that is not known."""
    server = environment.get("GITHUB_SERVER_URL")
    name = environment.get("GITHUB_REPOSITORY")
    if server and name:
        return normalise(f"{server}/{name}")
    names = git(folder, "remote").split()
    if not names:
        return None
    return normalise(
        git(
            folder,
            "remote",
            "get-url",
            "origin" if "origin" in names else names[0],
        )
    )


def normalise(remote: str) -> str | None:
    """The https address of a git remote, without credentials; None for a local path."""
    matches = (pattern.fullmatch(remote.strip()) for pattern in REMOTES)
    found = next(filter(None, matches), None)
    return (
        f"https://{found['host'].lower()}/{found['path'].removesuffix('.git')}"
        if found
        else None
    )


def git(folder, *arguments) -> str:
    """What git prints, or nothing where it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def theme_options(url: str | None) -> dict:
    """What sphinx-book-theme needs to draw the repository, issue and Colab buttons."""
    if url is None:
        return {}
    host = url.split("/")[2]
    provider = next(
        (name for name in ("gitlab", "bitbucket") if name in host),
        "github",
    )
    options = {
        "repository_url": url,
        "repository_branch": COLAB_BRANCH,  # the Colab button's; the others need none
        "repository_provider": provider,
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": provider != "bitbucket",
    }
    if (
        host == "github.com"
    ):  # the one forge that Colab opens notebooks from
        options["launch_buttons"] = {"colab_url": COLAB}
    return options


def fill_install_line(source: str, url: str) -> str:
    """A cell's source with `%pip install --quiet ...` pointing at the repository."""
    return INSTALL.sub(rf"\g<1>git+{url}", source)


def configure(app, config):
    own = theme_options(address(folder=app.srcdir))
    # jupyter-book fills these with its own repository where _config.yml says nothing
    foreign = (
        "repository_url",
        "repository_branch",
        "path_to_docs",
        "launch_buttons",
    )
    kept = {
        k: v
        for k, v in config.html_theme_options.items()
        if k not in foreign
    }
    config.html_theme_options = kept | own


def setup(app):
    app.connect("config-inited", configure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
