"""Gas of a metallicity and an ionisation parameter of its own: in batches and one spectrum at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from digs_survey.config import ModelConfig, load_config
from digs_survey.errors import ConfigError
from digs_survey.jit import PLAIN
from digs_survey.parameters import PARAMETERS
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.bc03 import BC03Basis, read_bc03
from digs_survey.sps.coverage import check_source
from digs_survey.sps.free_gas import GasRanges
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import physical_theta

LOGZ, LOGU = "model.parameters.gas_logz={low=-2.0, high=0.5}", "model.parameters.gas_logu={low=-4.0, high=-1.0}"
CLOUDS = ("model.dust_law=kriek_conroy", "model.parameters.dust1={low=0.0, high=2.0}")
SPREAD = "model.parameters.sigma_smooth={low=60, high=400}"
# Between H-alpha and [S II], and the lines themselves.
GRID = WavelengthGrid(np.arange(6190.0, 6750.0, 50.0))
WAVE = np.geomspace(4700, 6800, 1024)
RANGES = GasRanges((-2.0, 0.5), (-4.0, -1.0))


def rows_of(config, count=12, seed=1):
    """Physical theta of a model, half of them with young stars."""
    prior, rng = config.make_prior(), np.random.default_rng(seed)
    theta = prior.from_unit_cube(rng.random((count, prior.ndim)))
    if "tage" in prior.names:
        theta[::2, prior.index("tage")] = 10 ** rng.uniform(-1.99, -1, len(theta[::2]))
    else:
        theta[::2, prior.index("logsfr_ratios_1")] = rng.uniform(1, 4, len(theta[::2]))
    return physical_theta(prior, theta, np.full(count, 0.1))


@pytest.mark.parametrize(
    ("overrides", "rtol"),
    [
        ((LOGZ, LOGU), 1e-4),
        ((LOGU,), 1e-4),
        ((LOGZ, "model.gas_logu=-3.3"), 1e-4),
        (("model.parameters.gas_logz={tied='logzsol'}", "model.parameters.gas_logu=-2.7"), 1e-4),
        ((LOGZ, LOGU, "model.sfh=continuity"), 1e-4),
        ((LOGZ, LOGU, *CLOUDS), 1e-4),
        ((LOGZ, LOGU, SPREAD), 1e-3),
        ((LOGZ, LOGU, SPREAD, *CLOUDS), 1e-3),
    ],
)
def test_spectra_are_prospectors_compiled_plain_and_on_torch(overrides, rtol, monkeypatch):
    config = load_config(None, overrides)
    what, theta = (config.model, config.make_prior(), GRID), rows_of(config)
    model = BatchedModel.from_config(*what)
    flux = model.spectra(theta)
    np.testing.assert_allclose(flux, ProspectorSimulator(*what).spectra(theta), rtol=rtol)
    np.testing.assert_array_equal(np.concatenate([model.spectra(theta[[k]]) for k in range(4)]), flux[:4])
    np.testing.assert_allclose(model.spectra(torch.as_tensor(theta)).numpy(), flux, rtol=2e-5)
    monkeypatch.setenv(PLAIN, "1")
    np.testing.assert_allclose(model.spectra(theta), flux, rtol=2e-5)


def test_at_the_nodes_gas_that_follows_the_stars_is_that_of_the_files():
    """Also around metal-rich stars, whose gas is that of solar ones."""
    grid, free = read_bc03(WAVE, gas_logu=-2.25, max_age_gyr=0.1), read_bc03(WAVE, max_age_gyr=0.1, free_gas=RANGES)
    apart, together = BC03Basis(free), BC03Basis(grid)
    common = {"dust2": 0.3, "tage": 0.03, "tau": 1.0, "gas_logu": -2.25}
    for node in grid.log_z[1:-1]:
        expected = together.get_galaxy_spectrum(logzsol=node, **common)[1]
        found = apart.get_galaxy_spectrum(logzsol=node, gas_logz=node, **common)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.max())
        np.testing.assert_allclose(apart.get_galaxy_elines()[1], together.get_galaxy_elines()[1], rtol=1e-6)


def test_lines_shine_for_the_stars_photons_and_tell_metallicity_and_ionisation():
    basis = BC03Basis(read_bc03(WAVE, max_age_gyr=0.1, free_gas=RANGES))
    where = basis.grid.line_wavelength
    beta, oxygen, nitrogen, alpha = (
        int(np.abs(where - line).argmin()) for line in (4862.68, 5008.24, 6585.27, 6564.61)
    )

    def lines(logzsol, gas_logz, gas_logu, tage=0.003):
        basis.get_galaxy_spectrum(logzsol=logzsol, gas_logz=gas_logz, gas_logu=gas_logu, dust2=0.0, tage=tage, tau=1.0)
        return basis.get_galaxy_elines()[1]

    low, high = lines(0.0, 0.0, -3.5), lines(0.0, 0.0, -2.0)
    assert high[oxygen] / high[beta] > 5 * low[oxygen] / low[beta]
    poor, rich = lines(0.0, -1.5, -3.0), lines(0.0, 0.0, -3.0)
    assert rich[nitrogen] / rich[alpha] > 5 * poor[nitrogen] / poor[alpha]
    # H-beta counts photons, whatever the gas.
    assert poor[beta] == pytest.approx(rich[beta], rel=0.3)
    # The gas of stars younger than 1 Myr is that of their photons alone, whatever the stars.
    ours, suns = lines(-1.5, 0.0, -3.0, 5e-4), lines(0.0, 0.0, -3.0, 5e-4)
    assert abs(ours[beta] / suns[beta] - 1) > 0.02
    np.testing.assert_allclose(ours / suns, ours[beta] / suns[beta], rtol=1e-5)


def test_names_order_and_bounds():
    config = load_config("digs2022", [LOGZ, LOGU, *CLOUDS, SPREAD])
    names = ("logmass", "logzsol", "dust2", "dust1", "gas_logz", "gas_logu", "tage", "logtau", "sigma_smooth")
    assert config.make_prior().names == names
    assert [(PARAMETERS[name].low, PARAMETERS[name].high) for name in ("gas_logz", "gas_logu")] == list(RANGES)
    assert Prior.from_dict(config.make_prior().to_dict()) == config.make_prior()
    assert not {"gas_logz", "gas_logu"} & set(load_config("digs2022").make_prior().names)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([LOGZ, "model.nebular=false"], r"prior.gas_logz: model.nebular = false leaves the gas out; leave out"),
        ([LOGU, "model.gas_logu=-3"], r"prior.gas_logu is .* in the place of model.gas_logu; .* found .* = -3"),
        (["model.parameters.gas_logu=-2.5", "model.gas_logu=-3"], r"in the place of model.gas_logu; leave out one"),
        (
            ["model.parameters.gas_logZ={low=-1, high=0}"],
            r"'gas_logZ' \(did you mean 'gas_logz'\?\); the model",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"gas_logz": (-3.0, 0.0)}, r"prior.gas_logz: the gas of source 'bc03' covers -2.301 to 0.699, found -3 to 0"),
        ({"gas_logu": (-4.5, -1.0)}, r"prior.gas_logu: the gas of source 'bc03' covers -4 to 0, found -4.5 to -1"),
    ],
)
@pytest.mark.parametrize("build", [BatchedModel.from_config, ProspectorSimulator, check_source])
def test_a_prior_beyond_the_tables_is_refused_with_what_they_cover(build, prior, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig(), Prior(prior), GRID)


@pytest.mark.parametrize("build", [BatchedModel.from_config, ProspectorSimulator])
def test_a_model_without_gas_is_refused(build):
    with pytest.raises(ConfigError, match=r"prior.gas_logu: model.nebular = false"):
        build(ModelConfig(nebular=False), Prior({"gas_logu": (-3.0, -2.0)}), GRID)
