"""A matrix in words, and as a page that stands alone."""

import html
import io
import math

from wotlab.evaluate._matrix import Field, Matrix

QUANTILES = (0.75, 0.5, 0.25)  # shares of images that stand
HEAD = ("threat", "clean", *(f"{q:.0%} stand" for q in QUANTILES), "propagations", "seconds")
STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right}"
    "th:first-child{text-align:left}thead th{border-bottom:1px solid}img{max-width:100%}"
    ":root{color-scheme:light dark}img{background:#fff}"
)


def row(name: str, field: Field, unit: str) -> list[str]:
    """One threat: clean accuracy, the budgets that leave some shares, and what it cost."""
    ranked = field.radii.sort().values
    budgets = (float(ranked[math.ceil((1 - q) * len(ranked)) - 1]) for q in QUANTILES)
    words = (f"{b:.3g} {unit}" if math.isfinite(b) else "beyond" for b in budgets)
    return [
        name, f"{field.accuracy(0.0).value:.1%}", *words, f"{field.forward + field.backward:,}",
        f"{field.seconds:.0f}",
    ]  # fmt: skip


def doubts(fields: dict[str, Field]) -> list[str]:
    """What is doubted of a network's numbers, behind the threat's name."""
    return [f"{name}: {doubt}" for name, field in fields.items() for doubt in field.doubts]


def text(made: Matrix) -> str:
    """A table for each network, and doubts."""
    parts = []
    for network, fields in made.fields.items():
        rows = [list(HEAD), *(row(k, f, made.units[k]) for k, f in fields.items())]
        widths = [max(len(cells[k]) for cells in rows) for k in range(len(HEAD))]
        lines = [
            "  ".join(cell.ljust(w) if not k else cell.rjust(w)
                      for k, (cell, w) in enumerate(zip(cells, widths, strict=True)))
            for cells in rows
        ]  # fmt: skip
        lines += [f"  {doubt}" for doubt in doubts(fields)]
        parts.append("\n".join([network, *lines]))
    return "\n\n".join(parts)


def page(made: Matrix, told: str) -> str:
    """The same as HTML, with the curves of each threat."""
    body = f"<h1>Robustness</h1><p>{html.escape(told)}. A budget is what breaks all but a share of "
    body += "the images; the curves show it with 95 % intervals. They are upper bounds of what the "
    body += "network stands: a stronger attack may find less.</p>"
    for network, fields in made.fields.items():
        rows = (row(k, f, made.units[k]) for k, f in fields.items())
        head = "".join(f"<th>{cell}</th>" for cell in HEAD)
        lines = (
            "<tr>" + f"<th>{html.escape(cells[0])}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:]) + "</tr>"
            for cells in rows
        )  # fmt: skip
        body += f"<h2>{html.escape(network)}</h2><table><thead><tr>{head}</tr></thead><tbody>"
        body += "".join(lines) + "</tbody></table>"
        if found := doubts(fields):
            items = "".join(f"<li>{html.escape(doubt)}</li>" for doubt in found)
            body += f"<h3>Doubts</h3><ul>{items}</ul>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Robustness</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<body>{body}{curves(made)}</body></html>\n"
    )


def curves(made: Matrix) -> str:
    """Accuracy over the budget, a panel for each threat, as an image within the page."""
    from matplotlib.figure import Figure

    columns = min(3, len(made.units))
    lines = math.ceil(len(made.units) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, unit) in zip(panels, made.units.items(), strict=False):
        for network, fields in made.fields.items():
            field = fields[name]
            ends = sorted({0.0, *(r for r in field.radii.tolist() if math.isfinite(r))})
            shares = [field.accuracy(eps) for eps in ends]
            (line,) = axes.step(
                ends, [100 * s.value for s in shares], where="post", label=network
            )  # fmt: skip
            axes.fill_between(
                ends, [100 * s.low for s in shares], [100 * s.high for s in shares],
                step="post", alpha=0.2, color=line.get_color(), lw=0,
            )  # fmt: skip
        axes.set(title=name, xlabel=unit, ylim=(0, 101))
    for axes in panels[len(made.units) :]:
        axes.remove()
    panels[0].set_ylabel("accuracy, %")
    if len(made.fields) > 1:
        panels[0].legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]
