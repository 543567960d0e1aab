r"""Whether a survey's rows are distributed like simulations, and whether more of them lie in the tails.

The first is sbi's test of misspecification (Schmitt et al. 2021, arXiv:2112.08866): the maximum mean discrepancy (MMD)
between rows and simulations, against that between two halves of the simulations. It asks for the same distribution. No
survey that is not drawn from the prior has that of the features: one that is narrower is rejected too, with nothing
wrong. The residuals, which hardly know what galaxies there are, should have it. The second is one-sided: how many rows
lie beyond a point that a known share of the simulations is beyond.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from digs_survey.simulate.seeding import stream_key

__all__ = ["Discrepancy", "Excess", "discrepancy", "distance_excess", "share_excess"]

_ROWS = 500
"""Rows of each side: their distances, and those of the shuffles, take a few seconds."""
_SHUFFLES = 200
_LARGE = 1e3
"""Features are cut here: beyond it single precision cannot tell distances, and the kernel is zero long before."""


@dataclass(frozen=True)
class Discrepancy:
    """MMD between rows and simulations.

    Attributes
    ----------
    mmd : float
        With a Gaussian kernel as wide as the median distance (biased, squared).
    expected : tuple of float
        Percentiles 50 and 95 of the same between simulations.
    pvalue : float
        Of one more draw of the simulations having a larger one; at least 1 / (shuffles + 1).
    rows, simulations : int
        Of which the features were compared, drawn at random where there are more.
    excluded_nan, simulations_excluded_nan : int
        Left out before that, since a feature was not finite.
    shuffles : int
    """

    mmd: float
    expected: tuple[float, float]
    pvalue: float
    rows: int
    simulations: int
    excluded_nan: int
    simulations_excluded_nan: int
    shuffles: int

    def to_dict(self) -> dict[str, object]:
        """Return an entry of audit.json."""
        return asdict(self) | {"expected": list(self.expected)}


def discrepancy(rows: NDArray[np.floating], simulations: NDArray[np.floating], seed: int) -> Discrepancy | None:
    """Test whether vectors of rows (n, features) are distributed like those of simulations (m, features).

    None where fewer than two rows or four simulations are left, or most of them are the same vector, of which the
    kernel has no width. It depends on the features and the seed alone.
    """
    import torch
    from sbi.diagnostics.misspecification import calculate_baseline_mmd, compute_rbf_mmd_median_heuristic

    rng = np.random.default_rng(stream_key(seed, "misspecification"))
    finite, known = (np.isfinite(x).all(axis=1) for x in (rows, simulations))
    x, y = rows[finite], simulations[known]
    n, m = min(len(x), _ROWS, len(y) // 2), min(len(y) - len(y) // 2, _ROWS)
    if n < 2 or m < 2:
        return None
    x, y = (
        torch.as_tensor(np.clip(values[rng.permutation(len(values))], -_LARGE, _LARGE).astype(np.float32))
        for values in (x, y)
    )
    threads = torch.get_num_threads()
    # How a sum is shared among threads changes its last digits.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key(seed, "misspecification/shuffles"))
            # sbi's own p-value holds n rows against more simulations than it holds n simulations against, which have
            # another bias.
            mmd = float(compute_rbf_mmd_median_heuristic(x[:n], y[:m]))
            expected = calculate_baseline_mmd(n, y, n_shuffle=_SHUFFLES, max_samples=n + m).numpy()
    finally:
        torch.set_num_threads(threads)
    if not (np.isfinite(mmd) and np.isfinite(expected).all()):
        return None
    middle, high = np.quantile(expected, (0.5, 0.95)).tolist()
    return Discrepancy(
        mmd=mmd,
        expected=(middle, high),
        pvalue=float((1 + (expected >= mmd).sum()) / (1 + _SHUFFLES)),
        rows=n,
        simulations=m,
        excluded_nan=int((~finite).sum()),
        simulations_excluded_nan=int((~known).sum()),
        shuffles=_SHUFFLES,
    )


@dataclass(frozen=True)
class Excess:
    """Rows beyond a point, beside the simulations there.

    Attributes
    ----------
    limit : float
    rows, beyond : int
        In all, and beyond the limit.
    share : float
    interval : tuple of float
        95 % (Clopper and Pearson 1934), for the whole catalog.
    simulations_share : float
        Of simulations that is beyond the limit; for a percentile of theirs, that is to be expected.
    pvalue : float
        Of so many rows or more, were they simulations.
    """

    limit: float
    rows: int
    beyond: int
    share: float
    interval: tuple[float, float]
    simulations_share: float
    pvalue: float

    def to_dict(self) -> dict[str, object]:
        """Return an entry of audit.json."""
        return asdict(self) | {"interval": list(self.interval)}

    @classmethod
    def _of(cls, limit: float, beyond: int, rows: int, share: float, pvalue: float) -> Excess:
        low, high = stats.binomtest(beyond, rows).proportion_ci(0.95, method="exact")
        return cls(limit, rows, beyond, beyond / rows, (float(low), float(high)), share, float(pvalue))


def distance_excess(rows: NDArray[np.floating], simulations: NDArray[np.floating], level: float) -> Excess:
    """Count the rows beyond the percentile ``level`` of the simulations' distances; both finite and not empty.

    Of m simulations the k-th largest is that percentile: rows like them are beyond it with a chance that is beta
    distributed, so that their number is beta-binomial.
    """
    m, n = len(simulations), len(rows)
    k = max(1, round(m * (1 - level)))
    limit = float(np.sort(simulations)[-k])
    beyond = int((rows > limit).sum())
    return Excess._of(limit, beyond, n, k / (m + 1), stats.betabinom.sf(beyond - 1, n, k, m + 1 - k))


def share_excess(rows: NDArray[np.bool_], simulations: NDArray[np.bool_], limit: float) -> Excess:
    """Count the rows that are beyond a limit, against the simulations that are (Fisher's exact test, one-sided)."""
    n, m, beyond, simulated = len(rows), len(simulations), int(rows.sum()), int(simulations.sum())
    pvalue = stats.hypergeom.sf(beyond - 1, n + m, beyond + simulated, n)
    return Excess._of(limit, beyond, n, simulated / m, pvalue)
