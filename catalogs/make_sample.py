"""Make ``catalogs/sample.zarr``: spectra of our own simulator with noise, and their truth beside them.

Run from the root of the checkout: ``python catalogs/make_sample.py``. Every ``true_<parameter>`` column holds
the parameter that made the row; rows are drawn from the prior of the preset ``quick``, or of another one
(``python catalogs/make_sample.py faint.zarr --config faint``), in a stream of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from digs_survey.catalog import write_catalog
from digs_survey.config import load_config
from digs_survey.noise.model import NoiseModel
from digs_survey.simulate.prior_draws import draw_theta
from digs_survey.simulate.seeding import stream_key
from digs_survey.simulate.simulation_set import FLUX_UNIT
from digs_survey.spectra import WavelengthGrid
from digs_survey.sps.prospector import ProspectorSimulator
from digs_survey.sps.universe import physical_theta

ROWS = 2048
OUT = Path(__file__).with_name("sample.zarr")


def main() -> None:
    """Write the catalog."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    parser.add_argument("--config", default="quick")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    prior, grid = config.make_prior(), WavelengthGrid.from_config(config.grid)
    theta = draw_theta(prior, config.seed, "sample", 0, ROWS)
    noiseless = ProspectorSimulator(config.model, prior, grid).spectra(physical_theta(prior, theta, np.nan))
    noise = NoiseModel.from_config(config.noise)
    flux = noise.draw(noiseless, np.random.default_rng(stream_key(config.seed, "sample")))
    columns = {
        f"true_{p.name}": (theta[:, i], {"units": p.unit, "description": f"true {p.description}"})
        for i, p in enumerate(prior.parameters)
    }
    write_catalog(
        arguments.out,
        grid=grid,
        flux=flux,
        ivar=noise.sigma(flux) ** -2.0,
        mask=np.zeros(flux.shape, dtype=np.uint8),
        redshift=np.full(ROWS, config.model.zred),
        galaxy_id=np.array([f"sample-{row:04d}" for row in range(ROWS)]),
        flux_unit=FLUX_UNIT,
        columns=columns,
        attrs={"description": f"{ROWS} simulated galaxies, preset {arguments.config}, BC03-MILES"},
        rows_per_shard=ROWS,
    )


if __name__ == "__main__":
    main()
