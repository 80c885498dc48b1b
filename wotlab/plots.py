"""One look for every figure of the book."""

import base64
import html
import io
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from wotlab._base import checks
from wotlab.plans import TransportPlan

__all__ = [
    "MASS",
    "MOVED",
    "NEUTRAL",
    "SOURCE",
    "TARGET",
    "Slider",
    "Table",
    "show_images",
    "show_plan",
    "use_style",
]

#: Colours of the source, the target, of mass that moves, and of all else.
SOURCE, TARGET, MOVED, NEUTRAL = "#b2182b", "#2166ac", "#762a83", "#4d4d4d"
#: Colours of mass, from white to black.
MASS = LinearSegmentedColormap.from_list("mass", ["#ffffff", "#d9d9d9", "#1a1a1a"])
_GROUND = LinearSegmentedColormap.from_list("ground", ["#ffffff", "#dddddd", "#8a8a8a"])
_PLAIN = {"Date": None, "Creator": None}  # the same bytes each run


def use_style() -> None:
    """Set the book's style for all figures that follow, in a notebook as vector graphics (SVG).

    White background, which the site turns into the dark page's own, thin axes, fixed colours:
    `SOURCE` red, `TARGET` blue, `MOVED` violet, mass from white to black. A figure of 5.5 inches,
    the widest that a phone shows with text of 9 pixels. Figures of the same content are the same
    bytes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from wotlab import plots
    >>> with plt.rc_context():
    ...     plots.use_style()
    ...     plt.rcParams["font.size"]
    10.0
    """
    mpl.rcParams.update(
        {
            "axes.edgecolor": NEUTRAL,
            "axes.linewidth": 0.6,
            "axes.prop_cycle": cycler(
                color=[SOURCE, TARGET, MOVED, "#e08214", NEUTRAL],
                linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1))],
            ),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.figsize": (5.5, 2.4),  # no wider: 358 px of a phone leave text of 9 px
            "font.size": 10,
            "image.cmap": "gray_r",
            "legend.fontsize": "medium",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "savefig.facecolor": "white",
            "savefig.pad_inches": 0.04,  # a notebook trims figures to their content, and adds this
            "svg.hashsalt": "moving-mass",
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside Jupyter there is no inline figure to set
        return
    set_matplotlib_formats("svg", metadata=_PLAIN)


def show_images(
    pictures: Sequence[Tensor],
    titles: Sequence[str] = (),
    *,
    axes: Sequence[Axes] | None = None,
    vmax: float | None = 1,
) -> list[Axes]:
    """Draw images (C, H, W) or (H, W) in [0, 1] in one row; grey ones with mass in black.

    Parameters
    ----------
    pictures : sequence of Tensor
    titles : sequence of str, optional
    axes : sequence of Axes, optional
        Where to draw; a new figure by default.
    vmax : float or None
        Value drawn black; None scales each image to its own maximum.

    Returns
    -------
    list of Axes

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from wotlab import data, plots
    >>> x, y = data.load("digits").tensors(slice(3))
    >>> axes = plots.show_images(x, y.tolist(), axes=Figure().subplots(1, 3))
    >>> [ax.get_title() for ax in axes]
    ['1', '7', '4']
    """
    if axes is None:
        _, grid = plt.subplots(
            1, len(pictures), squeeze=False, figsize=(min(1.75 * len(pictures), 5.5), 2)
        )
        axes = grid[0]
    for ax, picture in zip(axes, pictures, strict=True):
        array = picture.detach().cpu().numpy()
        if array.ndim == 3:
            array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        ax.imshow(array, cmap=MASS, vmin=0, vmax=vmax, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    return list(axes)


def show_plan(
    plan: TransportPlan,
    ax: Axes,
    *,
    image: int = 0,
    channel: int = 0,
    least: float = 0.0,
    most: int = 100,
    zoom: bool = False,
) -> Axes:
    """Draw the moves of a plan as arrows over its source image, wider where more mass moves.

    A plan of a digit has hundreds of moves. Where more than `most` are left, those that start
    near one another in the same direction are drawn as one arrow, from the centre of mass of
    where they start to that of where they end. An arrow's width grows with the root of its mass.

    Parameters
    ----------
    plan : TransportPlan
    ax : Axes
    image, channel : int
        Which of the batch to draw.
    least : float
        Leave out moves of less mass than this share of the largest move.
    most : int
        Draw no more arrows than this.
    zoom : bool
        Cut away the empty border of the image.

    Raises
    ------
    ValueError
        For most < 1.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from wotlab import GroundCost, TransportPlan, data, ot, plots
    >>> x, _ = data.load("digits").tensors(slice(2))
    >>> matrix = ot.exact(x[:1].double(), x[1:].double(), GroundCost()).plan
    >>> plan = TransportPlan.from_matrix(matrix, 8, 8, GroundCost(None))
    >>> ax = plots.show_plan(plan, Figure().add_subplot(), most=20)
    >>> len(ax.collections[0].get_paths()) <= 20  # arrows
    True
    """
    checks.count("most", most)
    mass = plan.mass[image, channel].detach().cpu().double().numpy()
    _, h, w = mass.shape
    steps = plan.ground_cost.offsets(h, w).numpy()
    show_images([plan.source()[image, channel]], axes=[ax], vmax=None)
    ax.images[-1].set_cmap(_GROUND)
    moving = mass * (steps != 0).any(1)[:, None, None]
    k, *at = np.nonzero(moving > least * moving.max())
    start = np.stack(at, 1).astype(float)
    end, share = start + steps[k], moving[k, at[0], at[1]]
    if len(share):
        start, end, share = _grouped(start, end, share, most)
        width = np.sqrt(share / share.max()).clip(0.35)
        outlines = [_arrow(*arrow) for arrow in zip(start, end, width, strict=True)]
        for color, edge in (("white", 1.4), (MOVED, 0.0)):  # a light rim where they cross ink
            ax.add_collection(
                PolyCollection(
                    outlines, facecolors=color, edgecolors=color, linewidths=edge, zorder=2
                )
            )
    if zoom:
        lit = np.concatenate([np.argwhere(mass.sum(0) > 0.01 * mass.sum(0).max()), start, end])
        (top, left), (bottom, right) = lit.min(0) - 1.5, lit.max(0) + 1.5
        ax.set(xlim=(left, right), ylim=(bottom, top))
    return ax


Arrows = tuple[np.ndarray, np.ndarray, np.ndarray]  # where they start and end, and their mass


def _grouped(start: np.ndarray, end: np.ndarray, share: np.ndarray, most: int) -> Arrows:
    """At most `most` arrows for these moves: neighbours of one direction (of eight) as one.

    The blocks of pixels that count as neighbours grow until it is enough.
    """
    step = end - start
    octant = np.round(np.arctan2(step[:, 0], step[:, 1]) / (np.pi / 4)) % 8
    arrows, side = (start, end, share), 1
    while len(arrows[2]) > most:
        block = np.column_stack([start // side, octant])
        group = np.unique(block, axis=0, return_inverse=True)[1].reshape(-1)
        total = np.bincount(group, share)
        centres = [
            np.stack([np.bincount(group, share * place[:, n]) / total for n in (0, 1)], 1)
            for place in (start, end)
        ]
        arrows = centres[0], centres[1], total
        if side > start.max():  # one block holds the image: leave out the lightest
            heaviest = np.argsort(-total)[:most]
            arrows = centres[0][heaviest], centres[1][heaviest], total[heaviest]
        side += 1
    return arrows


def _arrow(start: np.ndarray, end: np.ndarray, width: float) -> np.ndarray:
    """The outline, (7, 2) in x and y, of an arrow in pixels; `width` is 1 for the widest."""
    step = (end - start)[::-1]
    length = np.hypot(*step)
    along = step / length
    across = np.array([-along[1], along[0]])
    head, wing, shaft = min(0.5 + 0.6 * width, 0.6 * length), 0.2 + 0.4 * width, 0.2 * width
    outline = [
        (0, 0.6 * shaft), (length - head, shaft), (length - head, wing), (length, 0),
        (length - head, -wing), (length - head, -shaft), (0, -0.6 * shaft),
    ]  # fmt: skip
    return np.array([start[::-1] + x * along + y * across for x, y in outline])


class Slider:
    """Figures under a slider that works in the static page, without a kernel.

    Parameters
    ----------
    frames : sequence of Figure
        One a position; they are closed once drawn.
    labels : sequence of str
        What the reader has set at each position, such as "reg = 0.5 pixels".
    name : str
        What the slider turns.
    alt : str
        What the frames show, for readers who do not see them; the label is added to each.
    start : int
        Position shown first, and the only one shown where scripts do not run.

    Raises
    ------
    ValueError
        For no frames, or another number of labels.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from wotlab import plots
    >>> frames, labels = [Figure(), Figure()], ["eps = 0.1", "eps = 0.2"]
    >>> plots.Slider(frames, labels, name="budget", alt="A digit at")
    Slider(budget: eps = 0.1, eps = 0.2)
    """

    def __init__(
        self,
        frames: Sequence[Figure],
        labels: Sequence[str],
        *,
        name: str,
        alt: str,
        start: int = 0,
    ):
        if not frames or len(frames) != len(labels):
            raise ValueError(
                f"labels must be one a frame, at least one; "
                f"got {len(labels)} for {len(frames)} frames"
            )
        self.labels, self.name, self.alt, self.start = list(labels), name, alt, start
        self.frames = [_svg(figure) for figure in frames]

    def _repr_html_(self) -> str:
        pictures = "".join(
            f'<img src="data:image/svg+xml;base64,{frame}" '
            f'alt="{html.escape(f"{self.alt} {label}")}"{"" if k == self.start else " hidden"} '
            f'data-label="{html.escape(label)}" style="max-width:100%">'
            for k, (frame, label) in enumerate(zip(self.frames, self.labels, strict=True))
        )
        move = (
            "const box=this.closest('.wotlab-slider');"
            "box.querySelectorAll('img').forEach((p,k)=>{p.hidden=k!=this.value;"
            "if(!p.hidden)box.querySelector('output').textContent=p.dataset.label})"
        )
        return (
            f'<div class="wotlab-slider"><label>{html.escape(self.name)} '
            f'<input type="range" min="0" max="{len(self.frames) - 1}" value="{self.start}" '
            f'oninput="{move}" style="width:min(20rem,60%);vertical-align:middle"></label> '
            f"<output>{html.escape(self.labels[self.start])}</output><div>{pictures}</div></div>"
        )

    def __repr__(self) -> str:
        return f"Slider({self.name}: {', '.join(self.labels)})"


class Table:
    """Rows of text under their heads, as a table of the page; a narrow screen scrolls it alone.

    Parameters
    ----------
    heads : sequence
    rows : sequence of sequences
        As many cells each. What is no text is shown as `str` has it.
    folded : str
        What stands in place of the table until a reader opens it; by default it is open.

    Raises
    ------
    ValueError
        For a row of another length than the heads.

    Examples
    --------
    >>> from wotlab import plots
    >>> plots.Table(["attack", "accuracy, %"], [["none", 98.5], ["pgd", "3.0"]])
    attack | accuracy, %
    none | 98.5
    pgd | 3.0
    """

    def __init__(
        self, heads: Sequence[object], rows: Sequence[Sequence[object]], *, folded: str = ""
    ):
        self.heads, *self.rows = [[str(cell) for cell in line] for line in (heads, *rows)]
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"rows must have {len(self.heads)} cells, as heads; got {row}")
        self.folded = folded

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        made = (
            '<div style="overflow-x:auto"><table class="dataframe">'
            f"<thead>{line(self.heads, 'th')}</thead><tbody>{body}</tbody></table></div>"
        )
        if not self.folded:
            return made
        return f"<details><summary>{html.escape(self.folded)}</summary>{made}</details>"

    def __repr__(self) -> str:
        return "\n".join(" | ".join(line) for line in (self.heads, *self.rows))


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=_PLAIN)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
