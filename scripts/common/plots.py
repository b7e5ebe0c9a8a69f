"""Plots: as PNG files, or as SVG in a page: small, without fonts of their own, in its colours, dark mode included."""
import io
import re
from typing import Any, Dict, List, Sequence, Tuple

import matplotlib
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.1  # inches; at 72 units an inch, shown 330 to 460 pixels wide: on a phone, too, it is legible
# What a colour of the plot is called in the page's style sheet: --ink and so on.
INK, MUTED, GRID, PAPER, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "card", FIRST: "first", SECOND: "second"}
STYLE = {"svg.fonttype": "none", "font.size": 12, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
         "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
         "grid.color": GRID, "hatch.color": PAPER, "hatch.linewidth": 0.7, "legend.frameon": False,
         "legend.fontsize": 11, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
         "path.simplify": True, "axes.formatter.useoffset": False}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an <svg> element whose alternative text is `words`, plain text of ours; name: unique in a page."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()[stream.getvalue().index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z]+[a-z0-9.]*_\d+"', "", text)  # figure_1, axes_1, …: the same in every plot
    text = re.sub(r"font: [^;\"]*?([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)  # a hundredth of a pixel is enough
    for colour, word in NAMES.items():
        text = text.replace(colour, f"var(--{word})")
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text))
    head = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1:]
    return f'<svg class="plot" role="img" aria-label="{words}" {head.group(0) if head else ""} ' \
           f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}'.strip()


def axes(height: float = HEIGHT) -> Tuple[Figure, Any]:
    """An empty figure and its axes, in the page's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.add_subplot()


def legend(left: Any) -> None:
    """What the colours mean, above the axes, where it hides nothing."""
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, borderaxespad=0.2)


def finish(figure: Figure, name: str, words: str) -> str:
    with matplotlib.rc_context(STYLE):
        return svg(figure, name, words)


def speed(rows: List[Dict[str, Any]]) -> str:
    """Throughput over batch size: bars, with marks for published figures. rows: perf.json's."""
    figure, left = axes()
    places = list(range(len(rows)))
    with matplotlib.rc_context(STYLE):
        left.bar(places, [row["throughput"] for row in rows], width=0.62, color=FIRST, label="measured")
        marks = [(row["reference"], place) for place, row in zip(places, rows) if "reference" in row]
        if marks:
            left.plot([place for _, place in marks], [value for value, _ in marks], "_", color=INK, markersize=30,
                      markeredgewidth=2.5, label="published")
            legend(left)
        left.set(xticks=places, xlabel="batch size", ylabel="images/s", xlim=(-0.75, len(rows) - 0.25))
        left.set_xticklabels([str(row["batch_size"]) for row in rows])
        left.grid(axis="x", visible=False)
    return finish(figure, "speed", "Bars: images per second at each batch size; the table beside it has the figures.")


def latency(rows: List[Dict[str, Any]]) -> str:
    """Mean and 99th percentile of a batch's latency over batch size. rows: perf.json's."""
    figure, left = axes()
    places = list(range(len(rows)))
    with matplotlib.rc_context(STYLE):
        for key, style, colour, label in (("latency_p99", "s--", SECOND, "99 % are quicker"),
                                          ("latency_mean", "o-", FIRST, "mean")):
            left.plot(places, [row[key] for row in rows], style, color=colour, linewidth=2, label=label)
        left.set(xticks=places, xlabel="batch size", ylabel="ms for a batch", ylim=(0, None),
                 xlim=(-0.4, len(rows) - 0.6))
        left.set_xticklabels([str(row["batch_size"]) for row in rows])
        legend(left)
    return finish(figure, "latency", "Lines: mean and 99th percentile of the latency of a batch at each batch size.")


def cosines(values: Sequence[float], forecast: Sequence[float]) -> str:
    """Histogram of 1 - cosine on a logarithmic axis; forecast: the same of a forecast, which may be missing."""
    figure, left = axes()
    floor = 1e-9  # equal scores have 0, which a logarithm does not know
    losses = [max(1 - value, floor) for value in values]
    expected = [max(1 - value, floor) for value in forecast]
    low, high = min(losses + expected) / 1.5, max(losses + expected) * 1.5
    edges = [low * (high / low) ** (step / 24) for step in range(25)]
    with matplotlib.rc_context(STYLE):
        left.hist(losses, edges, color=FIRST, label="measured")
        if expected:
            weights = [len(losses) / len(expected)] * len(expected)
            left.hist(expected, edges, weights=weights, histtype="step", linewidth=2, linestyle="--", color=SECOND,
                      label="forecast for float16")
            legend(left)
        left.set(xscale="log", xlabel="1 − cosine similarity (left is better)", ylabel="images")
        left.minorticks_off()
    return finish(figure, "cosines", "Histogram of the cosine similarity of each image's scores.")


def reliability(bins: List[Dict[str, Any]]) -> str:
    """Accuracy over confidence in bins, beside the diagonal. bins: figures.calibration()'s."""
    figure, left = axes(3.4)
    full = [row for row in bins if row["images"]]
    with matplotlib.rc_context(STYLE):
        left.bar([row["low"] for row in full], [row["accuracy"] for row in full],
                 [row["high"] - row["low"] for row in full], align="edge", color=FIRST, edgecolor=PAPER)
        left.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.5, label="perfect calibration")
        left.plot([row["confidence"] for row in full], [row["accuracy"] for row in full], "o", color=SECOND,
                  markeredgecolor=PAPER, label="mean of a bin")
        left.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
        legend(left)
    return finish(figure, "reliability", "Reliability diagram: the share of right answers in each bin of confidence.")


def confidences(right: Sequence[float], wrong: Sequence[float]) -> str:
    """Histogram of the confidence of right and of wrong answers, one upon the other."""
    figure, left = axes()
    with matplotlib.rc_context(STYLE):
        left.hist([right, wrong], 25, range=(0, 1), stacked=True, color=[FIRST, SECOND], label=["right", "wrong"],
                  edgecolor=PAPER, linewidth=0.5)
        for bar in left.containers[1]:
            bar.set_hatch("////")
        left.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
        legend(left)
    return finish(figure, "confidences", "Histogram of the confidence of right and of wrong answers.")


def coverage(points: List[Tuple[float, float]]) -> str:
    """Accuracy on the most confident images over their share. points: figures.coverage()'s."""
    figure, left = axes()
    with matplotlib.rc_context(STYLE):
        left.plot([100 * share for share, _ in points], [100 * accuracy for _, accuracy in points], color=FIRST,
                  linewidth=2.5)
        left.set(xlabel="% of the images that are answered", ylabel="% of the answers right", xlim=(0, 100))
        left.set_ylim(max(0, min(100 * accuracy for _, accuracy in points) - 3), 100.5)
    return finish(figure, "coverage", "Accuracy if only the most confident answers are given, over their share.")
