"""Colours, sizes and encoding that all figures share.

A picture is an SVG in a data URI, drawn at the size at which it is shown: panels are at most as wide
as a phone, so that the page, and not the figure, decides how many stand side by side. Pictures that are
wider have a second drawing for narrow screens.
"""

from __future__ import annotations

import base64
import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from digs_survey.parameters import PARAMETERS

__all__ = [
    "BAND",
    "INK",
    "MCMC",
    "NARROW",
    "NPE",
    "PANEL",
    "TRUTH",
    "WEIGHTED",
    "WIDE",
    "Picture",
    "canvas",
    "encode",
    "finite_span",
    "label",
    "legend_above",
    "panel",
    "style",
    "zero_line",
]

NPE, MCMC, TRUTH, INK, BAND = "#0072B2", "#D55E00", "#000000", "#222222", "#C9CDD2"
"""Okabe and Ito's blue and vermillion, black, and greys; they differ in lightness too, for print."""
WEIGHTED = "#009E73"
"""Okabe and Ito's green, of draws with importance weights."""

PANEL, WIDE, NARROW = 3.45, 10.4, 3.65
"""Widths in inches of 96 CSS pixels: a panel, the whole text block, a phone's screen."""

_RC: Any = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.labelsize": 10.5,
    "axes.titlesize": 10.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.linewidth": 0.7,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "lines.linewidth": 1.2,
    "axes.formatter.limits": (-3, 5),
    "svg.fonttype": "path",
    "svg.hashsalt": "digs-survey",
    "figure.dpi": 96,
    "savefig.dpi": 192,
}


@dataclass(frozen=True)
class Picture:
    """One encoded picture.

    Attributes
    ----------
    src : str
        A data URI.
    alt : str
        What a reader who cannot see the picture should know.
    width, height : int
        Natural size in CSS pixels.
    figure : matplotlib.figure.Figure
        What was drawn.
    narrow : Picture or None
        The drawing for narrow screens, if it is another one.
    """

    src: str
    alt: str
    width: int
    height: int
    figure: Figure = field(repr=False, compare=False)
    narrow: Picture | None = None

    def with_narrow(self, narrow: Picture) -> Picture:
        """Return this picture with the drawing for narrow screens beside it."""
        return replace(self, narrow=narrow)


def style() -> AbstractContextManager[None]:
    """Return the context in which all figures are made and encoded."""
    return rc_context(_RC)


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panel(height: float) -> Figure:
    """Return an empty figure of a panel's width, with margins that are the same in all panels of a row."""
    figure = Figure(figsize=(PANEL, height))
    figure.subplots_adjust(left=0.19, right=0.965, bottom=0.47 / height, top=1 - 0.1 / height, hspace=0.08)
    return figure


def encode(figure: Figure, alt: str, *, bitmap: bool = False) -> Picture:
    """Draw a figure as SVG, or, for those with thousands of points, as PNG at twice the screen's density."""
    buffer = io.BytesIO()
    if bitmap:
        figure.savefig(buffer, format="png", metadata={"Software": None})
        flat = io.BytesIO()
        # A figure has few hues: a palette takes a third of the bytes and cannot be told apart.
        Image.open(buffer).convert("RGB").quantize(96).save(flat, format="png", optimize=True)
        src = "data:image/png;base64," + base64.b64encode(flat.getvalue()).decode()
    else:
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        # Percent-encoded: a quarter smaller than base64, and without a space, which a srcset would split at.
        src = "data:image/svg+xml," + quote(_slim(buffer.getvalue().decode()), safe="=:;,/.()-+")
    width, height = figure.get_size_inches()
    return Picture(src, alt, round(96 * width), round(96 * height), figure)


def _slim(svg: str) -> str:
    """Drop the prolog, line breaks, and decimals of positions that no screen or printer shows."""
    svg = re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r"(?<=[ =\"])-?\d+\.\d+(?=[\s\"])", _hundredths, svg)
    return re.sub(r'(?<= d=")[^"]*', _commas, svg)


def _hundredths(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _commas(found: re.Match[str]) -> str:
    return re.sub(r"\s+", ",", re.sub(r"\s*([A-Za-z])\s*", r"\1", found[0]))


def label(name: str, *, unit: bool = True) -> str:
    """Label of a parameter's axis, with its unit unless it is left out."""
    if name not in PARAMETERS:
        return name.replace("_", " ")
    text = PARAMETERS[name].label
    return text if unit else text.split(r"\;[")[0].rstrip("$") + "$"


def finite_span(*values: ArrayLike, margin: float = 0.05, quantile: float = 0.0) -> tuple[float, float]:
    """Return limits that hold the finite values (less a share ``quantile`` at each end), with a margin."""
    joined = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in values])
    joined = joined[np.isfinite(joined)]
    if joined.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(joined, [quantile, 1 - quantile])
    pad = margin * (high - low) or 0.5 * abs(low) or 1.0
    return float(low - pad), float(high + pad)


def legend_above(axes: Axes, columns: int) -> None:
    """Put the legend over the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)


def zero_line(axes: Axes) -> None:
    """Draw the thin line of no difference."""
    axes.axhline(0, color=INK, lw=0.7)
