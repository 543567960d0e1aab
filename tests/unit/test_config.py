"""Configuration: presets load, overrides apply, and every mistake is named."""

from __future__ import annotations

import pytest

from digs_survey.config import load_config, presets
from digs_survey.config.loading import RENAMED
from digs_survey.errors import ConfigError
from digs_survey.prior import Prior


def test_presets_load_and_digs2022_is_the_papers():
    assert {"digs2022", "faint", "paper", "quick", "sdss"} <= set(presets())
    for name in presets():
        load_config(name)
    config = load_config("digs2022")
    prior = config.make_prior()
    assert prior.names == ("logmass", "logzsol", "dust2", "tage", "logtau")
    assert prior.low.tolist() == [8.0, -2.0, 0.1, 0.01, -1.0]
    assert prior.high.tolist() == [13.0, 0.2, 1.0, 4.0, 1.0]
    assert (config.train.amplitude, config.simulate.simulations) == ("equivariant", 2_000_000)


def test_the_preset_paper_is_digs2022_with_the_papers_pairs_and_chains():
    paper, ours = load_config("paper"), load_config("digs2022")
    assert paper.make_prior() == ours.make_prior()
    apart = {"audit": True, "prior": True, "simulate": {"simulations"}, "augment": True, "train": {"pairs"}}
    assert paper.model_dump(exclude=apart) == ours.model_dump(exclude=apart)
    assert (paper.simulate.simulations, paper.augment.draws_per_spectrum) == (10_000, 200)
    assert (paper.train.pairs, ours.train.pairs) == ("disk", "fresh")
    # The number of noisy spectra in one pass of the training is the same.
    assert 10_000 * 200 == ours.simulate.simulations
    own = {"galaxies": True, "mcmc": True}
    assert paper.audit.model_dump(exclude=own) == ours.audit.model_dump(exclude=own)
    mcmc = paper.audit.mcmc
    assert (mcmc.engine, mcmc.moves, mcmc.walkers) == ("prospector", "stretch", 128)
    assert mcmc.burn_in == (4096, 4096, 2048, 512)
    # 128 steps and no more: too few to be called converged, unless the autocorrelation time were below 2.6 steps.
    assert mcmc.steps == mcmc.max_steps == 128
    assert load_config("paper", ["audit.mcmc.max_steps=20_000"]).audit.mcmc.max_steps == 20_000


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "survey.toml"
    path.write_text("seed = 5\n[train]\nepochs = 7\n")
    config = load_config(path, ["train.epochs=9", "noise.space=log10", "prior.tage={low=1, high=2}"])
    assert (config.seed, config.train.epochs, config.noise.space) == (5, 9, "log10")
    assert config.make_prior().low[3] == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", r"train.epoch: unknown key; did you mean train.epochs\?"),
        ("trian.epochs=5", r"trian: unknown key; did you mean train\?"),
        ("audit.mcmc.walker=40", r"did you mean audit.mcmc.walkers\?"),
        ("audit.mcmc.walkers=11", "expected 12 or more for the 5 parameters of this prior, found 11"),
        ("train.epochs=many", r"train.epochs: .*integer.* found 'many'"),
        ("prior.age={low=0, high=1}", "unknown parameter 'age'"),
        ("prior.tage={low=3, high=1}", "prior.tage: expected finite low < high"),
        ("map.quantiles=[0.5, 0.16]", "increasing quantiles"),
        ("map.quantiles=[0.16, 0.5, 0.50000001]", "found two of 50 %"),
        ("noise.fraction=-1", "noise.fraction"),
        ("noise.fraction=0", "kind = 'fractional' needs noise.fraction > 0"),
        ("noise={kind='catalog', space='log10'}", "kind = 'catalog' is Gaussian in flux; expected space = 'flux'"),
        ("noise.sigma_flam=1e-9", "sigma_flam belongs to kind = 'constant', found kind = 'fractional'"),
        ("noise={kind='constant', sigma_flam=[1e-9, 0.0]}", r"noise.sigma_flam.1: .* greater than 0, found 0.0"),
        ("noise.poisson_share=0.5", "poisson_share belongs to kind = 'catalog'"),
        ("noise={kind='catalog', poisson_share=1.5}", "noise.poisson_share: .* less than or equal to 1, found 1.5"),
        ("noise.kernel=[]", "kernel"),
        ("noise.kernel=[1.0, 0.5]", r"kernel = \[1.0, 0.5\] leaves .* first weight above twice the sum of the others"),
        ("noise.missing.probability=2", "noise.missing.probability"),
        ("noise.missing.elements=[5, 2]", "noise.missing: elements: expected the shortest stretch before the longest"),
        ("noise.missing.element=[2, 5]", r"did you mean noise.missing.elements\?"),
        ("grid.stop_angstrom=10", "stop_angstrom"),
        ("epochs", "expected section.key=value"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_all_mistakes_come_at_once():
    with pytest.raises(ConfigError) as error:
        load_config(None, ["train.epoch=5", "mcmc=3", "simulate.simulations=0"])
    assert all(name in str(error.value) for name in ("train.epoch", "mcmc", "simulate.simulations"))


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 7\n")
    assert load_config(path).seed == 7


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'digs2022'\? Presets: desi, digs2022, faint, nirspec-prism"):
        load_config("digs2202")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "missing.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="expected a TOML file, found a folder"):
        load_config(tmp_path / "folder.toml")
    with pytest.raises(ConfigError, match="expected a TOML file, found a folder"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"nor a preset\. Presets: "):
        load_config("unlike-any")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)


def test_hash_follows_the_sections():
    one, other = load_config(None), load_config(None, ["train.epochs=3"])
    assert one.hash("model", "prior") == other.hash("model", "prior")
    assert one.hash("train") != other.hash("train")
    explicit = load_config(None, ["prior.tage={low=0.01, high=4.0}"])
    assert explicit.hash("prior") == one.hash("prior")


def test_a_constant_history_has_no_tau():
    config = load_config(None, ["model.sfh=constant"])
    assert config.make_prior().names == ("logmass", "logzsol", "dust2", "tage")
    assert Prior.from_dict(config.make_prior().to_dict()) == config.make_prior()
    assert load_config("digs2022", ["model.sfh=constant"]).make_prior() == config.make_prior()


def test_constant_noise_is_given_or_the_catalogs():
    config = load_config(None, ["noise.kind=constant", "noise.sigma_flam=1e-9", "noise.fraction=0"])
    assert (config.noise.sigma_flam, config.noise.fraction, config.noise.needs_catalog) == ((1e-9,), 0.0, False)
    assert load_config(None, ["noise.kind=constant"]).noise.needs_catalog


def test_noise_that_does_not_fit_the_grid_is_refused():
    config = load_config(None, ["noise.kind=constant", "noise.sigma_flam=[1e-9, 2e-9]"])
    config.noise.check_elements(2)
    with pytest.raises(ConfigError, match="noise.sigma_flam: expected one number or 138, .* found 2"):
        config.noise.check_elements(138)
    config = load_config(None, ["noise.missing={probability=0.1, stretches=4, elements=[2, 5]}"])
    config.noise.check_elements(21)
    with pytest.raises(ConfigError, match="up to 4 stretches of up to 5 elements may take all 20"):
        config.noise.check_elements(20)


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("simulate.draws=sobol", "simulate.sampling"),
        ("train.features=asinh", "train.flux_transform"),
        ("infer.importance=all", "importance (with the keys rows, draws and simulations)"),
        ("map.least_pvalue=0.1", "map.min_pvalue"),
        ("audit.mcmc.limit_s=5", "audit.mcmc.timeout_s"),
        ("escalate.below=0.5", "escalate.agreement_threshold"),
        ("escalate.trust_threshold=0.5", "escalate.agreement_threshold"),
        ("escalate.least_ess=5", "escalate.min_ess"),
    ],
)
def test_an_earlier_name_of_a_key_names_the_new_one(override, now):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    old = "infer" if key.startswith("infer") else key
    assert f"{old}: this key is now called {now}" in str(caught.value)


def test_each_new_name_is_a_key():
    for now in set(RENAMED.values()):
        value = load_config(None)
        for part in now.partition(" ")[0].split("."):
            value = getattr(value, part)
