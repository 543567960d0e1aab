"""The stages of a run: what each needs, what it makes, and where it marks what is finished.

This table is what ``redo``, ``status``, ``verify``, the command line and error messages go by. A new stage is a row
here, a method of :class:`~digs_survey.run.survey.Survey`, and a command.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

__all__ = ["STAGES", "Shards", "Stage", "followers", "stage_named"]


@dataclass(frozen=True)
class Shards:
    """Finished pieces of a stage's work, each with a marker in a ledger that holds its checksum.

    Attributes
    ----------
    ledger : str
        Folder of the markers.
    output : str
        The dataset, table or folder of files that the pieces make up.
    kind : {"dataset", "table", "fits", "weights"}
        Shards of Zarr arrays, parts of a Parquet table, files of single galaxies, or files of blocks of rows.
    arrays : tuple of str
        Of a dataset: the arrays whose checksum a marker holds, as far as it has them, in this order; empty where it is
        that of all arrays with rows.
    table : str
        Of a dataset: the table whose parts are written with its shards, if there is one.
    decides : tuple of str
        Files that are made from all pieces together, and are made again when a piece is.
    """

    ledger: str
    output: str
    kind: Literal["dataset", "table", "fits", "weights"] = "dataset"
    arrays: tuple[str, ...] = ()
    table: str = ""
    decides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes
    ----------
    name : str
        Also that of its command.
    unit : str
        What its progress counts.
    needs : tuple of str
        Stages that must be finished first.
    outputs : tuple of str
        What it leaves in the run directory. The first one is what later stages need, and proves that the stage was
        done.
    formats : tuple of str
        Of what it leaves, by their names in :mod:`~digs_survey.formats`.
    shards : tuple of Shards
        The first one tells how far the stage is.
    uses : tuple of str
        Stages whose results it takes where a run has them.
    optional : bool
        Not every run has it.
    """

    name: str
    unit: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    formats: tuple[str, ...] = ()
    shards: tuple[Shards, ...] = ()
    uses: tuple[str, ...] = ()
    optional: bool = False

    @property
    def ledgers(self) -> tuple[str, ...]:
        """Folders of its markers."""
        return tuple(shards.ledger for shards in self.shards)


_SIMULATED = ("theta", "flux", "redshift")
_DECIDED = ("escalate-jobs/refined.npz", "escalate-jobs/told.json")

STAGES = (
    Stage(
        "simulate",
        "spectra",
        needs=(),
        outputs=("simulations.zarr",),
        formats=("simulations",),
        shards=(Shards("ledger/simulate", "simulations.zarr", arrays=_SIMULATED),),
    ),
    Stage(
        "augment",
        "pairs",
        needs=("simulate",),
        outputs=("pairs.zarr",),
        formats=("pairs",),
        shards=(Shards("ledger/augment", "pairs.zarr", arrays=(*_SIMULATED, "simulation")),),
        optional=True,
    ),
    Stage(
        "train",
        "epochs",
        needs=("simulate",),
        outputs=("model", "checkpoint"),
        formats=("card",),
        uses=("augment",),
    ),
    Stage(
        "map",
        "galaxies",
        needs=("train",),
        outputs=("posterior.zarr", "percentiles.parquet"),
        formats=("posterior", "results"),
        shards=(Shards("ledger/map", "posterior.zarr", table="percentiles.parquet"),),
    ),
    Stage(
        "audit",
        "galaxies with emcee",
        needs=("map",),
        outputs=("audit.json", "audit.zarr", "calibration.zarr", "audit-jobs"),
        formats=("audit", "simulations"),
        shards=(
            Shards("audit-jobs/ledger", "audit-jobs", kind="fits"),
            Shards("ledger/calibration", "calibration.zarr", arrays=_SIMULATED),
        ),
    ),
    Stage(
        "escalate",
        "rows",
        needs=("audit",),
        outputs=("results.parquet", "escalate.json", "escalate-jobs"),
        formats=("results", "audit"),
        shards=(
            Shards("ledger/escalate", "results.parquet", kind="table"),
            Shards("escalate-jobs/weights/ledger", "escalate-jobs/weights", kind="weights", decides=_DECIDED),
            Shards("escalate-jobs/emcee/ledger", "escalate-jobs/emcee", kind="fits", decides=_DECIDED),
        ),
    ),
    Stage("report", "page", needs=("audit",), outputs=("report.html", "figures"), uses=("escalate",)),
)
"""In the order in which a run walks them."""


def stage_named(name: str) -> Stage:
    """Return a stage by its name."""
    return next(stage for stage in STAGES if stage.name == name)


def followers(name: str, unused: Collection[tuple[str, str]] = ()) -> list[Stage]:
    """Return a stage and all that is made from what it makes, in their order.

    Parameters
    ----------
    name : str
    unused : collection of (str, str)
        Pairs of a stage and one that it needs or may use, of which it made no use in this run.

    Examples
    --------
    >>> [stage.name for stage in followers("audit")]
    ['audit', 'escalate', 'report']
    """
    found: list[Stage] = []
    for stage in STAGES:
        taken = {other for other in (*stage.needs, *stage.uses) if (stage.name, other) not in unused}
        if stage.name == name or taken & {one.name for one in found}:
            found.append(stage)
    return found
