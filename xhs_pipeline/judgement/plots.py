"""Pictures for the report and for Dagster's UI, as small SVG strings; the same numbers give the same bytes.

No figures are computed here. Text stays text in the SVG, so Chinese labels are drawn with the reader's own fonts.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Measured with matplotlib's own font and then drawn with the first of these that the reader has.
FONTS = "'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', 'Source Han Sans SC', 'WenQuanYi Micro Hei', sans-serif"
# Okabe and Ito's colours, which the colour-blind can tell apart (Wong 2011, Nature Methods 8, 441); shapes differ as well.
INK, GRID, MODEL, CHAMPION = "#1f2933", "#d5dbe1", "#0072b2", "#d55e00"
OTHER = (CHAMPION, "#8795a1", "#009e73", "#cc79a7")
MAX_POINTS = 400  # of one curve; more only makes the file larger


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and validation macro-F1 over steps as an SVG.

    `history` rows hold `step` and any of `loss` (training) and `eval_verdict_macro_f1` (0 to 1), as transformers' log history
    does; rows with neither are skipped. A non-finite value is marked in the title and not drawn.
    """
    return svg(_loss_figure(history))


def loss_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes:
    """The same curve as a PNG, about 900 x 450 pixels, for places that show no SVG. All its text is ASCII."""
    figure = _loss_figure(history)
    with style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str = "") -> str:
    """Counts as an SVG: rows true, columns answered, shaded by the share of the row. Empty cells stay empty.

    Raises ValueError when the matrix is not square or does not fit the labels.
    """
    n = len(labels)
    if len(matrix) != n or any(len(row) != n for row in matrix):
        raise ValueError(f"matrix of {len(matrix)} rows for {n} labels, expected {n} x {n}")
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    with style():
        figure = new_figure(max(3.2, 0.46 * n + 1.3), max(2.6, 0.38 * n + 1.2))
        axes = figure.add_subplot()
        shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
        axes.set(xlim=(0, n), ylim=(n, 0), facecolor="#f4f6f9")
        shade = colormaps["Blues"]
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                if count:  # empty cells are the background: a rectangle for each would triple the file
                    look: dict[str, Any] = {
                        "facecolor": shade(shares[i][j]),
                        "edgecolor": "white",
                        "linewidth": 1,
                        "clip_on": False,
                    }
                    axes.add_patch(Rectangle((j, i), 1, 1, **look))
                    colour = "white" if shares[i][j] > 0.6 else INK
                    axes.text(j + 0.5, i + 0.5, str(count), ha="center", va="center", fontsize=8.5, color=colour)
        ticks = [i + 0.5 for i in range(n)]
        # level labels of four Chinese characters would collide from six columns on
        slant: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if n > 5 else {}
        axes.set_xticks(ticks, list(labels), **slant)
        axes.set_yticks(ticks, list(labels))
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("模型的回答", labelpad=6)
        axes.xaxis.set_label_position("bottom")
        axes.set_ylabel("真实标签")
        if title:
            axes.set_title(title, pad=10)
    return svg(figure)


def as_data_uri(picture: str | bytes) -> str:
    """A picture as a data URI for `<img src>` or markdown: SVG text, or PNG or JPEG bytes."""
    if isinstance(picture, str):
        kind, data = "svg+xml", picture.encode()
    else:
        kind, data = ("png" if picture.startswith(b"\x89PNG") else "jpeg"), picture
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _loss_figure(history: Sequence[Mapping[str, Any]]) -> "Figure":
    from matplotlib.lines import Line2D

    with style():
        figure = new_figure(6.8, 3.4)
        axes = figure.add_subplot()
        right = axes.twinx()
        broken = 0
        for key, name, colour, marker, plot in (
            ("loss", "training loss", OTHER[0], None, axes),
            ("eval_verdict_macro_f1", "validation macro-F1 of the verdict (right)", MODEL, "o", right),
        ):
            points = [(float(r["step"]), float(r[key])) for r in history if r.get(key) is not None]
            finite = [p for p in points if math.isfinite(p[1])]
            broken += len(points) - len(finite)
            if finite:
                x, y = zip(*_thinned(finite), strict=True)
                marker = marker or ("o" if len(finite) == 1 else None)  # a line through one point is invisible
                (line,) = plot.plot(x, y, color=colour, label=name, marker=marker, markersize=3.5, linewidth=1.4)
                if plot is right:
                    axes.add_line(Line2D([], [], color=line.get_color(), marker=marker, markersize=3.5, label=name))
        right.set_ylim(0, 1)
        right.spines["top"].set_visible(False)
        drawn = axes.get_legend_handles_labels()[1]
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if drawn:
            axes.legend(frameon=False)
            axes.set_ylim(bottom=0)
        title = "loss" if drawn else "no loss was recorded"
        axes.set_title(title + (f" ({broken} non-finite values left out)" if broken else ""))
    return figure


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS of the points, evenly spaced, the last one always kept."""
    step = math.ceil(len(points) / MAX_POINTS)
    kept = points[::step]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this many inches."""
    from matplotlib.figure import Figure  # not pyplot: no global list of figures, no display

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def style() -> Iterator[None]:
    """Settings that every picture of this project is drawn with."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "xhs_pipeline",  # ids otherwise change from run to run
        "font.family": ["DejaVu Sans"],  # shipped with matplotlib, so layouts agree between machines
        "font.size": 9.5,
        "text.parse_math": False,  # a name with two dollar signs is a name
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": 10.5,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # expected: DejaVu cannot measure Chinese, the reader's fonts draw it
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        yield


def svg(figure: "Figure") -> str:
    """The figure as SVG text that starts with <svg; the same figure gives the same bytes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with style():
        buffer = io.StringIO()
        # not savefig, which draws everything twice
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML prologue it can also stand inside HTML
    text = re.sub(r" ?<metadata>.*?</metadata>\n?", "", text, count=1, flags=re.DOTALL)
    # one rule for the fonts instead of one copy of the list in every text element
    text = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*;? ?", "", text)
    text = text.replace("</style>", f" text {{font-family: {FONTS}}}</style>", 1)
    text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
    text = re.sub(r">\n\s+<", ">\n<", text)
    # coordinates only, never the text: a hundredth of a point is below what is seen
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d{2})\d+", r"\1", path[0]).replace(" \n", " "), text)
