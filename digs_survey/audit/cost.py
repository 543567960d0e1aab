r"""What posteriors cost, in core-seconds measured in the same run on the same cores.

With :math:`m` the mean cost of one converged MCMC fit, :math:`e` the cost of one galaxy in the map
stage, and :math:`T` the cost of simulating and training (and of the pairs, where it was trained on them),

- galaxies per MCMC fit, map only: :math:`m / e`;
- galaxies per MCMC fit with training, at a catalog of :math:`N` rows: :math:`m N / (T + e N)`, which is
  how many galaxies one MCMC fit's cost pays for once everything before the map is shared among them;
- break-even: the smallest whole number of galaxies from which on the neural posterior is the cheaper,
  :math:`\lceil T / (m - e) \rceil`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["cost_summary"]

_ONCE = ("simulate", "train")
_RESAMPLED = 2_000


def cost_summary(
    stages: Sequence[Mapping[str, Any]],
    mcmc_core_s: Sequence[float],
    catalog_rows: int,
    cores: int,
    *,
    engine: str = "prospector",
    other_core_s: Sequence[float] = (),
    elsewhere: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the costs of a run side by side.

    Parameters
    ----------
    stages : sequence of mapping
        What each stage took: ``stage``, ``wall_s``, ``core_s``, ``rows``; and ``key`` of the training, which names
        ``pairs`` if it was trained on those of the augment stage.
    mcmc_core_s : sequence of float
        Core-seconds of each converged MCMC fit, burn-in included.
    catalog_rows : int
        Rows of the catalog (N above).
    cores : int
        Cores that the run had.
    engine : {"prospector", "batched"}
        Whose spectra the chains used.
    other_core_s : sequence of float
        What the likelihoods of each converged fit would have cost by the other of the two.
    elsewhere : mapping, optional
        ``simulate_core_s``, ``train_core_s`` (and ``augment_core_s``) of a posterior that was not trained in this run.

    Returns
    -------
    dict
        The ``cost`` entry of audit.json. A number that cannot be known (a stage is missing, no chain
        converged, one galaxy costs more by NPE than by MCMC) is None. ``..._95`` are 95 % intervals, from the
        scatter of the chains' costs over galaxies (bootstrap). ``baselines`` has both kinds of chains; the figures
        beside it are those of ``mcmc_engine``. ``training_from`` tells whether simulation and training were paid in
        this ``run``, or are those on the posterior's ``card``.
    """
    by_name = {stage["stage"]: stage for stage in stages}
    npe = _per_row(by_name.get("map"))
    names = [*_ONCE, *(["augment"] if "pairs" in by_name.get("train", {}).get("key", {}) else [])]
    once, source = _once([by_name.get(name, {}).get("core_s") for name in names]), "run"
    if once is None and elsewhere:
        names = [*_ONCE, *(["augment"] if "augment_core_s" in elsewhere else [])]
        once, source = _once([elsewhere.get(f"{name}_core_s") for name in names]), "card"
    other = "batched" if engine == "prospector" else "prospector"
    baselines = {
        name: _baseline(costs, npe, once, catalog_rows)
        for name, costs in ((engine, mcmc_core_s), (other, other_core_s))
    }
    own = baselines[engine]
    keys = ("stage", "wall_s", "core_s", "rows")
    return {
        "stages": [{key: stage.get(key) for key in keys} for stage in stages],
        "npe_core_s_per_galaxy": npe,
        "once_core_s": once,
        "training_from": None if once is None else source,
        "mcmc_engine": engine,
        "mcmc_core_s_per_galaxy": own["core_s_per_galaxy"],
        "mcmc_core_s_per_galaxy_by_prospector": baselines["prospector"]["core_s_per_galaxy"],
        "galaxies_per_mcmc_fit_map_only": own["galaxies_per_fit_map_only"],
        "galaxies_per_mcmc_fit_with_training_at_catalog": own["galaxies_per_fit_with_training_at_catalog"],
        "galaxies_per_mcmc_fit_map_only_95": own["galaxies_per_fit_map_only_95"],
        "break_even_galaxies": own["break_even_galaxies"],
        "break_even_galaxies_95": own["break_even_galaxies_95"],
        "baselines": baselines,
        "catalog_rows": catalog_rows,
        "cores": cores,
    }


def _baseline(costs: Sequence[float], npe: float | None, once: float | None, rows: int) -> dict[str, Any]:
    """Say what one kind of chain costs, and the neural posterior against it."""
    known = [cost for cost in costs if math.isfinite(cost)]
    mcmc, limits = _mean(known), _mean_limits(known)
    map_only = with_training = break_even = map_only_limits = with_training_limits = break_even_limits = None
    if mcmc is not None and npe is not None:
        map_only = mcmc / npe
        map_only_limits = [limit / npe for limit in limits] if limits else None
        if once is not None:
            each = once / rows + npe
            with_training = mcmc / each
            with_training_limits = [limit / each for limit in limits] if limits else None
            break_even = math.ceil(once / (mcmc - npe)) if mcmc > npe else None
            if limits and limits[0] > npe:
                # The dearer a chain, the fewer galaxies.
                break_even_limits = [math.ceil(once / (limit - npe)) for limit in reversed(limits)]
    return {
        "core_s_per_galaxy": mcmc,
        "core_s_per_galaxy_95": limits,
        "galaxies_per_fit_map_only": map_only,
        "galaxies_per_fit_map_only_95": map_only_limits,
        "galaxies_per_fit_with_training_at_catalog": with_training,
        "galaxies_per_fit_with_training_at_catalog_95": with_training_limits,
        "break_even_galaxies": break_even,
        "break_even_galaxies_95": break_even_limits,
    }


def _once(parts: Sequence[Any]) -> float | None:
    known = [number for part in parts if (number := _number(part)) is not None]
    return math.fsum(known) if len(known) == len(parts) else None


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _mean_limits(values: Sequence[float]) -> list[float] | None:
    """Central 95 % interval of the mean (bootstrap); None for fewer than two values."""
    if len(values) < 2:
        return None
    means = np.random.default_rng(0).choice(np.asarray(values), size=(_RESAMPLED, len(values))).mean(axis=1)
    return [float(limit) for limit in np.quantile(means, (0.025, 0.975))]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _per_row(stage: Mapping[str, Any] | None) -> float | None:
    core_s = _number(stage.get("core_s")) if stage else None
    rows = stage.get("rows") if stage else None
    return core_s / rows if core_s and rows else None
