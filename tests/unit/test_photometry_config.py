"""The section of photometry in a configuration: where it is kept, and what does not fit with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from digs_survey.config import SurveyConfig, load_config
from digs_survey.config.loading import default_of
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.errors import ConfigError
from digs_survey.noise.model import NoiseModel
from digs_survey.parameters import SPEC_NORM
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.bands import Bands
from digs_survey.sps.coverage import check_source
from digs_survey.sps.paired import PairedModel

ROW = ["noise.kind=row", "train.whitening=least_squares"]
FILTERS = "photometry.filters=['sdss_g0', 'sdss_r0']"


def test_a_file_has_it_as_a_section_of_its_own(tmp_path):
    path = tmp_path / "c.toml"
    row = '[train]\nwhitening = "least_squares"\n[noise]\nkind = "row"\n'
    path.write_text(f'{row}[photometry]\nfilters = ["sdss_g0", "sdss_r0"]\nfloor = 0.03\n')
    config = load_config(path, ["photometry.missing_band=0.2"])
    assert config == load_config(None, [*ROW, FILTERS, "photometry.floor=0.03", "photometry.missing_band=0.2"])
    assert NoiseModel.from_config(config.noise).photometry_bands.names == ("sdss_g0", "sdss_r0")
    assert SurveyConfig.model_validate(config.model_dump(mode="json")) == config
    assert default_of("photometry.snr") == [2.0, 200.0]
    path.write_text(f"{row}[noise.photometry]\nfilters = ['sdss_g0']\n[photometry]\nfilters = ['sdss_r0']\n")
    with pytest.raises(ConfigError, match=r"photometry and noise.photometry are both given"):
        load_config(path)


def test_the_example_of_the_docs_is_a_configuration(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "photometry.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, flags=re.S)
    (tmp_path / "c.toml").write_text(example)
    config = load_config(tmp_path / "c.toml")
    assert SPEC_NORM in config.make_prior().names
    assert len(NoiseModel.from_config(config.noise).photometry_bands) == 6
    named = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", text, flags=re.M)
    assert {name for pair in named for name in pair if name} >= set(PhotometryConfig.model_fields)


def test_hashes_without_it_are_as_before_and_with_it_depend_on_it():
    plain, other = load_config(None, ROW), load_config(None, [*ROW, FILTERS])
    assert "photometry" not in plain.model_dump()["noise"]
    assert plain.hash("noise") != other.hash("noise")
    assert other.hash("noise") != load_config(None, [*ROW, FILTERS, "photometry.floor=0.03"]).hash("noise")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([FILTERS], "photometry belongs to kind = 'row', found kind = 'fractional'"),
        ([*ROW, "photometry.filtrs=['sdss_g0']"], "photometry.filtrs: unknown key; did you mean photometry.filters?"),
        ([*ROW, "photometry.filters=['sdss_g']"], "photometry.filters: .*sdss_g0"),
        ([*ROW, FILTERS, "photometry.missing_band=1.5"], "- photometry.missing_band: .* less than or equal to 1"),
        ([*ROW, FILTERS, "photometry=3"], "- photometry: Input should be a valid dictionary"),
        (["model.parameters.spec_norm={low=0.1, high=1.0}", *ROW], "prior.spec_norm .* expected photometry.filters"),
        (["model.parameters.spec_norm=0.3", *ROW], "prior.spec_norm .* expected photometry.filters"),
        (
            [*ROW, FILTERS, "model.parameters.spec_norm={low=0.0, high=1.0}"],
            "prior.spec_norm: expected values above 0, found 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_the_factor_multiplies_the_spectrum_also_where_it_is_fixed():
    config = load_config(None, [*ROW, FILTERS, "model.parameters.spec_norm=0.25"])
    one = load_config(None, [*ROW, FILTERS])
    grid, bands = WavelengthGrid(np.arange(4000.0, 4500.0, 50.0)), NoiseModel.from_config(one.noise).photometry_bands
    assert SPEC_NORM not in config.make_prior().names
    with_factor, without = (PairedModel.from_config(c.model, c.make_prior(), grid, bands) for c in (config, one))
    theta = one.make_prior().from_unit_cube(np.full((1, one.make_prior().ndim), 0.4))
    full = np.array(
        [[dict(zip(one.make_prior().names, theta[0], strict=True)).get(n, 0.25) for n in with_factor.names]]
    )
    seen, alone = with_factor.spectra(full, 0.1), without.spectra(theta, 0.1)
    np.testing.assert_allclose(seen[:, :-2], 0.25 * alone[:, :-2], rtol=1e-6)
    np.testing.assert_allclose(seen[:, -2:], alone[:, -2:], rtol=1e-6)


def test_filters_beyond_the_populations_are_refused():
    config = load_config(None, [*ROW, FILTERS])
    grid, bands = WavelengthGrid(np.arange(4000.0, 4500.0, 50.0)), NoiseModel.from_config(config.noise).photometry_bands
    beyond = Bands(("galex_FUV",), (400.0, 500.0), (1.0, 25_000.0))
    check_source(config.model, config.make_prior(), grid, bands)
    with pytest.raises(ConfigError, match=r"photometry.filters: source 'bc03' covers .* filters see 2\.[0-9]+ to"):
        check_source(config.model, config.make_prior(), grid, beyond)
