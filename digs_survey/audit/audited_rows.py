"""What is known of each audited row, as arrays of audit.zarr, and what follows for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.audit.mcmc.agreement import median_of
from digs_survey.audit.mcmc.galaxy_fit import FitSetup, GalaxyFit
from digs_survey.audit.sample import Sample
from digs_survey.prior import Prior

__all__ = ["chain_summary", "distance_summary", "sample_arrays", "stack_fits"]


def sample_arrays(sample: Sample, npe: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Return what is known of the sampled rows before they are fitted, with draws (row, draw, parameter)."""
    seen = sample.prepared
    return {
        "row": sample.selection.rows,
        "weight": sample.selection.weight,
        "galaxy_id": sample.galaxy_id,
        "redshift": sample.redshift,
        "snr": sample.snr,
        "truth": sample.truth,
        "npe": npe,
        "flux": seen.spectrum,
        "good": seen.spectrum_good,
        "n_good": seen.good.sum(axis=1, dtype=np.int32),
    }


def stack_fits(setup: FitSetup, fits: Sequence[GalaxyFit]) -> dict[str, NDArray[Any]]:
    """Arrays of all fits, galaxies first; right in shape also where there are none."""
    pattern = GalaxyFit.failed(setup, "")
    renamed = {"draws": "mcmc", "band": "predictive"}
    stacked = {}
    for name, value in vars(pattern).items():
        if name == "error":
            continue
        values = [getattr(fit, name) for fit in fits]
        dtype = np.asarray(value).dtype
        stacked[renamed.get(name, name)] = np.array(values, dtype=dtype).reshape(len(fits), *np.shape(value))
    return stacked


def distance_summary(prior: Prior, fits: Sequence[GalaxyFit]) -> dict[str, Any]:
    """Medians over the converged chains; None where there are none."""
    each = np.array([fit.wasserstein_sigma for fit in fits]).reshape(-1, prior.ndim)
    return {
        "median_wasserstein_sigma": dict(zip(prior.names, map(median_of, each.T), strict=True)),
        "median_sliced_distance": median_of(np.array([fit.sliced_distance for fit in fits], dtype=float)),
        "median_c2st": median_of(np.array([fit.c2st for fit in fits], dtype=float)),
        "max_r_hat": max((float(fit.r_hat.max()) for fit in fits if np.isfinite(fit.r_hat).all()), default=None),
    }


def chain_summary(fits: Sequence[GalaxyFit], engine: str) -> dict[str, Any]:
    """Whose spectra the chains used, what a likelihood cost, and how far it was from Prospector's."""
    done = [fit for fit in fits if not fit.error]
    total = sum(fit.likelihoods for fit in done)
    other = median_of(np.array([fit.other_core_s for fit in done]))
    own = sum(fit.core_s for fit in done) / total if total else None
    return {
        "engine": engine,
        "likelihoods": total,
        "core_s_per_likelihood": own,
        "core_s_per_prospector_likelihood": own if engine == "prospector" else other,
        "core_s_per_batched_likelihood": own if engine == "batched" else other,
        "max_log_likelihood_difference": max((fit.log_likelihood_difference for fit in done), default=None),
    }
