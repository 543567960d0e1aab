"""Whether the spectra of a model can be made in batches, and why not."""

from __future__ import annotations

from digs_survey.config import ModelConfig
from digs_survey.errors import NotBatchedError
from digs_survey.prior import Prior
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.arrays import one_thread
from digs_survey.sps.prospector import import_prospector
from digs_survey.sps.sampling import GridSampling
from digs_survey.sps.universe import physical_prior

__all__ = ["why_not_batched"]


def why_not_batched(model: ModelConfig, prior: Prior, grid: WavelengthGrid) -> str:
    """Return why the spectra of a model cannot be made in batches on a grid; "" where they can.

    Takes seconds where the line spread is free, and no time otherwise.

    Examples
    --------
    >>> from digs_survey.config import SurveyConfig
    >>> config = SurveyConfig()
    >>> why_not_batched(config.model, config.make_prior(), WavelengthGrid.from_config(config.grid))
    ''
    """
    if model.param_file is not None:
        return f"the model is that of the parameter file {model.param_file.name}"
    spread = prior.bounds("sigma_smooth")
    if spread is None:
        return ""
    import_prospector()
    from digs_survey.sps.batched import model_populations
    from digs_survey.sps.spread import spread_nodes

    with one_thread():
        sampling = GridSampling(model, grid, spread)
        try:
            spread_nodes(model_populations(model, physical_prior(prior), sampling.wavelength), sampling, *spread)
        except NotBatchedError as error:
            return str(error)
    return ""
