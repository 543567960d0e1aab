"""Format numbers of what the package writes.

Each kind of file or dataset has a number of its own. It is stored in what is written, and it is part of the keys by
which a run recognises its own work. A number goes up when the layout changes, or when the same field comes to mean
something else, so that files of the other number must not be read as if they were of this one. It does not go up with
the version of the package: a patch release leaves finished runs as they are. ``docs/formats.md`` has the history.
"""

from __future__ import annotations

__all__ = ["AUDIT", "CARD", "CATALOG", "MANIFEST", "PAIRS", "POSTERIOR", "RESULTS", "SIMULATIONS", "numbers"]

CATALOG = 1
"""``catalog.zarr``; a catalog without a number has this one."""
SIMULATIONS = 2
"""``simulations.zarr`` and ``calibration.zarr``."""
PAIRS = 2
"""``pairs.zarr``."""
CARD = 2
"""``model.safetensors`` and ``card.json`` of a frozen posterior."""
POSTERIOR = 3
"""``posterior.zarr``."""
RESULTS = 3
"""``percentiles.parquet`` and ``results.parquet``."""
AUDIT = 3
"""``audit.zarr``, ``audit.json`` and ``escalate.json``, and the fits and weights that they are made of."""
MANIFEST = 2
"""``manifest.json``."""


def numbers(*names: str) -> dict[str, int]:
    """Return the numbers of formats by their names in lower case.

    Examples
    --------
    >>> numbers("catalog")
    {'catalog': 1}
    """
    return {name: globals()[name.upper()] for name in names}
