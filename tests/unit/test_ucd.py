"""Every UCD is made of words that the IVOA has, in an order that it allows; a column without one is named here."""

from __future__ import annotations

import pytest
from astropy.io.votable.ucd import check_ucd

from digs_survey.catalog.readers import sdss
from digs_survey.results.columns import COLUMNS, QUANTITIES, Column, find_column, percentile, ucd

WITHOUT = {
    "importance_ess": "the list has no word for an effective sample size",
    "reprior_ess": "the list has no word for an effective sample size",
    "reprior_share": "the list has no word for a share of samples",
    "feature_distance": "the list has no word for a distance between spectra",
    "weight_scatter": "the list has no word for the scatter of a logarithm",
}
"""Columns that have no UCD, and why."""

SURVEY_WITHOUT = {
    "plate": "an SDSS plate is neither an instrument nor a field by the list",
    "fiberid": "the list has no word for a fibre",
    "ebv_type": "the list has no word for the source of a number",
}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_every_column_has_a_ucd_or_is_known_to_have_none(column: Column) -> None:
    assert (column.ucd is None) == (column.name in WITHOUT)
    assert column.ucd is None or check_ucd(column.ucd, check_controlled_vocabulary=True), column.ucd


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("quantile", "word"), [(0.5, "stat.median"), (0.975, "stat.percentile")])
def test_every_percentile_says_which(quantity: str, weighted: bool, quantile: float, word: str) -> None:
    found = percentile(quantity, quantile, weighted=weighted).ucd
    assert found is not None
    assert found.endswith(f";{word}")
    assert check_ucd(found, check_controlled_vocabulary=True), found


@pytest.mark.parametrize("name", sdss._COLUMNS)
def test_columns_of_sdss(name: str) -> None:
    found = ucd(name)
    assert (found is None) == (name in SURVEY_WITHOUT)
    assert found is None or check_ucd(found, check_controlled_vocabulary=True), found


def test_the_check_fails_a_wrong_order_and_a_made_up_word() -> None:
    assert not check_ucd("stat.median;phys.mass", check_controlled_vocabulary=True)
    assert not check_ucd("phys.mass;stat.quantile", check_controlled_vocabulary=True)


def test_columns_are_known_by_their_names() -> None:
    assert ucd("logmass_p2_5") == "phys.mass;stat.percentile"
    assert (ucd("RA"), ucd("dec"), ucd("redshift")) == ("pos.eq.ra", "pos.eq.dec", "src.redshift")
    assert find_column("flux_p50") is find_column("true_logmass") is None
    assert find_column("Tage_P97_5_weighted") == percentile("tage", 0.975, weighted=True)
