"""Settings of row noise: what does not fit together is named, and what is as before is written as before."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from digs_survey import formats
from digs_survey.catalog.schema import redshift_quality
from digs_survey.config import MapConfig, NoiseConfig, SurveyConfig, load_config
from digs_survey.config.model_section import ModelConfig
from digs_survey.config.noise_sections import ObservingConfig
from digs_survey.config.photometry_section import PhotometryConfig
from digs_survey.errors import ConfigError, StageError
from digs_survey.estimator.artefact import identify
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.shipped import shipped
from digs_survey.estimator.training.recipes import check_recipe
from digs_survey.identity import RunIdentity
from digs_survey.noise.model import NoiseModel
from digs_survey.parameters import MAX_REDSHIFT
from digs_survey.run.survey import Survey
from digs_survey.simulate.mock_catalog import fake_catalog
from digs_survey.spectra import WavelengthGrid

ROW = ["noise.kind=row", "train.whitening=least_squares"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.whitening=least_squares"],
            "train.whitening = 'least_squares' needs noise.kind = 'row', found 'fractional'",
        ),
        (
            ["noise.kind=catalog", "model.age=tage_tuniv"],
            "model.age = 'tage_tuniv' needs noise.kind = 'row', found 'catalog'",
        ),
        (["noise.kind=row"], "expected train.whitening = 'least_squares', found 'pca'"),
        (["noise.kind=row", "train.whitening=element"], "expected train.whitening = 'least_squares', found 'element'"),
        ([*ROW, "train.pairs=disk"], "draws noise afresh; expected train.pairs = 'fresh', found 'disk'"),
        ([*ROW, "map.derived=['tage']"], "map.derived: tage is a parameter of this model already"),
        (["map.derived=['tage']"], "map.derived: tage is a parameter of this model already"),
        ([*ROW, "noise.kernel=[1.0, 0.3]"], "has its gaps in noise.observing, and knows no kernel"),
        ([*ROW, "noise.missing.probability=0.1"], "has its gaps in noise.observing, .* no noise.missing"),
        ([*ROW, "noise.space=log10"], "kind = 'row' is Gaussian in flux; expected space = 'flux'"),
        ([*ROW, "noise.sigma_flam=1e-9"], "sigma_flam belongs to kind = 'constant', found kind = 'row'"),
        ([*ROW, "noise.poisson_share=0.5"], "poisson_share belongs to kind = 'catalog', found kind = 'row'"),
        ([*ROW, "train.embedding=conv"], "expected whitening = 'element', found 'least_squares'"),
        ([*ROW, "noise.fraction=0.1"], "does not use fraction; .* noise.observing.floor, .* map.error_floor"),
        (["noise.calibration_order=2"], "calibration_order belongs to kind = 'row', found kind = 'fractional'"),
        (["noise.observing.gaps=2"], "observing belongs to kind = 'row', found kind = 'fractional'"),
        ([*ROW, "noise.calibration_order=13"], "noise.calibration_order: .* less than or equal to 12, found 13"),
        ([*ROW, "noise.calibration_width=0.6"], "noise.calibration_width: .* less than or equal to 0.5, found 0.6"),
        ([*ROW, "map.error_floor=-0.1"], "map.error_floor: .* greater than or equal to 0, found -0.1"),
        ([*ROW, "map.error_floor=own"], "map.error_floor: .* 'fit', found 'own'"),
        ([*ROW, "map.mask_lines=some"], "map.mask_lines: .* boolean, .* found 'some'"),
        ([*ROW, "model.age=gyr"], "model.age: .*'tage' or 'tage_tuniv', found 'gyr'"),
        (
            [*ROW, "model.age=tage_tuniv", "prior.tage={low=1, high=2}"],
            "prior.tage: model.age = 'tage_tuniv' needs prior.tage_tuniv in its place",
        ),
        (
            [*ROW, "prior.tage_tuniv={low=0.1, high=0.5}"],
            "prior.tage_tuniv: model.age = 'tage' needs prior.tage in its place",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("redshift=[0.6, 0.1]", "observing: redshift: expected the least value first, found 0.6 and 0.1"),
        ("redshift=[0.1, 40]", "observing: redshift: expected at most 20, as in a catalog, found 40"),
        ("redshift=[0.0, 0.1]", "observing.redshift.0: .* greater than 0, found 0.0"),
        ("snr=[60, 2]", "observing: snr: expected the least value first, found 60 and 2"),
        (
            "blue_end_angstrom=[3900, 3550]",
            "observing: blue_end_angstrom: expected the least value first, found 3900 and 3550",
        ),
        (
            "red_end_angstrom=[9900, 9000]",
            "observing: red_end_angstrom: expected the least value first, found 9900 and 9000",
        ),
        ("floor=[0.05, 0.005]", "observing: floor: expected the least value first, found 0.05 and 0.005"),
        ("floor=[0.0, 0.05]", "observing.floor.0: .* greater than 0"),
        ("blue_end_angstrom=[3550, 9000]", "observing: blue_end_angstrom: expected spectra to begin before they end"),
        ("sky_errors=0.5", "observing.sky_errors: .* greater than or equal to 1"),
        ("error_slope=-1", "observing.error_slope: .* greater than or equal to 0"),
        ("gaps=-1", "observing.gaps: .* greater than or equal to 0"),
        ("gap_share=1.5", "observing.gap_share: .* less than or equal to 1"),
        ("bad_elements=2", "observing.bad_elements: .* less than or equal to 1"),
        ("masked_lines=1.5", "observing.masked_lines: .* less than or equal to 1"),
        ("donors=all", "observing.donors: .* 'none' or 'catalog', found 'all'"),
        ("donor_snr_factor=[2, 1]", "observing: donor_snr_factor: expected the least value first, found 2 and 1"),
        ("missing_arm=0.1", "observing: missing_arm: expected two arms or more in arms, found 0"),
        ("arms=[[5000, 4000], [3000, 4000]]", "observing: arms: expected each to begin before it ends, found 5000 to"),
        ("snrs=[1, 2]", r"observing.snrs: unknown key; did you mean noise.observing.snr\?"),
    ],
)
def test_rows_that_no_survey_has_are_refused_by_name(override, message):
    with pytest.raises(ConfigError, match=f"noise.{message}"):
        load_config(None, [*ROW, f"noise.observing.{override}"])


def test_a_single_value_is_a_range_too():
    observing = load_config(None, [*ROW, "noise.observing.snr=[10, 10]"]).noise.observing
    assert observing.snr == (10, 10)


@pytest.mark.parametrize("value", [-0.1, 1.5, "own"])
def test_a_key_of_several_kinds_is_named_as_it_is_written(value):
    with pytest.raises(ConfigError) as raised:
        load_config(None, [*ROW, f"map.error_floor={value}"])
    # One line for each kind that the value might have been of.
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("  - map.error_floor: ")
        assert line.endswith(f", found {value!r}")


def test_the_preset_of_one_age_is_not_taken_with_the_other():
    with pytest.raises(ConfigError, match="prior.tage_tuniv: model.age = 'tage' needs prior.tage in its place"):
        load_config("survey", ["model.age=tage", "map.derived=[]"])
    chosen = [*ROW, "model.age=tage_tuniv", "prior.tage_tuniv={low=0.1, high=0.5}"]
    prior = load_config(None, chosen).make_prior()
    age = prior.index("tage_tuniv")
    assert (prior.low[age], prior.high[age]) == (0.1, 0.5)


def test_what_fits_together_is_taken():
    config = load_config(None, [*ROW, "model.age=tage_tuniv", "map.derived=['tage', 'sfr_10']", "noise.fraction=0"])
    assert config.noise.kind == "row"
    assert config.make_prior().names == ("logmass", "logzsol", "dust2", "tage_tuniv", "logtau")
    assert config.noise.by_row
    assert not load_config(None).noise.by_row
    assert (config.noise.needs_catalog, config.noise.scales_with_flux) == (False, True)
    assert load_config(None, [*ROW, "train.amplitude=equivariant"]).train.amplitude == "equivariant"
    fitted = load_config(None, [*ROW, "map.error_floor=fit"])
    assert SurveyConfig.model_validate_json(fitted.model_dump_json()).map.error_floor == "fit"
    constant = load_config(None, [*ROW, "model.age=tage_tuniv", "model.sfh=constant"])
    assert constant.make_prior().names == ("logmass", "logzsol", "dust2", "tage_tuniv")
    survey = load_config("survey")
    assert (survey.noise.kind, survey.train.whitening, survey.model.age) == ("row", "least_squares", "tage_tuniv")


ADDED = {
    "noise.calibration_order": (NoiseConfig, "4", 4, 6),
    "noise.calibration_width": (NoiseConfig, "0.01", 0.01, 0.03),
    "noise.observing": (NoiseConfig, "{gaps=5}", ObservingConfig(gaps=5), ObservingConfig()),
    "noise.photometry": (
        NoiseConfig,
        "{filters=['sdss_r0']}",
        PhotometryConfig(filters=("sdss_r0",)),
        PhotometryConfig(),
    ),
    "model.age": (ModelConfig, "tage_tuniv", "tage_tuniv", "tage"),
    "model.dust_law": (ModelConfig, "'smc'", "smc", "calzetti"),
    "model.sfh_bins": (ModelConfig, "5", 5, 7),
    "map.history_lookback_gyr": (MapConfig, "[0.1, 2]", (0.1, 2.0), ()),
    "map.error_floor": (MapConfig, "0.04", 0.04, 0.02),
    "map.mask_lines": (MapConfig, "false", False, True),
}


def test_redshifts_of_a_catalog_and_of_simulations_have_one_limit():
    bits = redshift_quality(np.array([MAX_REDSHIFT, MAX_REDSHIFT + 0.1]))
    assert (bits != 0).tolist() == [False, True]
    load_config(None, [*ROW, f"noise.observing.redshift=[0.1, {MAX_REDSHIFT}]"])
    with pytest.raises(ConfigError, match="expected at most 20, as in a catalog, found 20.1"):
        load_config(None, [*ROW, f"noise.observing.redshift=[0.1, {MAX_REDSHIFT + 0.1}]"])


def test_the_range_of_redshifts_is_part_of_what_simulations_are():
    assert NoiseModel.from_config(load_config(None).noise).redshift_key == {}
    config = load_config(None, [*ROW, "noise.observing.redshift=[0.1, 0.2]"])
    recipe = {"format": formats.SIMULATIONS, "stream": "simulate", "redshift": [0.1, 0.2]}
    recipe |= RunIdentity.of_config(config, WavelengthGrid.from_config(config.grid)).key("model", "prior")
    check_recipe(recipe, config)
    for other in (load_config(None, ROW), load_config(None)):
        with pytest.raises(StageError, match="redshift: simulations"):
            check_recipe(recipe, other)


def test_what_needs_spectra_without_redshifts_is_refused(tmp_path):
    config = load_config(None, ROW)
    with pytest.raises(ConfigError, match="noise.observing.donors = 'catalog' takes errors from a catalog"):
        fake_catalog(tmp_path / "fake.zarr", load_config(None, [*ROW, "noise.observing.donors=catalog"]), 10)
    with Survey.open(tmp_path / "run", config, quiet=True) as survey, pytest.raises(ConfigError, match="no pairs"):
        survey.augment()


def test_settings_taken_from_a_posterior_can_be_written_and_read():
    identity = identify(shipped()["survey"], seed=1)
    for train in ({}, {"embedding": "conv", "whitening": "element", "pairs": "disk"}):
        config = identity.adopt(SurveyConfig.model_validate({"train": train}))
        assert SurveyConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ConfigError, match="prior.tage: the posterior has prior.tage_tuniv in its place"):
        identity.adopt(SurveyConfig.model_validate({"prior": {"tage": {"low": 0.1, "high": 3.0}}}))


def test_only_a_floor_that_was_fitted_is_taken_for_a_fit(tmp_path):
    config = load_config(None, [*ROW, "map.error_floor=fit"])
    with Survey.open(tmp_path / "run", config, quiet=True) as survey:
        survey.manifest.stages["map"] = {"key": {"map": {}}, "status": "done"}
        survey.take_mapped_floor()
        assert survey.config.map.error_floor == "fit"
        survey.manifest.data["inputs"]["error_floor"] = {"floor": 0.02}
        survey.take_mapped_floor()
        assert survey.config.map.error_floor == 0.02


@pytest.mark.parametrize("setting", ["error_floor=fit", "error_floor=0.03", "mask_lines=false"])
def test_settings_of_the_map_that_the_posterior_has_no_use_for_are_refused(setting, tmp_path):
    identity = identify(shipped()["digs2022"], seed=1)
    config = load_config("digs2022", [f"map.{setting}"])
    with (
        Survey.open(tmp_path / "run", config, quiet=True) as survey,
        pytest.raises(ConfigError, match=f"map.{setting.partition('=')[0]} needs a posterior that is shown"),
    ):
        survey._fit_error_floor(identity, None)


def test_a_row_posterior_and_its_noise_go_to_other_processes():
    posterior = FrozenPosterior.load(shipped()["survey"])
    elements = len(posterior.grid)
    row = np.concatenate([np.full(elements, 1e-17), np.full(elements, 1e18), [0.1]])[None]
    drawn = posterior.sample(row, 16)
    sent = pickle.loads(pickle.dumps(posterior))
    assert not sent._recent
    np.testing.assert_array_equal(sent.sample(row, 16), drawn)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(posterior.noise)).lines, posterior.noise.lines)


def test_these_are_all_that_was_added():
    sections = {"noise": NoiseConfig, "model": ModelConfig, "map": MapConfig}
    # A parameter file brings more than a key: tests/unit/test_param_file.py.
    assert {*ADDED, "model.param_file"} == {
        f"{name}.{key}" for name, section in sections.items() for key in section.added
    }
    for name in SurveyConfig.model_fields:
        if name not in (*sections, "prior", "seed"):
            assert not type(getattr(load_config(None), name)).added


@pytest.mark.parametrize("mode", ["python", "json"])
@pytest.mark.parametrize("key", ADDED)
def test_an_added_key_is_written_only_where_it_is_changed(key, mode):
    section, _, name = key.partition(".")
    model, text, changed, default = ADDED[key]
    assert model.model_fields[name].get_default() == default
    plain, other = load_config(None, ROW), load_config(None, [*ROW, f"{key}={text}"])
    same = load_config(None, [*ROW, f"{key}={json.dumps(default)}"] if name not in ("observing", "photometry") else ROW)
    for config in (plain, same):
        written = config.model_dump(mode=mode)
        assert name not in written[section]
        assert name not in getattr(config, section).model_dump(mode=mode)
        assert getattr(getattr(SurveyConfig.model_validate(written), section), name) == default
    written = other.model_dump(mode=mode)
    assert name in written[section]
    assert getattr(getattr(other, section), name) == changed
    assert SurveyConfig.model_validate(written) == other
    assert SurveyConfig.model_validate_json(other.model_dump_json()) == other
    assert other.hash(section) != plain.hash(section) == same.hash(section)
    # Of the others, what was known before is written as ever.
    rest = {known: value for known, value in written[section].items() if known != name}
    assert rest == plain.model_dump(mode=mode)[section]


def test_a_part_of_an_added_section_that_is_changed_is_written_with_all_of_it():
    config = load_config(None, [*ROW, "noise.observing.snr=[5, 20]"])
    written = json.loads(config.model_dump_json())["noise"]["observing"]
    assert written["snr"] == [5, 20]
    assert set(written) == set(ObservingConfig.model_fields) - ObservingConfig.added


def test_settings_without_row_noise_are_written_as_before_it():
    written = load_config("digs2022").model_dump(mode="json")
    assert set(written["noise"]) == {"kind", "fraction", "space", "sigma_flam", "poisson_share", "kernel", "missing"}
    assert "age" not in written["model"]
    assert not {"error_floor", "mask_lines"} & set(written["map"])
    names = [parameter["name"] for parameter in load_config("digs2022").make_prior().to_dict()]
    assert "tage_tuniv" not in names
