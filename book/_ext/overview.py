"""All papers at a glance, for the page of reproductions: a bar each, and one scatter."""

from collections import Counter
from collections.abc import Callable
from html import escape

from wotlab.experiments import reproductions as ours
from wotlab.experiments.reproductions import Entry, Row
from wotlab.experiments.runner import PAPERS

Html = str
Rows = dict[str, list[Row]]  # by paper
APART = (
    "paper",
    "table",
    "value",
    "certain",
    "note",
)  # what a point's words leave out


def bars(rows: Rows) -> Html:
    """How many entries of each paper are full, reduced, not run; and how many came out the same."""
    html = (
        '<table class="rep rep-bars"><thead><tr><th></th>'
        + "".join(f'<th><i class="s{k}"></i>{s}</th>' for k, s in enumerate(ours.STATES))
        + "<th>all</th></tr></thead><tbody>"
    )  # fmt: skip
    total: Counter = Counter()
    for paper, some in rows.items():
        counts = Counter(row.state for row in some)
        total += counts
        link = f'<a class="reference internal" href="#{paper}">'
        html += bar(f"{link}{escape(PAPERS[paper])}</a>", counts)
    html += bar("All five", total) + "</tbody></table>"
    every = [row for some in rows.values() for row in some]
    near = Counter(row.state for row in every if row.near)
    numbers = sum(row.entry["value"] not in "-?" for row in every)
    return (
        f"<p>The tables of the five papers have {len(every)} entries, of "
        f"which {numbers} are numbers. {total[ours.FULL]} of them were "
        "measured in full, on all images and with the papers' networks, and "
        f"{near[ours.FULL]} of these came out the same. "
        f"{total[ours.REDUCED]} were measured with less of something, and "
        f"{near[ours.REDUCED]} of these came out near. "
        f"{total[ours.MISSING]} were not run.</p>{html}"
    )


def bar(title: Html, counts: Counter) -> Html:
    cells = "".join(f"<td>{counts[s]}</td>" for s in ours.STATES)
    parts = "".join(
        f'<i class="s{k}" style="flex-grow:{counts[s]}"></i>'
        for k, s in enumerate(ours.STATES)
        if counts[s]
    )
    wide = len(ours.STATES) + 2
    return (
        f"<tr><th>{title}</th>{cells}<td>{counts.total()}</td></tr>"
        f'<tr class="bar"><td colspan="{wide}">'
        f'<div aria-hidden="true">{parts}</div></td></tr>'
    )


def scatter(rows: Rows, words: Callable[[Entry], str]) -> Html:
    """Printed against measured, in per cent: a disk is full, a ring reduced.

    `words` names an entry.
    """
    points, seen = "", Counter()
    for paper, some in rows.items():
        for row in some:
            if not row.readings or not ours.share(row.entry):
                continue
            seen[paper] += 1
            x, y = float(row.entry["value"]), row.readings[0].value
            told = (
                f"{PAPERS[paper]}, table {row.entry['table']}: "
                f"{words(row.entry)}: {x:g} printed, {y:.1f} ours"
            )
            points += (
                f'<circle class="{paper} {row.state}" cx="{x:g}" '
                f'cy="{100 - y:.2f}" r="1.1"><title>{escape(told)}'
                "</title></circle>"
            )
    ticks = "".join(
        f'<path d="M{t} 100v1.5M0 {100 - t}h-1.5"/>'
        f'<text x="{t}" y="106">{t}</text>'
        f'<text x="-2.5" y="{101.3 - t}" class="end">{t}</text>'
        for t in range(0, 101, 20)
    )
    legend = ", ".join(
        f'<span class="{paper}">●</span> {escape(PAPERS[paper])} ({n})'
        for paper, n in seen.items()
    )
    alt = f"Scatter of {seen.total()} printed percentages against ours, with the diagonal."
    return (
        '<figure class="rep-scatter"><svg viewBox="-13 -3 117 116" role="img" '
        f'aria-label="{alt}"><path class="band" d="M0 98L98 0H100V2L2 100H0Z"/>'
        '<path class="frame" d="M0 0V100H100"/><path d="M0 100L100 0"/>'
        f"{ticks}{points}"
        '<text x="50" y="112">printed, %</text>'
        '<text transform="translate(-10.5 50)rotate(-90)">ours, %</text></svg>'
        f"<figcaption><p>{seen.total()} percentages that we have measured, "
        f"against those that the papers print: {legend}. A disk was measured "
        "in full, a ring with less of something. On the line both agree; the "
        "band reaches two points to either side.</p></figcaption></figure>"
    )
