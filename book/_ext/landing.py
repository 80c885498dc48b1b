"""The landing page's networks and digits: written into the built site, none of it is committed.

Scripts, not data: a page that is opened as a file may not fetch.
"""

import json
from base64 import b64encode
from pathlib import Path

PAGE = "book/index"
FOLDER = "_static/landing"
DIGITS = (
    50,
    41,
    12,
    63,
    34,
    15,
    46,
    47,
    78,
    79,
)  # of mnist-5k's test split, one a class
NETWORKS = {  # a name of wotlab.models.shipped(), and what the page calls it
    "mnist-standard": "Trained as usual",
    "mnist-wasserstein-at": "Trained against moves",
}

# No picture flashes up where scripts run; it comes back where they fail.
LIVE = """
document.documentElement.classList.add("live");
addEventListener("load", () => document.querySelector(".break") || document.documentElement.classList.remove("live"));
"""


def weights(name: str) -> str:
    """All weights of a network, layer by layer, half precision in base64."""
    from wotlab import models

    state = models.load(name).state_dict()
    parts = [
        w.half().numpy().astype("<f2").tobytes() for w in state.values()
    ]
    return b64encode(b"".join(parts)).decode()


def digits() -> list[dict]:
    """The pictures that can be picked: place, label, 28x28 bytes in base64."""
    from wotlab import data

    images, labels = data.load("mnist-5k", "test").tensors(list(DIGITS))
    pixels = (images * 255).round().byte().numpy()
    return [
        {
            "index": i,
            "label": int(y),
            "pixels": b64encode(x.tobytes()).decode(),
        }
        for i, y, x in zip(DIGITS, labels, pixels, strict=True)
    ]


def write(folder: Path) -> None:
    """`data.js`, and a script for each network."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [
        {"name": name, "title": title} for name, title in NETWORKS.items()
    ]
    lines = [
        f"MovingMass.networks = {json.dumps(told)};",
        f"MovingMass.digits = {json.dumps(digits())};",
    ]
    (folder / "data.js").write_text("\n".join(lines) + "\n")
    for name in NETWORKS:
        script = f"MovingMass.weights[{json.dumps(name)}] = {json.dumps(weights(name))};\n"
        (folder / f"{name}.js").write_text(script)


def add_scripts(app, page, template, context, doctree):
    if page == PAGE and app.builder.format == "html":
        app.add_js_file(None, body=LIVE)
        for name in ("attack", "data", *list(NETWORKS)[:1], "page"):
            app.add_js_file(f"landing/{name}.js", loading_method="defer")


def finish(app, exception):
    if (
        exception is None
        and app.builder.format == "html"
        and PAGE in app.env.found_docs
    ):
        write(Path(app.outdir) / FOLDER)


def setup(app):
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
