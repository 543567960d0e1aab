"""Donors from the rows of a catalog; :mod:`digs_survey.noise.donors` says what simulations take of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog import Catalog
from digs_survey.config import MapConfig
from digs_survey.errors import ConfigError
from digs_survey.noise.donors import LEAST_DETECTION, Donors, donor_shape
from digs_survey.noise.observation import split_observed
from digs_survey.noise.observed_rows import prepare_for
from digs_survey.noise.row_noise import RowNoise
from digs_survey.quality import NO_POSTERIOR
from digs_survey.spectra import WavelengthGrid

__all__ = ["catalog_donors", "noise_of_rows"]

_LEAST_DONORS = 100
"""Of fewer rows a posterior would learn the conditions by heart."""
_MOST_DONORS = 4096
_LEAST_FLOOR = 1e-9
"""Stands for an error floor of none, whose logarithm is drawn."""
_BLOCK_ROWS = 64
"""Rows that are read at once."""


def catalog_donors(
    noise: RowNoise,
    grid: WavelengthGrid,
    zred: float,
    catalog: Catalog,
    *,
    seed: int,
    min_good_fraction: float,
    setting: str = "noise.observing.donors = 'catalog'",
    instead: str = "describe the survey by noise.observing with donors = 'none'",
    least: int = _LEAST_DONORS,
    most: int = _MOST_DONORS,
) -> Donors:
    """Choose donors among the rows of a catalog: blocks of rows in random order, until there are enough.

    Their errors are those of the catalog, without an error floor, and no line is masked: both are drawn for each
    simulation. Memory holds the donors and one block of rows.

    Parameters
    ----------
    noise : RowNoise
        Donors have a redshift in the range that it is for.
    grid : WavelengthGrid
        The elements at rest.
    zred : float
        Redshift of the reference distance.
    catalog : Catalog
    seed : int
        Decides the order.
    min_good_fraction : float
        Share of good elements below which a row is no donor, since the map gives it no posterior.
    setting, instead : str
        For the error: what asks for donors, and what would do without.
    least, most : int
        Number of donors.

    Raises
    ------
    ConfigError
        If there are fewer than ``least``.
    """
    settings = MapConfig(error_floor=0.0, mask_lines=False, min_good_fraction=min_good_fraction)
    low, high = noise.redshift_range
    blocks = -(-catalog.n_rows // _BLOCK_ROWS)
    shapes: list[NDArray[np.float32]] = []
    redshifts: list[NDArray[np.float64]] = []
    found = without = elsewhere = faint = read = 0
    for block in np.random.default_rng([seed, blocks]).permutation(blocks):
        start = int(block) * _BLOCK_ROWS
        raw = catalog.rows(start, min(start + _BLOCK_ROWS, catalog.n_rows))
        rows = prepare_for(noise.of_spectrum, grid, zred, settings, raw, catalog.grid)
        flux, inverse, redshift = split_observed(rows.flux)
        known = (rows.quality & NO_POSTERIOR) == 0
        inside = (redshift >= low) & (redshift <= high)
        # Rows without a posterior hold a stand-in.
        shape, detection = donor_shape(flux, np.where(known[:, None], inverse, 0.0))
        bright = detection >= LEAST_DETECTION
        without, elsewhere = without + int((~known).sum()), elsewhere + int((known & ~inside).sum())
        faint += int((known & inside & ~bright).sum())
        some = np.flatnonzero(known & inside & bright)[: most - found]
        shapes.append(shape[some].astype(np.float32))
        redshifts.append(redshift[some])
        found, read = found + some.size, read + len(redshift)
        if found == most:
            break
    if found < least:
        raise ConfigError(
            f"{setting}: expected at least {least} rows of {catalog.path} whose errors, gaps and redshift simulations "
            f"can take, found {found} among {read:,} ({without:,} have no posterior, {elsewhere:,} a redshift outside "
            f"of {low:g} to {high:g}, {faint:,} a flux below {LEAST_DETECTION:g} times its error). Take a catalog with "
            f"more rows, or {instead}"
        )
    return Donors.of(np.concatenate(shapes), np.concatenate(redshifts))


def noise_of_rows(
    noise: RowNoise, grid: WavelengthGrid, zred: float, catalog: Catalog, settings: MapConfig, seed: int
) -> RowNoise:
    """Return a posterior's noise with the conditions of the rows that it is applied to, as the map treats them.

    Parameters
    ----------
    noise : RowNoise
        Of the posterior. Rows beyond the redshifts that it was trained for are left out.
    grid, zred, catalog, seed
        As for :func:`catalog_donors`.
    settings : MapConfig
        Its ``error_floor``, ``mask_lines`` and ``min_good_fraction`` are used.

    Raises
    ------
    ConfigError
        If no row can be used.
    """
    if settings.error_floor == "fit":
        raise ValueError("map.error_floor: expected the number that was fitted")
    floor = max(settings.error_floor, _LEAST_FLOOR)
    observing = noise.config.observing.model_copy(
        update={
            "donors": "catalog",
            "donor_snr_factor": (1.0, 1.0),
            "redshift": (noise.redshifts.low, noise.redshifts.high),
            "floor": (floor, floor),
            "masked_lines": float(settings.mask_lines),
        }
    )
    like = RowNoise(noise.config.model_copy(update={"observing": observing}), grid=grid)
    donors = catalog_donors(
        like,
        grid,
        zred,
        catalog,
        seed=seed,
        min_good_fraction=settings.min_good_fraction,
        setting="map.recalibrate",
        instead="set map.recalibrate = 0",
        least=1,
    )
    return like.with_donors(donors)
