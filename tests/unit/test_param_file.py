from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.stats

from digs_survey.config import ModelConfig, load_config
from digs_survey.distributions import StudentT
from digs_survey.errors import ConfigError, NotBatchedError
from digs_survey.identity import RunIdentity
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.engine import why_not_batched
from digs_survey.sps.param_file import FileSimulator, ParamFile, simulator_of
from digs_survey.sps.universe import physical_theta

GRID = ["grid.start_angstrom=4000", "grid.stop_angstrom=5000", "grid.step_angstrom=20"]
HEAD = """
import numpy as np
from prospect.models import SedModel, priors

def free(name, prior, n=1):
    return {"name": name, "N": n, "isfree": True, "init": np.zeros(n), "prior": prior}

def fixed(name, init, **more):
    return {"name": name, "N": 1, "isfree": False, "init": init, **more}

"""
GALAXY = (
    HEAD
    + """
run_params = {"sigma": 350.0}

def mass(logmass=0.0, **extras):
    return 10.0 ** logmass

def build_model(sigma=1.0, **extras):
    return SedModel([
        free("dust2", priors.TopHat(mini=0.1, maxi=1.0)),
        free("logmass", priors.TopHat(mini=9.0, maxi=11.0)),
        free("logzsol", priors.TopHat(mini=-1.0, maxi=0.1)),
        free("tage", priors.LogUniform(mini=0.1, maxi=4.0)),
        fixed("mass", 1.0, depends_on=mass), fixed("tau", 1.0), fixed("sfh", 4), fixed("dust_type", 2),
        fixed("sigma_smooth", sigma), fixed("smoothtype", "vel"), fixed("fftsmooth", True), fixed("zred", 0.0),
    ])

def build_sps(**extras):
    from digs_survey.sps.bc03 import BC03Basis, read_bc03
    from digs_survey.sps.sampling import smoothing_grid
    wavelength = smoothing_grid(3600.0, 5600.0, 350.0, 350.0)
    return BC03Basis(read_bc03(wavelength, gas_logu=-2.0, nebular=False, max_age_gyr=4.0))
"""
)


def one_prior(prior: str, n: int = 1, more: str = "") -> ParamFile:
    text = f"{HEAD}def build_model(**extras):\n    return SedModel([free('x', {prior}, {n}){more}])\n"
    return ParamFile("my_params.py", text)


def test_parameters_and_priors_are_the_files(tmp_path):
    (tmp_path / "galaxy.py").write_text(GALAXY)
    file = ParamFile.read(tmp_path / "galaxy.py")
    found = file.describe()
    assert found.about.parameters == ("dust2", "logmass", "logzsol", "tage")
    assert found.about.units == ("", "dex(solMass)", "dex", "Gyr")
    assert found.about.sha256 == hashlib.sha256(GALAXY.encode()).hexdigest()
    assert found.priors["tage"].prior == "log_uniform"
    assert found.zred is None


@pytest.mark.parametrize(
    ("prior", "exact"),
    [
        ("priors.TopHat(mini=1.0, maxi=3.0)", scipy.stats.uniform(1, 2)),
        ("priors.LogUniform(mini=1.0, maxi=3.0)", scipy.stats.reciprocal(1, 3)),
        ("priors.Normal(mean=1.0, sigma=0.5)", scipy.stats.norm(1, 0.5)),
        ("priors.ClippedNormal(mean=1.0, sigma=0.5, mini=0.8, maxi=2.0)", scipy.stats.truncnorm(-0.4, 2, 1, 0.5)),
        ("priors.LogNormal(mode=0.3, sigma=0.5)", scipy.stats.lognorm(0.5, scale=np.exp(0.3 + 0.25))),
        ("priors.Beta(alpha=3.0, beta=1.5, mini=0.0, maxi=2.0)", scipy.stats.beta(3, 1.5, 0, 2)),
    ],
)
def test_priors_are_prospectors(prior, exact):
    found = one_prior(prior).describe().priors["x"]
    values = exact.ppf(np.linspace(0.01, 0.99, 21))
    np.testing.assert_allclose(np.exp(found.log_pdf(values)), exact.pdf(values), rtol=1e-9)
    np.testing.assert_allclose(found.cdf(values), exact.cdf(values), rtol=1e-9)


def test_vectors_have_numbered_parameters_with_the_prior_of_each():
    prior = "priors.StudentT(mean=np.array([0.0, 0.1, 0.2]), scale=np.full(3, 0.3), df=np.full(3, 2.0))"
    found = one_prior(prior, 3).describe()
    assert found.about.parameters == ("x_1", "x_2", "x_3")
    third = found.priors["x_3"]
    assert isinstance(third, StudentT)
    assert (third.mean, third.scale, third.df) == (0.2, 0.3, 2.0)
    # Student's t has no ends: it is cut where a thousandth is beyond each.
    ends = scipy.stats.t(2, 0.2, 0.3).ppf([1e-3, 1 - 1e-3])
    np.testing.assert_allclose((third.low, third.high), ends)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build_model(:", r"my_params.py, line 1: SyntaxError"),
        ("\n\nimport no_such_module_x", r"my_params.py, line 3: ModuleNotFoundError.*no_such_module_x"),
        ("def build_model(**kw):\n    return 1 / 0", r"my_params.py, line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)", r"my_params.py, line 2: SystemExit: 3"),
        ("def build_model(needed):\n    pass", r"my_params.py: TypeError: build_model\(\) missing"),
        ("x = 1", r"expected a function build_model\(\*\*run_params\), found none"),
        ("run_params = 3", r"run_params: expected a dictionary, found int"),
    ],
)
def test_errors_have_the_files_name_and_line(text, message):
    with pytest.raises(ConfigError, match=message):
        ParamFile("my_params.py", text).describe()


@pytest.mark.parametrize(
    ("prior", "more", "message"),
    [
        ("priors.SkewNormal(location=0, sigma=1, skew=2)", "", "parameter 'x': expected a prior of TopHat.*SkewNormal"),
        ("priors.TopHat(mini=2.0, maxi=1.0)", "", "parameter 'x', prior TopHat.*expected finite low < high"),
        ("priors.TopHat(mini=0, maxi=1)", ", free('zred', priors.TopHat(mini=0, maxi=1))", "zred: expected a fixed"),
        ("priors.TopHat(mini=0, maxi=1)", ", fixed('lumdist', 10.0)", "lumdist: expected it left out"),
        ("priors.TopHat(mini=0, maxi=1)", ", free('t50', priors.TopHat(mini=0, maxi=1))", "'t50': expected another"),
    ],
)
def test_what_no_posterior_can_have_is_refused(prior, more, message):
    with pytest.raises(ConfigError, match=f"--param-file my_params.py: .*{message}"):
        one_prior(prior, more=more).describe()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no.py: expected a Python file"):
        ParamFile.read(tmp_path / "no.py")


@pytest.mark.parametrize(
    ("nebular", "resampled", "within"),
    # Prospector's smoothing by FFT resamples the populations, and so changes the light of lines of one sample.
    [(False, True, 2e-3), (True, False, 2e-4)],
)
def test_spectra_are_those_of_the_same_model_in_toml(nebular, resampled, within):
    text = GALAXY.replace("nebular=False", f"nebular={nebular}")
    file = ParamFile("galaxy.py", text.replace('"fftsmooth", True', f'"fftsmooth", {resampled}'))
    config = load_config(None, GRID, file.describe())
    grid, prior = WavelengthGrid.from_config(config.grid), config.make_prior()
    theta = prior.from_unit_cube(np.random.default_rng(1).random((6, prior.ndim)))
    found = simulator_of(config.model, prior, grid, file).spectra(physical_theta(prior, theta, np.nan))
    bounds = {name: prior.bounds(name) for name in prior.names}
    same = load_config(None, [f"prior.{n}={{low={low},high={high}}}" for n, (low, high) in bounds.items()])
    known = Prior({**same.prior, "logtau": {"value": 0.0}})
    columns = theta[:, [prior.index(name) for name in known.names]]
    expected = simulator_of(ModelConfig(nebular=nebular), known, grid).spectra(physical_theta(known, columns, np.nan))
    np.testing.assert_allclose(found, expected, rtol=within)


def test_without_the_file_nothing_is_executed():
    config = load_config(None, GRID, ParamFile("galaxy.py", GALAXY).describe())
    grid, prior = WavelengthGrid.from_config(config.grid), config.make_prior()
    with pytest.raises(ConfigError, match="file galaxy.py, whose code makes the spectra; name it with --param-file"):
        simulator_of(config.model, prior, grid)
    with pytest.raises(ConfigError, match="expected the file that the run was begun with, found another"):
        FileSimulator(ParamFile("galaxy.py", GALAXY + "\n"), config.model, grid)
    with pytest.raises(NotBatchedError, match="galaxy.py has no spectra in batches"):
        BatchedModel.from_config(config.model, prior, grid)
    assert why_not_batched(config.model, prior, grid) == "the model is that of the parameter file galaxy.py"


def test_another_file_is_another_run_and_no_file_the_same_as_before():
    one, other = (load_config(None, GRID, ParamFile("galaxy.py", text).describe()) for text in (GALAXY, GALAXY + "#"))
    grid = WavelengthGrid.from_config(one.grid)
    keys = [RunIdentity.of_config(config, grid).digest("model", "prior") for config in (one, other)]
    assert keys[0] != keys[1]
    assert one.hash() != other.hash()
    assert "param_file" not in load_config().model.model_dump()


def test_the_prior_survives_a_card_and_the_configuration_its_file(tmp_path):
    import tomli_w

    config = load_config(None, GRID, one_prior("priors.TopHat(mini=-1.0, maxi=3.0)", 2).describe())
    prior = config.make_prior()
    again = Prior.from_dict(prior.to_dict())
    assert again == prior
    assert again.from_file
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    assert load_config(tmp_path / "config.toml").hash() == config.hash()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[model]\nsfh = "tau"', "the configuration has model.sfh too"),
        ("[model.parameters]\nlogmass = 10.0", "the configuration has prior.logmass too"),
        ('[train]\namplitude = "equivariant"', "train.amplitude: expected 'feature', found 'equivariant'"),
        ('[map]\nderived = ["sfr_10"]', "map.derived: expected"),
        ('[audit.mcmc]\nengine = "batched"', "audit.mcmc.engine: expected 'prospector', found 'batched'"),
        ('[simulate]\nengine = "batched"', "simulate.engine: expected 'auto' or 'prospector', found 'batched'"),
    ],
)
def test_toml_that_contradicts_the_file_is_refused(tmp_path, toml, message):
    path = tmp_path / "my.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError, match=message):
        load_config(path, (), one_prior("priors.TopHat(mini=0.0, maxi=1.0)").describe())


def test_a_presets_model_gives_way():
    config = load_config("survey", (), ParamFile("galaxy.py", GALAXY).describe())
    assert config.make_prior().names == ("dust2", "logmass", "logzsol", "tage")
    assert (config.noise.by_row, config.train.amplitude, config.model.age) == (True, "feature", "tage")


def test_a_redshift_that_the_file_fixes_is_the_models(tmp_path):
    described = one_prior("priors.TopHat(mini=0.0, maxi=1.0)", more=", fixed('zred', 0.3)").describe()
    assert load_config(None, (), described).model.zred == 0.3
    (tmp_path / "my.toml").write_text("[model]\nzred = 0.1")
    with pytest.raises(ConfigError, match="it fixes zred = 0.3, and the configuration model.zred = 0.1"):
        load_config(tmp_path / "my.toml", (), described)
