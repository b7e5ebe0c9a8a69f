"""Plots: PNG files, and SVG in a page, where they take its colours, dark mode included.

matplotlib takes long to import: programs import this module only when they draw.
"""

import functools
import html
import io
import re
import warnings
from typing import Any, Callable, Dict, List, Sequence, Tuple

from common.model import float16
from common.results.texts import Say

import matplotlib
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.1  # inches of an SVG; 330 to 460 pixels wide it is legible on a phone too
PNG_WIDTH, DPI = 9.6, 100  # inches, pixels an inch
# One palette: report.html has it as well, --ink and so on, and there each colour follows the page.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6673", "#dfe3e8", "#ffffff"
FIRST, SECOND = "#1f6cb0", "#d9731a"
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "card", FIRST: "first", SECOND: "second"}
STYLE: Dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "hatch.color": PAPER,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
    "axes.formatter.useoffset": False,
}
ON_PAPER: Dict[Any, Any] = {"font.size": 10, "legend.fontsize": 10, "savefig.facecolor": PAPER}


# ---- PNG files -----------------------------------------------------------------------------------


def png(draw: Callable[..., None], height: float, *data: Any) -> bytes:
    """A PNG file of what draw(figure, *data) draws, 960 pixels wide.

    height: in inches of 100 pixels.
    """
    image = io.BytesIO()
    with matplotlib.rc_context({**STYLE, **ON_PAPER}):
        figure = Figure(figsize=(PNG_WIDTH, height), dpi=DPI)
        draw(figure, *data)
        figure.savefig(image, format="png")
    return image.getvalue()


def plain(text: str, most: int) -> str:
    """Text that stays as it is in a plot, where $ begins a formula."""
    return text[:most].replace("$", r"\$")


def speed_png(report: Dict[str, Any]) -> bytes:
    """Throughput (bars, left axis) and latency (lines, right axis) over the batch sizes.

    report: perf.json's content.
    """
    return png(draw_speed, 6.0, report)


def draw_speed(figure: Figure, report: Dict[str, Any]) -> None:
    rows = report["rows"]
    places = list(range(len(rows)))
    left = figure.add_subplot()
    right = left.twinx()
    right.grid(False)
    speeds = [row["throughput"] for row in rows]
    left.bar(places, speeds, width=0.6, color=FIRST, label="throughput")
    marks = [
        (row["reference"], place - 0.36, place + 0.36)
        for place, row in zip(places, rows)
        if "reference" in row
    ]
    if marks:
        left.hlines(*zip(*marks), color=INK, linewidth=3, label="published throughput")
    lines = ("latency_mean", "o-", "mean"), ("latency_p99", "s--", "99th percentile")
    for key, style, label in lines:
        right.plot(
            places,
            [row[key] for row in rows],
            style,
            color=SECOND,
            markeredgecolor=PAPER,
            label=f"latency, {label}",
        )
    names = [
        f"{row['batch_size']}\n{row['throughput']:.1f} images/s\n{row['latency_mean']:.2f} ms"
        for row in rows
    ]
    left.set(xlabel="batch size", xlim=(-0.75, len(rows) - 0.25))  # one bar does not fill the axes
    left.set_xticks(places)
    left.set_xticklabels(names, fontsize=min(10, 56 / len(rows)))
    left.set_ylabel("throughput (images/s)", color=FIRST)
    right.set_ylabel("latency of a batch (ms)", color=SECOND)
    right.set_ylim(0, 1.08 * max(row["latency_p99"] for row in rows))
    title = "Pure inference"
    if report["variant"]:
        title = f"{report['variant']}, {report['img_size']} px"
    figure.suptitle(plain(f"{title} on {report['chip']}", 100), fontsize=12)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.95), ncol=4)
    figure.tight_layout(rect=(0, 0, 1, 0.93))


def forecast_png(report: Dict[str, Any]) -> bytes:
    """Over the operators in order: the largest value with float16's limit, and what is lost so far.

    report: forecast.json's content.
    """
    return png(draw_forecast, 7.2, report)


def draw_forecast(figure: Figure, report: Dict[str, Any]) -> None:
    rows = report["operators"]
    places = range(1, len(rows) + 1)
    losses = [max(1 - row["cosine"], 1e-9) for row in rows]
    upper, lower = figure.subplots(2, 1, sharex=True)
    largest = [max(row["largest"], 1e-6) for row in rows]
    upper.semilogy(places, largest, color=FIRST, marker=".", markersize=3)
    upper.axhline(float16.LARGEST, color=INK, linestyle="--", linewidth=1)
    upper.set_ylabel("largest value; dashed: 65,504", color=FIRST)
    lower.semilogy(places, losses, color=SECOND, marker=".", markersize=3)
    lower.set(xlabel="operator, in the order in which they run")
    lower.set_ylabel("1 − cosine with float32", color=SECOND)
    marked = {*report["overflow"][:3], *report["worst"][:3]}
    for place, row, loss in zip(places, rows, losses):
        if row["name"] in marked:
            lower.annotate(plain(row["name"], 40), (place, loss), fontsize=7, rotation=30)
    figure.suptitle(
        f"float16 against float32, {report['images']} images: cosine of the logits "
        f"{report['cosine']['min']:.6f} at least",
        fontsize=12,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.96))


def ranking_png(report: Dict[str, Any]) -> bytes:
    """A bar for each combination with its images/s, latency and cosine; grey: refused.

    report: tune.json's content.
    """
    rows = [row for row in report["rows"] if row["throughput"]][::-1]
    return png(draw_ranking, 1.5 + 0.4 * len(rows), rows)


def draw_ranking(figure: Figure, rows: List[Dict[str, Any]]) -> None:
    axes = figure.add_subplot()
    speeds = [row["throughput"] for row in rows]
    colours = [MUTED if row["refused"] else FIRST for row in rows]
    axes.barh([row["name"] for row in rows], speeds, color=colours)
    for place, row in enumerate(rows):
        figures = f" {row['throughput']:.0f}, {row['latency']:.2f} ms, cosine {row['cosine']:.5f}"
        axes.text(row["throughput"], place, figures, va="center", fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set(
        xlabel="images/s at the best batch size that was tried; grey: refused",
        xlim=(0, 1.45 * max(speeds, default=1)),
    )
    figure.tight_layout()


# ---- SVG in a page -------------------------------------------------------------------------------


def svg(figure: Figure, words: str) -> str:
    """The figure as an <svg> element whose alternative text is `words`, plain text of ours."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = stream.getvalue()[stream.getvalue().index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    # figure_1, axes_1, …: the same in every plot
    text = re.sub(r' id="[a-z]+[a-z0-9.]*_\d+"', "", text)
    text = re.sub(r"font: [^;\"]*?([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)  # a hundredth of a pixel is enough
    for colour, word in NAMES.items():
        text = text.replace(colour, f"var(--{word})")
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text))
    head = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    return (
        f'<svg class="plot" role="img" aria-label="{words}" {head.group(0) if head else ""} '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}'.strip()
    )


def plot(key: str, height: float = HEIGHT) -> Callable[[Callable[..., None]], Callable[..., str]]:
    """Makes of a function that draws into axes one that returns the plot as svg() does.

    key: of the text that describes the plot. The first argument says the texts of a language.
    """

    def decorate(draw: Callable[..., None]) -> Callable[..., str]:
        @functools.wraps(draw)
        def drawn(say: Say, *data: Any) -> str:
            style = dict(STYLE)
            style["svg.hashsalt"] = draw.__name__  # unique in a page
            with matplotlib.rc_context(style), warnings.catch_warnings():
                # The browser draws the letters: matplotlib's font need not have them.
                warnings.filterwarnings("ignore", "Glyph .* missing from")
                figure = Figure(figsize=(WIDTH, height), layout="constrained")
                draw(figure.add_subplot(), say, *data)
                return svg(figure, say(key))

        return drawn

    return decorate


def legend(axes: Any) -> None:
    """What the colours mean, above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, borderaxespad=0.2)


@plot("plot_speed")
def speed(axes: Any, say: Say, rows: List[Dict[str, Any]]) -> None:
    """Throughput over batch size: bars, with marks for published figures. rows: perf.json's."""
    axes.bar(
        range(len(rows)),
        [row["throughput"] for row in rows],
        width=0.62,
        color=FIRST,
        label=say("measured"),
    )
    marks = [(place, row["reference"]) for place, row in enumerate(rows) if "reference" in row]
    if marks:
        axes.plot(
            *zip(*marks), "_", color=INK, markersize=30, markeredgewidth=2.5, label=say("published")
        )
        legend(axes)
    axes.set(xlabel=say("batch_size"), ylabel=say("images_per_s"), xlim=(-0.75, len(rows) - 0.25))
    axes.set_xticks(range(len(rows)), [str(row["batch_size"]) for row in rows])
    axes.grid(axis="x", visible=False)


@plot("plot_latency")
def latency(axes: Any, say: Say, rows: List[Dict[str, Any]]) -> None:
    """Mean and 99th percentile of a batch's latency over batch size. rows: perf.json's."""
    for key, style, colour, label in (
        ("latency_p99", "s--", SECOND, say("quicker_99")),
        ("latency_mean", "o-", FIRST, say("mean")),
    ):
        axes.plot([row[key] for row in rows], style, color=colour, linewidth=2, label=label)
    axes.set(
        xlabel=say("batch_size"),
        ylabel=say("ms_per_batch"),
        ylim=(0, None),
        xlim=(-0.4, len(rows) - 0.6),
    )
    axes.set_xticks(range(len(rows)), [str(row["batch_size"]) for row in rows])
    legend(axes)


@plot("plot_cosines")
def cosines(axes: Any, say: Say, values: Sequence[float], forecast: Sequence[float]) -> None:
    """Histogram of 1 - cosine on a logarithmic axis; forecast: the same of a forecast, or []."""
    floor = 1e-9  # equal scores have 0, which a logarithm does not know
    losses = [max(1 - value, floor) for value in values]
    expected = [max(1 - value, floor) for value in forecast]
    low, high = min(losses + expected) / 1.5, max(losses + expected) * 1.5
    edges = [low * (high / low) ** (step / 24) for step in range(25)]
    axes.hist(losses, edges, color=FIRST, label=say("measured"))
    if expected:
        weights = [len(losses) / len(expected)] * len(expected)
        axes.hist(
            expected,
            edges,
            weights=weights,
            histtype="step",
            linewidth=2,
            linestyle="--",
            color=SECOND,
            label=say("forecast_for_float16"),
        )
        legend(axes)
    axes.set(xscale="log", xlabel=say("one_minus_cosine"), ylabel=say("images"))
    axes.minorticks_off()


@plot("plot_reliability", 3.4)
def reliability(axes: Any, say: Say, bins: List[Dict[str, Any]]) -> None:
    """Accuracy over confidence in bins, beside the diagonal. bins: figures.calibration()'s."""
    full = [row for row in bins if row["images"]]
    axes.bar(
        [row["low"] for row in full],
        [row["accuracy"] for row in full],
        [row["high"] - row["low"] for row in full],
        align="edge",
        color=FIRST,
        edgecolor=PAPER,
    )
    axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.5, label=say("perfect_calibration"))
    axes.plot(
        [row["confidence"] for row in full],
        [row["accuracy"] for row in full],
        "o",
        color=SECOND,
        markeredgecolor=PAPER,
        label=say("mean_of_bin"),
    )
    axes.set(xlabel=say("confidence"), ylabel=say("share_right"), xlim=(0, 1), ylim=(0, 1.02))
    legend(axes)


@plot("plot_confidences")
def confidences(axes: Any, say: Say, right: Sequence[float], wrong: Sequence[float]) -> None:
    """Histogram of the confidence of right and of wrong answers, in one plot."""
    axes.hist(
        [right, wrong],
        25,
        range=(0, 1),
        stacked=True,
        color=[FIRST, SECOND],
        label=[say("right"), say("wrong")],
        edgecolor=PAPER,
        linewidth=0.5,
    )
    for bar in axes.containers[1]:
        bar.set_hatch("////")
    axes.set(xlabel=say("confidence"), ylabel=say("images"), xlim=(0, 1))
    legend(axes)


@plot("plot_coverage")
def coverage(axes: Any, say: Say, points: List[Tuple[float, float]]) -> None:
    """Accuracy on the most confident images over their share. points: figures.coverage()'s."""
    shares = [100 * share for share, _ in points]
    accuracies = [100 * accuracy for _, accuracy in points]
    axes.plot(shares, accuracies, color=FIRST, linewidth=2.5)
    axes.set(
        xlabel=say("percent_answered"),
        ylabel=say("percent_right"),
        xlim=(0, 100),
        ylim=(max(0, min(accuracies) - 3), 100.5),
    )


# ---- the confusion matrix ------------------------------------------------------------------------

NARROW, WIDE = 15, 34  # pixels of a cell: of 50 classes, of 12 and fewer
COUNTED = 20  # classes, up to which the cells have their counts
NAMED_CELLS = 700  # cells, up to which each says its classes; more of them would fill the page
LETTER = 7.2  # pixels that a letter is wide; a letter that is not of ASCII has two
LABEL = 20  # letters of a class's name


def width_of(text: str) -> float:
    """How wide a label is, roughly, in pixels."""
    return sum(LETTER if letter.isascii() else 2 * LETTER for letter in text)


def label_of(name: str) -> str:
    return name if len(name) <= LABEL else name[: LABEL - 1] + "…"


def matrix_axes(say: Say, names: Sequence[str], cell: float, left: float, top: float) -> List[str]:
    """The names beside rows and columns, and what these are."""
    parts = []
    for place, name in enumerate(map(label_of, names)):
        middle = (place + 0.5) * cell
        text = html.escape(name)
        parts.append(f'<text x="{left - 6:g}" y="{top + middle + 4:g}" class="end">{text}</text>')
        x, y = left + middle + 4, top - 6
        parts.append(f'<text transform="translate({x:g} {y:g}) rotate(-90)">{text}</text>')
    rows, columns = (html.escape(say(key)) for key in ("confusion_rows", "confusion_columns"))
    parts.append(f'<text x="0" y="{top - 6:g}" class="axis">{rows} ↓</text>')
    parts.append(f'<text x="{left - 6:g}" y="14" class="axis end">{columns} →</text>')
    return parts


def confusion(say: Say, counts: Any, names: Sequence[str]) -> str:
    """The confusion matrix as an <svg> element: right classes in rows, answers in columns.

    counts: int [classes, classes]; names: of these classes.
    """
    classes = len(names)
    cell = max(NARROW, min(WIDE, round(720 / classes)))
    labels = max(map(width_of, map(label_of, names)))
    left = max(labels, width_of(say("confusion_rows") + " ↓")) + 12
    top, side = max(labels + 12, 24.0), cell * classes
    size = f"0 0 {left + side + 2:g} {top + side + 2:g}"
    parts = [
        f'<svg class="matrix" role="img" aria-label="{html.escape(say("confusion_words"))}" '
        f'viewBox="{size}" width="{left + side + 2:g}">',
        *matrix_axes(say, names, cell, left, top),
    ]
    filled = [(int(row), int(column)) for row, column in zip(*counts.nonzero())]
    for row, column in filled:
        count, share = int(counts[row, column]), counts[row, column] / counts[row].sum()
        kind = "hit" if row == column else "miss"
        x, y = left + column * cell, top + row * cell
        words = f"{row} → {column}: {count}"
        if len(filled) <= NAMED_CELLS:
            words = f"{names[row]} → {names[column]}: {count:,}"
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{cell}" height="{cell}" class="{kind}" '
            f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{html.escape(words)}</title></rect>'
        )
        if classes <= COUNTED:
            parts.append(
                f'<text x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" class="count">{count}</text>'
            )
    lines = [f"M{left + place * cell:g} {top:g}v{side}" for place in range(classes + 1)]
    lines += [f"M{left:g} {top + place * cell:g}h{side}" for place in range(classes + 1)]
    return "".join(parts) + f'<path d="{"".join(lines)}"/></svg>'


# ---- the forecast of the speed -------------------------------------------------------------------

PARTS_OF_TIME = {"compute": FIRST, "memory": SECOND, "overhead": GRID, "input": MUTED}


def forecast_speed_png(report: Dict[str, Any]) -> bytes:
    """Images/s at each batch size with the 80 % range, and below it what the time is spent on.

    report: speed.json's content.
    """
    return png(draw_forecast_speed, 6.0, report)


def draw_forecast_speed(figure: Figure, report: Dict[str, Any]) -> None:
    rows = report["rows"]
    places = list(range(len(rows)))
    speeds = [row["images_per_s"] for row in rows]
    below = [row["images_per_s"] - row["low_80"] for row in rows]
    above = [row["high_80"] - row["images_per_s"] for row in rows]
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.bar(places, speeds, width=0.6, color=FIRST)
    upper.errorbar(places, speeds, yerr=[below, above], fmt="none", ecolor=INK, capsize=6)
    upper.set(ylabel="images/s, 80 % range")
    bottom = [0.0] * len(rows)
    for part, colour in PARTS_OF_TIME.items():
        shares = [100 * row["shares"][part] for row in rows]
        lower.bar(places, shares, width=0.6, bottom=bottom, color=colour, label=part)
        bottom = [start + share for start, share in zip(bottom, shares)]
    lower.set(xlabel="batch size", ylabel="time, %", ylim=(0, 100))
    lower.set_xticks(places)
    lower.set_xticklabels([str(row["batch_size"]) for row in rows])
    lower.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    title = f"{plain(report['model'], 60)}: forecast for one {report['chip']}, not measured"
    figure.suptitle(title, fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
