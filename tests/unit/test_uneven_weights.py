"""UNEVEN_WEIGHTS: set by the tail of the weights and by their effective sample size, each by itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from digs_survey.importance.weights import Importance
from digs_survey.infer.rows import _put_importance
from digs_survey.quality import QualityFlag


def test_two_effective_draws_of_a_thousand_are_uneven_whatever_the_tail_looks_like():
    found = replace(
        Importance.unknown(4, 1, 1),
        ess=np.array([2.0, 900.0, 25.0, np.nan], dtype=np.float32),
        pareto_k=np.array([0.61, 0.2, 0.71, np.nan], dtype=np.float32),
    )
    drawn = SimpleNamespace(
        flux=None, good=None, errors=None, theta=None, rows=np.arange(4), finite=np.array([True, True, True, True])
    )
    quality = np.zeros(4, dtype=np.int64)
    _put_importance(Importance.unknown(4, 1, 1), quality, drawn, lambda *_: found)
    assert ((quality & int(QualityFlag.UNEVEN_WEIGHTS)) != 0).tolist() == [True, False, True, True]
