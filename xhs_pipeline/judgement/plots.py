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
INK, GRID, MODEL, OTHER = "#1f2933", "#d5dbe1", "#c8372d", ("#8795a1", "#4b6584", "#2d8a6e", "#b0893b")
MAX_POINTS = 400  # of one curve; more only makes the file larger


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and validation macro-F1 over steps as an SVG.

    `history` rows hold `step` and any of `loss` (training) and `eval_verdict_macro_f1` (0 to 1), as transformers' log history
    does; rows with neither are skipped. A non-finite value is marked in the title and not drawn.
    """
    return _svg(_loss_figure(history))


def loss_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes:
    """The same curve as a PNG, about 900 x 450 pixels, for places that show no SVG. All its text is ASCII."""
    figure = _loss_figure(history)
    with _style():
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

    with _style():
        figure = _figure(max(3.2, 0.52 * n + 1.5), max(2.6, 0.42 * n + 1.3))
        axes = figure.add_subplot()
        shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
        axes.set(xlim=(0, n), ylim=(n, 0), facecolor="#fbf4f2")
        shade = colormaps["Reds"]
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
                    colour = "white" if shares[i][j] > 0.55 else INK
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
    return _svg(figure)


def comparison_bars(values: Mapping[str, Mapping[str, float | None]], title: str = "") -> str:
    """Grouped bars as an SVG: `values[series][metric]` in 0..1; the first series (the model) is drawn in red.

    A missing value (None) leaves a gap with a dash. Raises ValueError when there is no series.
    """
    if not values:
        raise ValueError("a comparison needs at least one series")
    series = list(values)
    metrics = list(dict.fromkeys(metric for row in values.values() for metric in row))
    with _style():
        figure = _figure(6.4, max(2.2, 0.95 + len(metrics) * (0.16 + 0.17 * len(series))))
        axes = figure.add_subplot()
        height = 0.8 / len(series)
        for s, name in enumerate(series):
            colour = MODEL if s == 0 else OTHER[(s - 1) % len(OTHER)]
            numbers = [values[name].get(metric) for metric in metrics]
            places = [m + (s - (len(series) - 1) / 2) * height for m in range(len(metrics))]
            axes.barh(places, [v or 0 for v in numbers], height * 0.88, color=colour, label=name)
            for y, v in zip(places, numbers, strict=True):
                axes.text((v or 0) + 0.012, y, "–" if v is None else f"{v:.3f}", va="center", fontsize=8, color=INK)
        axes.set_yticks(range(len(metrics)), metrics)
        axes.set_ylim(len(metrics) - 0.5, -0.5)
        axes.set_xlim(0, 1.09)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside lower center", ncols=min(4, len(series)), frameon=False, fontsize=8.5)
        if title:
            axes.set_title(title)
    return _svg(figure)


def as_data_uri(picture: str | bytes) -> str:
    """A picture as a data URI for `<img src>` or markdown: SVG text, or PNG or JPEG bytes."""
    if isinstance(picture, str):
        kind, data = "svg+xml", picture.encode()
    else:
        kind, data = ("png" if picture.startswith(b"\x89PNG") else "jpeg"), picture
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _loss_figure(history: Sequence[Mapping[str, Any]]) -> "Figure":
    from matplotlib.lines import Line2D

    with _style():
        figure = _figure(6.8, 3.4)
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


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: no global list of figures, no display

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "xhs_pipeline",  # ids otherwise change from run to run
        "font.family": ["DejaVu Sans"],  # shipped with matplotlib, so layouts agree between machines
        "font.size": 9.5,
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


def _svg(figure: "Figure") -> str:
    with _style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML prologue it can also stand inside HTML
    svg = re.sub(r" ?<metadata>.*?</metadata>\n?", "", svg, count=1, flags=re.DOTALL)
    # one rule for the fonts instead of one copy of the list in every text element
    svg = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*;? ?", "", svg)
    svg = svg.replace("</style>", f" text {{font-family: {FONTS}}}</style>", 1)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    svg = re.sub(r">\n\s+<", ">\n<", svg)
    # coordinates only, never the text: a hundredth of a point is below what is seen
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d{2})\d+", r"\1", path[0]).replace(" \n", " "), svg)
