"""Noiseless spectra: the batched model against one Prospector call after the other, one core, 138 elements.

Both make the same spectra of the delayed-tau model from the BC03-MILES populations.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks._form import finish, parser, repeat
from digs_survey.config import load_config
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.batched import BatchedModel
from digs_survey.sps.prospector import ProspectorSimulator

REFERENCE = 1_000
"""Batch at which the ratio is taken."""


def main() -> None:
    options = parser("simulate", __doc__ or "")
    args = options.parse_args()
    one_by_one, largest, times = (200, 10_000, 3) if args.quick else (1_000, 100_000, 7)
    sizes = [10**k for k in range(6) if 10**k <= largest]
    config = load_config("digs2022")
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = prior.from_unit_cube(np.random.default_rng(1).random((largest, prior.ndim)))
    tensor = torch.as_tensor(theta[:REFERENCE])
    torch.set_num_threads(1)

    with threadpool_limits(1):
        prospector, batched = (
            ProspectorSimulator(config.model, prior, grid),
            BatchedModel.from_config(config.model, prior, grid),
        )
        some = theta[:one_by_one]
        difference = float(np.abs(batched.spectra(some) / prospector.spectra(some) - 1).max())
        counts = [max(size, min(REFERENCE, 100 * size)) for size in sizes]

        def in_batches(size: int, count: int) -> None:
            for start in range(0, count, size):
                batched.spectra(theta[start : start + size])

        seconds = repeat(
            [
                lambda: prospector.spectra(some),
                lambda: batched.spectra(tensor),
                *(
                    lambda size=size, count=count: in_batches(size, count)
                    for size, count in zip(sizes, counts, strict=True)
                ),
            ],
            times,
        )
    calls = [one_by_one / s for s in seconds[0]]
    on_torch = [REFERENCE / s for s in seconds[1]]
    rates = {size: [count / s for s in row] for size, count, row in zip(sizes, counts, seconds[2:], strict=True)}
    ratios = [a / b for a, b in zip(rates[REFERENCE], calls, strict=True)]
    finish(
        f"noiseless spectra of {len(grid)} elements, bc03, one core; largest difference of the two {difference:.1e}",
        [
            ("Prospector, one call each", calls, "spectra/s"),
            *((f"batched, {size:,} at a time", rates[size], "spectra/s") for size in sizes),
            (f"batched on torch, {REFERENCE:,} at a time", on_torch, "spectra/s"),
            (f"ratio at {REFERENCE:,}", ratios, ""),
        ],
        {
            "benchmark": "simulate",
            "elements": len(grid),
            "cores": 1,
            "repeats": times,
            "prospector_bc03_per_s_core": statistics.median(calls),
            "batched_per_s_core": statistics.median(rates[REFERENCE]),
            "batched_torch_per_s_core": statistics.median(on_torch),
            "ratio_bc03": statistics.median(ratios),
            "max_difference": difference,
        },
        args.json,
    )


if __name__ == "__main__":
    main()
