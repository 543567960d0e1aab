"""The bundled spectra of DESI: a published mass is found with the posterior that ships, and the trap is flagged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from digs_survey.catalog import Catalog, validate_catalog
from digs_survey.config import load_config
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.infer.derived import DerivedQuantities
from digs_survey.infer.rows import RowResult
from digs_survey.infer.shard_worker import RowInference
from digs_survey.quality import NO_POSTERIOR, QualityFlag
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel

PATH = Path(__file__).resolve().parents[2] / "catalogs" / "desi.zarr"
GALAXY, TRAP = 39633345008634465, 39089837499744649


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.open(PATH)


@pytest.fixture(scope="module")
def inferred(catalog: Catalog) -> RowResult:
    posterior = FrozenPosterior.load(shipped()["survey"])
    config = load_config("survey", ["map.derived=['surviving_mass']", "map.predictive_draws=0"])
    # The share of the mass that is left does not depend on the elements.
    few = WavelengthGrid(np.arange(5000.0, 5100.0, 20.0))
    model = BatchedModel.from_config(posterior.model, posterior.prior.without("sigma_smooth"), few)
    derive = DerivedQuantities.of_model(config.map.derived, posterior.model.sfh, model, posterior.prior)
    return RowInference(posterior, catalog, config, derive)(slice(0, 2), catalog.rows(0, 2))


def test_it_is_small_valid_and_says_where_it_is_from(catalog: Catalog):
    assert validate_catalog(PATH).ok
    assert catalog.galaxy_id(0, 2).tolist() == [GALAXY, TRAP]
    assert sum(file.stat().st_size for file in PATH.rglob("*") if file.is_file()) < 500_000
    files = catalog.column("source_file", 0, 2).tolist()
    assert files == ["coadd-4-80613-thru20210324.fits", "coadd-special-dark-27247.fits"]


def test_the_published_mass_is_found(catalog: Catalog, inferred: RowResult):
    outside = QualityFlag.OUTSIDE_SIMULATIONS | QualityFlag.OUTSIDE_CONDITIONS
    assert not inferred.quality[0] & int(NO_POSTERIOR | outside)
    assert inferred.derived is not None
    median = list(load_config("survey").map.quantiles).index(0.5)
    published = catalog.column("published_log_mass", 0, 1)[0]
    assert published == 9.36
    assert abs(np.log10(inferred.derived[0, 0, median]) - published) < 0.1


def test_the_wrong_redshift_is_flagged(catalog: Catalog, inferred: RowResult):
    # Redrock has no warning of it.
    assert catalog.column("zwarn", 1, 2).tolist() == [0]
    assert catalog.column("redshift_by_hand", 1, 2)[0] > 400 * catalog.redshift(1, 2)[0]
    # Without predictive spectra, whose bit POOR_FIT takes a minute to find.
    assert inferred.quality[1] & int(QualityFlag.OUTSIDE_SIMULATIONS)
