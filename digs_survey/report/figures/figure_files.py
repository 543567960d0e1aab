"""The report's figures as files: PDF for papers, PNG for slides, and the numbers that are drawn as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from digs_survey.report.figures.style import Picture
from digs_survey.store.storage import write_bytes, write_text

__all__ = ["drawn", "save_picture"]

_Row = tuple[int, str, str, float, float]


def save_picture(folder: Path, name: str, picture: Picture) -> None:
    """Write ``NAME.pdf``, ``NAME.png`` and ``NAME.csv``, to be called in the context of the report's style."""
    for kind, options in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        picture.figure.savefig(buffer, format=kind, metadata=options)
        write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("panel", "kind", "series", "x", "y"))
    writer.writerows(drawn(picture.figure))
    write_text(folder / f"{name}.csv", f"# {picture.alt}\n{text.getvalue()}")


def drawn(figure: Figure) -> Iterator[_Row]:
    """Rows (panel, kind, series, x, y) of everything that is drawn in data coordinates, panel by panel.

    A series is what a legend calls it, or its number in the panel. Steps give the left edge of each and its height, the
    last edge with NaN; bands give their outline; bars of errors give their ends.
    """
    for panel, axes in enumerate(figure.axes):
        for number, (kind, series, points) in enumerate(_artists(axes)):
            label = str(number) if series.startswith("_") or not series else series
            for x, y in points:
                yield panel, kind, label, float(x), float(y)


def _artists(axes: Axes) -> Iterator[tuple[str, str, np.ndarray]]:
    for line in axes.get_lines():
        if line.get_transform() == axes.transData:
            yield "line", str(line.get_label()), np.column_stack(line.get_data())
    for patch in axes.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            yield "steps", str(patch.get_label()), np.column_stack([edges, np.append(values, np.nan)])
    for collection in axes.collections:
        yield from _of_collection(collection)


def _of_collection(collection: Collection) -> Iterator[tuple[str, str, np.ndarray]]:
    label = str(collection.get_label())
    offsets = np.ma.getdata(collection.get_offsets())
    if type(collection).__name__ == "PathCollection":
        yield "points", label, np.asarray(offsets, dtype=float)
        return
    kind = "errors" if type(collection).__name__ == "LineCollection" else "band"
    outlines = [np.asarray(path.vertices, dtype=float) for path in collection.get_paths()]
    if outlines:
        yield kind, label, np.concatenate(outlines)
