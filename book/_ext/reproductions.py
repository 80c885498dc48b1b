"""`reproductions`: what the papers print beside ours, from the records, as the page is built.

With `bars` how far each paper is, with `scatter` the picture of all per cents, with a paper's name
a section for each of its tables.
"""

import re
from collections import Counter
from functools import cache
from html import escape
from itertools import groupby

import overview
from docutils import nodes
from pages import anew, chapters, parse
from sphinx.util.docutils import SphinxDirective
from wotlab.experiments import reproductions as ours
from wotlab.experiments.reproductions import Reading, Row
from wotlab.experiments.runner import TITLES

PAGE = "book/reproductions"
CHAPTERS = {"hu": 2, "subramanyam": 3, "iwd": 5, "regniez": 6, "got": 7}
HEADS = "data", "network", "training", "kind", "metric", "attack"
TAILS = {  # what names a row, where its first column tells rows apart
    "transformation": ("attack", "transformation", "size"),
    "budget": ("budget",),
    "eps": ("eps",),
    "attack": ("attack",),
}
COLUMNS = (*HEADS, "transformation", "size", "budget", "eps")
TITLES_OF = {
    "hu": {
        "1": "Wong's robust networks, under Wong's attack and Hu's",
        "2": "Mean radii without a defense, and the time that they take",
        "3": "What longer steps and steepest ascent add",
        "4": "Accuracy on shifted, turned and blurred images",
        "5": "Hu's robust networks, under steps of four lengths",
        "6": "How far shifted, turned and blurred images are",
    },
    "subramanyam": {
        "1": "Three networks under his attack",
        "2": "Other attacks on a network without a defense",
        "3": "Five attacks on five networks",
        "4": "Eight attacks with and without his defense, Fashion-MNIST",
        "5": "Accuracy on shifted and turned images",
        "6": "How far those images are",
        "7": "The settings of the attacks",
    },
    "iwd": {
        "1": "What each attack breaks, ImageNet",
        "2": "What each attack breaks of two defenses, ten classes",
        "3": "Accuracy of defenses, ten classes",
    },
    "regniez": {
        "1": "Chain and PGD-40 on MNIST, architecture A",
        "2": "Chain and PGD-40 on CIFAR-10, ResNet-18",
        "3": "Table 1 again, without AutoAttack",
        "4": "Chain on MNIST, architecture B",
        "5": "Chain and PGD-40 on CIFAR-10, WideResNet-34-10",
    },
    "got": {
        "1": "GOT beside other defenses, MNIST",
        "2": "GOT beside other defenses, ResNet-18",
        "3": "GOT beside published defenses, WideResNet-34-10",
        "4": "Which layer is the latent",
        "5": "Which distances make the cost",
        "6": "PGD with growing eps, networks of table 1",
        "7": "PGD with growing eps, networks of table 3",
        "8": "PGD with growing eps, networks of table 2",
    },
}
SIGNS = {
    (ours.FULL, True): ("✓", "repeated"),
    (ours.FULL, False): ("✗", "not repeated"),
    (ours.REDUCED, True): ("(✓)", "reduced, and near"),
    (ours.REDUCED, False): ("(✗)", "reduced, and not near"),
}
Html = str


@cache
def rows(paper: str) -> list[Row]:
    return ours.reproductions(paper)


class Reproductions(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        which = self.arguments[0]
        every = {paper: rows(paper) for paper in CHAPTERS}
        if which == "bars":
            return [raw(overview.bars(every))]
        if which == "scatter":
            return [raw(overview.scatter(every, words))]
        tables = groupby(rows(which), lambda row: row.entry["table"])
        return [
            self.section(which, name, list(some)) for name, some in tables
        ]

    def section(
        self, paper: str, name: str, some: list[Row]
    ) -> nodes.section:
        about = TITLES_OF[paper].get(name)
        title = f"Table {name}. {about}" if about else "In the text"
        made = nodes.section(ids=[f"{paper}-table-{name}"])
        made += nodes.title("", title)
        parse(self, told(paper, some), made, PAGE)
        made += raw(table(some))
        return made


def raw(html: Html) -> nodes.raw:
    return nodes.raw("", html, format="html")


def told(paper: str, some: list[Row]) -> str:
    """How much there is of a table, and where: a paragraph of Markdown."""
    counts = Counter(row.state for row in some)
    of = [f"{counts[s]} {s}" for s in ours.STATES if counts[s]]
    whats = {r.record.what for row in some for r in row.readings}
    named = [
        path
        for path, text in chapters().items()
        if any(rf"\"{what}\"" in text for what in whats)
    ] or [p for p in chapters() if int(p.name[:2]) == CHAPTERS[paper]]
    links = ", ".join(f"[]({path.name})" for path in named)
    return f"{len(some)} entries: {', '.join(of)}. See {links}."


# A table


def table(some: list[Row]) -> Html:
    measured = [row for row in some if row.readings]
    groups: dict[tuple, str] = {}  # how it was measured: a letter each
    html = ""
    if measured:
        html += listed(measured, groups) + how(measured, groups)
    notes = {
        row.entry["note"]: None
        for row in some
        if row.entry["certain"] != "yes" and row.entry["value"] != "?"
    }
    if notes:
        html += folded(
            "Printed numbers with a question mark",
            "".join(f"<p>{escape(note)}.</p>" for note in notes),
        )
    rest = [row for row in some if not row.readings]
    for state in (ours.MISSING, ours.NOTHING):
        reasons: dict[tuple[str, str], list[Row]] = {}
        for row in rest:
            if row.state == state:
                where = row.why, row.command
                reasons.setdefault(where, []).append(row)
        for (why, command), left in reasons.items():
            said = f"<b>{len(left)} {state}.</b> {code(why)}"
            after = (
                f"<p>To measure: <code>{escape(command)}</code></p>"
                if command
                else ""
            )
            html += folded(said, after + listed(left, None))
    return html


def folded(summary: Html, inside: Html) -> Html:
    return (
        f'<details class="rep"><summary>{summary}</summary>'
        f"{inside}</details>"
    )


def code(text: str) -> Html:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def listed(some: list[Row], groups: dict[tuple, str] | None) -> Html:
    """Printed, and ours where there are `groups`; a line for what a group of rows shares."""
    head, tail, same = columns([row.entry for row in some])
    firsts = list(dict.fromkeys(over(row, head) for row in some))
    some = sorted(some, key=lambda row: firsts.index(over(row, head)))
    ends = "<th>ours, 95 % interval</th><th>repeated</th>"
    html = (
        '<table class="rep"><thead><tr>'
        f"<th>{escape(same)}</th><th>printed</th>"
        f"{ends if groups is not None else ''}</tr></thead><tbody>"
    )
    before = None
    for row in some:
        words = over(row, head)
        if words and words != before:
            wide = 4 if groups is not None else 2
            html += (
                f'<tr class="over"><th colspan="{wide}">{escape(words)}'
                "</th></tr>"
            )
        before = words
        label = ", ".join(named(row.entry, tail)) or "value"
        alike = [r for r in row.readings if not r.other]
        if len(alike) > 1:
            label += f", {variant(row, alike[0])}"
        html += f"<tr><th>{escape(label)}</th>"
        html += '<td class="printed">'
        html += f"{printed(row)}</td>"
        if groups is not None:
            html += measured_cells(row, groups)
        html += "</tr>"
    return html + "</tbody></table>"


def over(row: Row, head: list[str]) -> str:
    return ", ".join(named(row.entry, head, full=True))


def columns(entries: list[dict]) -> tuple[list[str], list[str], str]:
    """Columns that head a group of rows, that name a row, and what all rows share, in words."""
    known = [k for k in COLUMNS if k in entries[0]]
    vary = [k for k in known if len({e[k] for e in entries}) > 1]
    tails = (names for first, names in TAILS.items() if first in vary)
    tail = [k for k in next(tails, vary[-1:]) if k in vary]
    head = [k for k in vary if k not in tail]
    same = [k for k in known if k not in vary]
    return head, tail, ", ".join(named(entries[0], same, full=True))


def named(
    entry: dict[str, str], keys: list[str], full: bool = False
) -> list[str]:
    """The entries of some columns in words; in full, each word with its column."""
    words = []
    plain = ("network", "training", "attack")  # else clear by themselves
    for key in keys:
        value = entry.get(key, "")
        if key == "data":
            value = TITLES.get(value, value).rstrip(",")
        elif key == "metric" and ours.share(entry):
            value += ", %"
        elif key == "size" and words:
            value = f"{words.pop()} {value}"
        elif value and (
            key in ("budget", "eps") or (full and key in plain)
        ):
            value = f"{key} {value}"
        words += [value] if value else []
    return words


def words(entry: dict[str, str]) -> str:
    return ", ".join(named(entry, list(COLUMNS)))


def printed(row: Row) -> Html:
    value = {"-": "–"}.get(row.entry["value"], row.entry["value"])
    if row.entry["certain"] == "yes" or value in "–?":
        return escape(value)
    note = row.entry["note"] or row.entry["certain"]
    return f'{escape(value)}<abbr title="{escape(note)}">?</abbr>'


def measured_cells(row: Row, groups: dict[tuple, str]) -> Html:
    """Ours, its interval, the sign and the letter of how it was measured; other readings below."""
    sign, word = SIGNS[row.state, row.near]
    kind = "repeats" if row.near else "differs"
    html = ""
    for k, reading in enumerate(row.readings):
        mark = groups.setdefault(
            group(row, reading), chr(ord("a") + len(groups))
        )
        if k:
            said = reading.other or f"or {variant(row, reading)}"
            html += (
                f'</tr><tr class="also"><th>{escape(said)}</th><td></td>'
            )
        html += f"<td><b>{number(row, reading.value)}</b>"
        if reading.interval:
            low, high = (number(row, end) for end in reading.interval)
            html += f" <small>{low} to {high}</small>"
        shown = f'<span title="{word}">{sign}</span>' if not k else ""
        html += f'</td><td class="{kind}">{shown}<sup>{mark}</sup></td>'
    return html


def variant(row: Row, reading: Reading) -> str:
    """What tells a reading from others of the same entry."""
    shared = {*row.entry, "whole", "epochs"}
    keys = reading.record.keys.items()
    return ", ".join(f"{k} {v}" for k, v in keys if k not in shared)


def number(row: Row, value: float) -> str:
    """One decimal of a percentage, one more than printed of all else."""
    decimals = len(row.entry["value"].partition(".")[2]) + 1
    return f"{value:.{1 if ours.share(row.entry) else min(3, decimals)}f}"


def group(row: Row, reading: Reading) -> tuple:
    record = reading.record
    return (
        ours.images(record),
        ours.TEST[row.entry["data"]],
        ours.training(record).get("epochs"),
        ours.epochs(row.entry),
        record.seed,
        record.device,
        record.command,
        "; ".join(
            part
            for part in reading.less
            if not part.endswith(("test images", " epochs"))
        ),
    )


def how(some: list[Row], groups: dict[tuple, str]) -> Html:
    """How each group was measured: images, epochs, seed, device, command."""
    html = (
        '<table class="rep how"><thead><tr><th></th><th>test images</th>'
        "<th>epochs</th><th>seed</th><th>device</th></tr></thead><tbody>"
    )
    for (
        seen, there, epochs, planned, seed, device, command, less
    ), letter in groups.items():  # fmt: skip
        trained = "–" if planned is None else f"{epochs} of {planned}"
        html += (
            f'<tr class="over"><th>{letter}</th>'
            f"<td>{seen:,} of {there:,}</td><td>{trained}</td>"
            f"<td>{'–' if seed is None else seed}</td>"
            f"<td>{escape(device)}</td></tr><tr><td></td>"
            f'<td colspan="4">{escape(less + ". " if less else "")}'
            f"<code>{escape(command)}</code></td></tr>"
        )
    return folded(
        "How it was measured",
        html + "</tbody></table>",
    )


def setup(app):
    app.add_directive("reproductions", Reproductions)
    app.connect("env-get-outdated", anew(PAGE))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
