"""A survey that never was: rows of any number, with their truth, as tests and benchmarks of the map want them.

The inverse of :mod:`~digs_survey.catalog.prepare`: noisy spectra at the distance of ``model.zred`` are put at
redshifts. A few thousand model spectra serve for all rows; noise, redshift and faults belong to the row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog import new_catalog
from digs_survey.catalog.photometry import PREFIX, SUFFIX
from digs_survey.catalog.prepare import reference_factor
from digs_survey.config import SurveyConfig
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.errors import ConfigError
from digs_survey.noise.band_noise import without_band_floor
from digs_survey.noise.model import NoiseModel
from digs_survey.noise.observation import split_observed
from digs_survey.parameters import MAX_REDSHIFT
from digs_survey.simulate.seeding import row_uniforms
from digs_survey.simulate.simulated_spectra import simulated_spectra
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.paired import batched_model

__all__ = ["FAULTS", "fake_catalog"]

FAULTS = (
    "none",
    "NaN flux",
    "infinite flux",
    "negative ivar",
    "zero flux",
    "flux of 1e30",
    "all masked",
    "duplicated id",
    "redshift of 99",
)
"""What column ``fault`` counts; each has its quality bit, or lies outside the simulations."""
_UNIT = 1e-17
_NANOMAGGIE = 1e-9
_REDSHIFTS = 256
"""Redshifts that rows have: as many distances are computed."""


def fake_catalog(
    path: Path,
    config: SurveyConfig,
    rows: int,
    *,
    models: int = 4096,
    redshifts: tuple[float, float] = (0.02, 0.3),
    bad: float = 0.0,
    rows_per_shard: int = 4096,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write a catalog of simulated galaxies, a shard at a time; memory does not grow with the rows.

    The values of a row depend on the configuration and the row alone: a longer catalog begins with a shorter one,
    and faults leave the other rows as they are (but for the first, whose id duplicates take).

    Parameters
    ----------
    path : Path
        What stood there before is replaced, when all is written.
    config : SurveyConfig
        Its model, prior, grid, noise and seed are used.
    rows : int
    models : int
        Different noiseless spectra; every row is one of them, brought to its redshift.
    redshifts : tuple of float
        Range in which redshifts lie evenly; with noise of kind "row" they lie in that of ``noise.observing``.
    bad : float
        Share of rows with one of the :data:`FAULTS`.
    advance : callable
        Called with the number of rows of each shard.

    Raises
    ------
    ConfigError
        If the noise is that of a catalog or its donors, or a number makes no sense.
    CatalogError
        If flux is out of float32's range.
    """
    by_row = config.noise.by_row
    if config.noise.needs_catalog:
        found = f"noise.kind = {config.noise.kind!r}"
        instead = "noise.kind = 'fractional', or 'constant' with noise.sigma_flam"
        if by_row:
            found, instead = "noise.observing.donors = 'catalog'", "noise.observing.donors = 'none'"
        raise ConfigError(f"{found} takes errors from a catalog, which a fake one has not; set {instead}")
    for name, value, right, expected in (
        ("rows", rows, rows >= 1, "at least 1"),
        ("models", models, models >= 1, "at least 1"),
        ("bad", bad, 0 <= bad <= 1, "0 to 1"),
        ("redshifts", redshifts, 0 < redshifts[0] <= redshifts[1] <= MAX_REDSHIFT, f"a range up to {MAX_REDSHIFT:g}"),
    ):
        if not right:
            raise ConfigError(f"fake-catalog: {name}: expected {expected}, found {value}")
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    config.noise.check_elements(len(grid))
    noise = NoiseModel.from_config(config.noise).on(grid)
    simulator = batched_model(config.model, prior, grid, noise.photometry_bands)
    theta, clean = simulated_spectra(simulator, prior, noise, config.seed, "fake", 0, models)
    distances = clean[:, -1] if by_row else np.linspace(*redshifts, _REDSHIFTS)
    factors = reference_factor(distances, config.model.zred)

    def shard(part: slice) -> dict[str, NDArray[Any]]:
        choice = row_uniforms(config.seed, "fake", part.start, part.stop, 3)
        model = (choice[:, 0] * models).astype(int)
        place = model if by_row else (choice[:, 1] * _REDSHIFTS).astype(int)
        random = row_uniforms(config.seed, "noise/fake", part.start, part.stop, noise.columns(clean.shape[1]))
        noisy, good, errors = noise.observe(clean[model], random)
        if by_row:
            noisy, inverse, _ = split_observed(noisy)
        else:
            inverse = 1 / noise.sigma(clean[model], errors)
        elements, bands = len(grid), _photometry(config.noise.photometry, noisy, inverse, factors[place, None])
        noisy, inverse, good = noisy[:, :elements], inverse[:, :elements], good[:, :elements]
        factor = factors[place, None] * _UNIT
        values: dict[str, NDArray[Any]] = {
            "flux": noisy / factor,
            "ivar": (factor * inverse) ** 2,
            "mask": (~good).astype(np.uint8),
            "redshift": distances[place],
            "galaxy_id": np.arange(part.start, part.stop) + 1,
            "fault": _faults(choice[:, 2], bad),
        }
        _spoil(values)
        return values | bands | {f"true_{name}": theta[model, i] for i, name in enumerate(prior.names)}

    columns: dict[str, tuple[str, dict[str, str]]] = {
        f"true_{p.name}": ("float64", {"units": p.unit, "description": f"true {p.description}"})
        for p in prior.parameters
    }
    columns |= _photometry_columns(config.noise.photometry)
    columns["fault"] = "uint8", {"description": ", ".join(f"{k} = {name}" for k, name in enumerate(FAULTS))}
    with new_catalog(
        path,
        grid=grid,
        rows=rows,
        id_dtype=np.int64,
        flux_unit=f"{_UNIT:g} erg / (s cm2 Angstrom)",
        columns=columns,
        attrs={"description": f"{rows} simulated galaxies by digs-survey fake-catalog, {models} models"},
        rows_per_shard=rows_per_shard,
    ) as (shards, write):
        for part in shards:
            write(part, shard(part))
            advance(part.stop - part.start)


def _photometry(
    config: PhotometryConfig, observed: NDArray[Any], inverse: NDArray[Any], factor: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Columns of the bands behind the elements of what is observed (n, wavelength + band), without their floors."""
    count = len(config.filters)
    flux, weight = (part[:, part.shape[1] - count :] for part in (observed, inverse))
    weight = without_band_floor(flux, weight, np.array(config.floors)) * factor * _NANOMAGGIE
    flux = np.where(weight > 0, flux / factor / _NANOMAGGIE, np.nan)
    found = {f"{PREFIX}{name}": flux[:, band] for band, name in enumerate(config.filters)}
    return found | {f"{PREFIX}{name}{SUFFIX}": weight[:, band] ** 2 for band, name in enumerate(config.filters)}


def _photometry_columns(config: PhotometryConfig) -> dict[str, tuple[str, dict[str, str]]]:
    """Types and attributes of those columns."""
    flux = {"units": "nmgy", "description": "flux; NaN where the galaxy lacks the band"}
    ivar = {"units": "1 / nmgy2", "description": "inverse variance of the flux"}
    columns = {}
    for name in config.filters:
        columns[f"{PREFIX}{name}"] = "float64", flux
        columns[f"{PREFIX}{name}{SUFFIX}"] = "float64", ivar
    return columns


def _faults(uniform: NDArray[np.float64], bad: float) -> NDArray[np.uint8]:
    """Numbers (n,) of the faults that rows have, for numbers (n,) in [0, 1)."""
    fault = np.zeros(len(uniform), dtype=np.uint8)
    has = uniform < bad
    fault[has] = 1 + (uniform[has] / bad * (len(FAULTS) - 1)).astype(np.uint8)
    return fault


def _spoil(values: dict[str, NDArray[Any]]) -> None:
    """Put into every row the fault that it is to have."""
    fault, middle = values["fault"], values["flux"].shape[1] // 2
    values["flux"][fault == 1, middle] = np.nan
    values["flux"][fault == 2, middle] = np.inf
    values["ivar"][fault == 3, middle] *= -1
    values["flux"][fault == 4] = 0.0
    values["flux"][fault == 5] = 1e30
    values["mask"][fault == 6] = 1
    values["galaxy_id"][fault == 7] = 1
    values["redshift"][fault == 8] = 99.0
