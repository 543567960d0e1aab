"""Calibrated posteriors of the stellar populations of whole spectroscopic surveys.

Examples
--------
>>> import digs_survey as ds
>>> with ds.Survey.open("runs/survey", "quick") as survey:  # doctest: +SKIP
...     survey.run("catalog.zarr")
>>> run = ds.open_run("runs/survey")  # doctest: +SKIP
>>> run.table(["galaxy_id", "logmass_p50", "agreement"]).to_pandas()  # doctest: +SKIP
>>> run.posterior("J0001").theta  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from digs_survey.versions import __version__

if TYPE_CHECKING:
    from digs_survey.catalog import Catalog, write_catalog
    from digs_survey.catalog.readers.ingesting import write_spectra
    from digs_survey.catalog.readers.spectra_block import Spectra
    from digs_survey.config import load_config
    from digs_survey.estimator.posterior import FrozenPosterior
    from digs_survey.run.opened_run import open_run
    from digs_survey.run.survey import Survey
    from digs_survey.spectra import rebin_spectrum

__all__ = [
    "Catalog",
    "FrozenPosterior",
    "Spectra",
    "Survey",
    "__version__",
    "load_config",
    "open_run",
    "rebin_spectrum",
    "write_catalog",
    "write_spectra",
]

_WHERE = {
    "Catalog": "digs_survey.catalog",
    "FrozenPosterior": "digs_survey.estimator.posterior",
    "Spectra": "digs_survey.catalog.readers.spectra_block",
    "Survey": "digs_survey.run.survey",
    "load_config": "digs_survey.config",
    "open_run": "digs_survey.run.opened_run",
    "rebin_spectrum": "digs_survey.spectra",
    "write_catalog": "digs_survey.catalog",
    "write_spectra": "digs_survey.catalog.readers.ingesting",
}
"""Public names and their modules, which are imported when they are first used: some of them take seconds."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'digs_survey' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
