"""The report's own pictures, each narrow enough for a phone at full size, as SVG text; the same numbers give the same bytes.

No figures are computed here. What is better, worse or whose differs in shape as well as in colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xhs_pipeline.judgement.figures import Figure
from xhs_pipeline.judgement.plots import CHAMPION, GRID, INK, MODEL, OTHER, new_figure, style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

WIDTH = 3.5  # inches: 336 CSS pixels, what a 390 pixel wide screen leaves
SMALL = 1.72  # two beside each other there
TEXT = 9  # points: 12 CSS pixels
ROW = 0.24  # inches
SOFT = "#5c6b78"
NAME = 1.6  # inches at most for the names of rows; longer ones are cut


@dataclass(frozen=True)
class Look:
    """How something is drawn: colour, marker, whether the marker is filled, and how its line is dashed."""

    colour: str
    marker: str
    filled: bool = True
    dash: Any = "-"


BETTER, WORSE, UNCLEAR = Look(MODEL, "o"), Look(CHAMPION, "X"), Look(SOFT, "o", filled=False)
SERIES = (
    Look(MODEL, "o"),
    Look(CHAMPION, "s", dash="--"),
    Look(OTHER[1], "D", dash="-."),
    Look(OTHER[2], "^", dash=":"),
    Look(OTHER[3], "v", dash=(0, (1, 2))),
)
Points = Sequence[tuple[float, float]]


def intervals(
    rows: Sequence[tuple[str, Sequence[tuple[Look, Figure]]]],
    label: str,
    scale: float = 1.0,
    limits: tuple[float, float] | None = None,
    lines: Sequence[tuple[float, str]] = (),
    legend: Mapping[str, Look] | None = None,
    bars: bool = False,
) -> str:
    """Rows of values with their 95% intervals, from top to bottom: a forest plot, or several models side by side.

    `rows` holds (name, marks); a mark without a value is left out. Values are drawn times `scale`, as are `limits` (of the axis)
    and `lines` (value, what it is), which stand upright. `label` names the axis; `bars` reach from 0 to each value. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("a picture of intervals needs at least one row")
    legend = legend or {}
    rows = [(_cut(name), marks) for name, marks in rows]
    most = max(len(marks) for _, marks in rows)
    step = max(ROW, 0.13 * most + 0.1)
    with style():
        named = [text for _, text in lines if text]
        top, bottom = 0.08 + 0.17 * len(named), 0.48 + 0.19 * -(-len(legend) // 2)
        height = top + bottom + step * len(rows)
        picture = new_figure(WIDTH, height)
        axes = _placed(picture, max(_width(name) for name, _ in rows) + 0.14, bottom, 0.16, top)
        for place, (_, marks) in enumerate(rows):
            for i, (look, figure) in enumerate(marks):
                _mark(axes, place + (i - (len(marks) - 1) / 2) * 0.7 / most, look, figure, scale, bars)
        for i, (value, text) in enumerate(lines):
            axes.axvline(value * scale, color=INK, linewidth=0.9, linestyle=("-", "--", ":")[i % 3])
            if text:
                y = 1 + (0.04 + 0.16 * named.index(text)) / (step * len(rows))
                axes.text(
                    value * scale,
                    y,
                    text,
                    transform=axes.get_xaxis_transform(),
                    fontsize=TEXT,
                    ha="center",
                    va="bottom",
                )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if limits:
            axes.set_xlim(limits[0] * scale, limits[1] * scale)
        axes.locator_params(axis="x", nbins=5 if max(map(abs, axes.get_xlim())) < 1000 else 3)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        _plain(axes, "left")
        axes.set_xlabel(label)
        _legend(picture, legend)
    return svg(picture)


def curves(
    lines: Sequence[tuple[str, Look, Points]],
    labels: tuple[str, str],
    title: str = "",
    size: tuple[float, float] = (WIDTH, 2.5),
    limits: tuple[float, float] = (1.0, 1.0),
    band: Sequence[tuple[float, float, float]] = (),
    logarithmic: bool = False,
    dots: bool = False,
) -> str:
    """Lines over shares from 0 to the two `limits`, axes in percent: (name, look, points); a nameless line is not in the legend.

    `labels` name the axes. `band` holds (x, low, high) of an interval around the first line. `logarithmic` is about x, whose axis
    then begins at its smallest point; `dots` marks every point.
    """
    small = size[0] < WIDTH
    with style():
        picture = new_figure(*size)
        named = {name: look for name, look, _ in lines if name} if not small else {}
        bottom = 0.26 if small else 0.48 + 0.19 * -(-len(named) // 2)
        axes = _placed(picture, 0.36 if small else 0.55, bottom, 0.14, 0.26 if title else 0.1)
        if band:
            x, low, high = zip(*[[100 * v for v in point] for point in band], strict=True)
            axes.fill_between(x, low, high, color=lines[0][1].colour, alpha=0.16, linewidth=0)
        for _, look, points in lines:
            shape: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.5}
            if dots or len(points) == 1:
                shape |= {"marker": look.marker, "markersize": 4}
            axes.plot([100 * x for x, _ in points], [100 * y for _, y in points], **shape)
        axes.set_ylim(0, 102 * limits[1])
        if logarithmic:
            axes.set_xscale("log")
            ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50) if t <= 100 * limits[0]]
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        else:
            axes.set_xlim(0, 102 * limits[0])
        if small:
            axes.set_xticks([0, 50, 100])
            axes.set_yticks([0, 50, 100])
        else:
            axes.set_xlabel(labels[0])
            axes.set_ylabel(labels[1])
        axes.grid(color=GRID, linewidth=0.6)
        _plain(axes)
        if title:
            axes.set_title(title, fontsize=TEXT + 0.5, pad=5)
        _legend(picture, named)
    return svg(picture)


def reliability(bins: Sequence[tuple[float, Figure]], labels: tuple[str, str]) -> str:
    """What was promised against what happened, in percent: (mean confidence, share of hits) of each bin, and the diagonal."""
    with style():
        picture = new_figure(WIDTH, 2.9)
        axes = _placed(picture, 0.55, 0.48, 0.14, 0.1)
        axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle="--")
        for confidence, figure in bins:
            value = figure["value"]
            if value is not None:
                low, high = (value if end is None else end for end in (figure["low"], figure["high"]))
                axes.vlines(100 * confidence, 100 * low, 100 * high, color=MODEL, linewidth=1.3)
                axes.plot([100 * confidence], [100 * value], color=MODEL, marker="o", markersize=5)
        axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel=labels[0], ylabel=labels[1])
        axes.grid(color=GRID, linewidth=0.6)
        _plain(axes)
    return svg(picture)


def _mark(axes: "Axes", y: float, look: Look, figure: Figure, scale: float, bar: bool) -> None:
    if figure["value"] is None:
        return
    if bar:
        axes.barh(y, figure["value"] * scale, 0.62, color=look.colour, alpha=0.35)
    if figure["low"] is not None and figure["high"] is not None:
        axes.hlines(y, figure["low"] * scale, figure["high"] * scale, color=look.colour, linewidth=1.6)
    inside = look.colour if look.filled else "white"
    axes.plot(
        [figure["value"] * scale], [y], color=look.colour, marker=look.marker, markersize=5.5, markerfacecolor=inside
    )


def _placed(picture: "Picture", left: float, bottom: float, right: float, top: float) -> "Axes":
    """Axes with these margins in inches: Chinese is drawn wider than matplotlib's own font measures, so it cannot lay it out."""
    picture.set_layout_engine("none")
    width, height = picture.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = picture.add_axes(box)
    axes.tick_params(length=0, labelsize=TEXT)
    axes.xaxis.label.set_fontsize(TEXT)
    axes.yaxis.label.set_fontsize(TEXT)
    return axes


def _width(text: str) -> float:
    """About how wide `text` is drawn, in inches: a Chinese character is as wide as it is high."""
    return sum(1.0 if ord(c) > 0x2E7F else 0.6 for c in text) * TEXT / 72


def _cut(text: str) -> str:
    while _width(text) > NAME:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _plain(axes: "Axes", *more: str) -> None:
    for side in ("top", "right", *more):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)


def _legend(picture: "Picture", named: Mapping[str, Look]) -> None:
    from matplotlib.lines import Line2D

    if not named:
        return
    handles = [
        Line2D([], [], color=k.colour, marker=k.marker, linestyle=k.dash, markersize=5, linewidth=1.5,
               markerfacecolor=k.colour if k.filled else "white")
        for k in named.values()
    ]  # fmt: skip
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.1}
    # Chinese is wider than what is measured: room between the columns
    picture.legend(
        handles, list(named), ncols=min(2, len(named)), frameon=False, fontsize=TEXT, columnspacing=4, **place
    )
