"""Loss curves, one panel a stage, as SVG in the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from daskreg.registry import SIMILARITIES

INK = "#010203"  # stands for the page's text colour until the SVG is written
COLOURS = ("#4c8fd0", "#e0822f", "#3fa46a", "#b0699f", "#c2a227", "#5bb3b8")
Level = Mapping[str, Any]


def loss_panels(levels: Sequence[Level], stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Title, SVG and number of plots for each stage that went through at least two iterations."""
    curves = [group for group in grouped(levels) if any(len(losses(v)) > 1 for v in group)]
    optimised = [s for s in stages if s.get("similarity")]
    kinds = [s["similarity"].get("kind", "") for s in optimised] if len(optimised) == len(curves) else [""] * len(curves)
    return [
        {
            "title": str(g[0]["stage"]),
            "svg": _panel(g, _loss_label(kind), f"p{i}"),
            "plots": sum(bool(losses(v)) for v in g),
        }
        for i, (g, kind) in enumerate(zip(curves, kinds))
    ]


def _loss_label(kind: str) -> str:
    """What the similarity calls its loss; a run may have one that is not installed here."""
    known = SIMILARITIES.classes().get(kind)
    return str(known.label) if known else "loss"


def grouped(levels: Sequence[Level]) -> Iterator[list[Level]]:
    """Levels grouped by stage; a stage that is repeated starts a new group where the scale grows."""
    group: list[Level] = []
    for level in levels:
        if group and (level["stage"] != group[-1]["stage"] or level["scale"] > group[-1]["scale"]):
            yield group
            group = []
        group.append(level)
    if group:
        yield group


def losses(level: Level) -> list[float]:
    """The losses of a level that are numbers."""
    return [float(v) for v in level["losses"] if v is not None]


def _panel(group: Sequence[Level], ylabel: str, salt: str) -> str:
    """A plot for each level, with its own axis: losses of two resolutions are not comparable."""
    curves = [(level["scale"], losses(level)) for level in group if len(losses(level)) > 0]
    figure = Figure(figsize=(0.3 + 2.3 * len(curves), 2.5), layout="constrained")
    for k, (axes, (scale, values)) in enumerate(zip(figure.subplots(1, len(curves), squeeze=False)[0], curves)):
        marker = "o" if len(values) < 16 else ""
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[k % len(COLOURS)], linewidth=1.8, marker=marker, markersize=3)
        axes.set_title(f"scale {scale}", fontsize=9, color=INK)
        axes.set_xlabel("iteration", fontsize=9, color=INK)
        _style(axes)
    figure.axes[0].set_ylabel(ylabel, fontsize=9, color=INK)
    return _svg(figure, salt)


def _style(axes: Any) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(alpha=0.15, color=INK)


def _svg(figure: Figure, salt: str) -> str:
    """The SVG without XML header, date and size, with text as text and ids that are unique on the page."""
    file = io.StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "axes.unicode_minus": True}
    with mpl.rc_context(style):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{salt}-", text)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'height="[\d.]+pt"', "", text, count=1), count=1)
