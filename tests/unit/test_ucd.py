"""Every UCD is made of words that the IVOA has, in an order that it allows."""

from __future__ import annotations

import pytest
import result_tables
from astropy.io.votable.ucd import check_ucd

from digs_survey.catalog.readers.sdss import _COLUMNS
from digs_survey.parameters import PARAMETERS
from digs_survey.results.dataset import IMPORTANCE, PREDICTIVE
from digs_survey.results.ucd import ucd

COLUMNS = [*result_tables.schema().names, *IMPORTANCE, *PREDICTIVE, *_COLUMNS]


@pytest.mark.parametrize("column", COLUMNS)
def test_words_and_their_order(column: str) -> None:
    found = ucd(column)
    if found is not None:
        assert check_ucd(found, check_controlled_vocabulary=True), found


def test_the_check_fails_a_wrong_order_and_a_made_up_word() -> None:
    assert not check_ucd("stat.median;phys.mass", check_controlled_vocabulary=True)
    assert not check_ucd("phys.mass;stat.quantile", check_controlled_vocabulary=True)


def test_every_posterior_quantity_has_one() -> None:
    for name in [*PARAMETERS, *result_tables.DERIVED]:
        for column in (f"{name}_p50", f"{name}_p50_weighted"):
            assert (ucd(column) or "").endswith(";stat.median")
        assert (ucd(f"{name}_p97_5") or "").endswith(";stat.percentile")
    assert ucd("logmass_p2_5") == "phys.mass;stat.percentile"
    assert (ucd("RA"), ucd("dec"), ucd("redshift")) == ("pos.eq.ra", "pos.eq.dec", "src.redshift")
    assert ucd("plate") is ucd("flux_p50") is ucd("importance_ess") is None
