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
    kind : {"dataset", "table", "fits"}
        Shards of Zarr arrays, parts of a Parquet table, or files of single galaxies.
    arrays : tuple of str
        Of a dataset: the arrays whose checksum a marker holds, in this order; empty where it is that of all arrays
        with rows.
    table : str
        Of a dataset: the table whose parts are written with its shards, if there is one.
    """

    ledger: str
    output: str
    kind: Literal["dataset", "table", "fits"] = "dataset"
    arrays: tuple[str, ...] = ()
    table: str = ""


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
    shards: tuple[Shards, ...] = ()
    uses: tuple[str, ...] = ()
    optional: bool = False

    @property
    def ledgers(self) -> tuple[str, ...]:
        """Folders of its markers."""
        return tuple(shards.ledger for shards in self.shards)


_SIMULATED = ("theta", "flux")

STAGES = (
    Stage(
        "simulate",
        "spectra",
        needs=(),
        outputs=("simulations.zarr",),
        shards=(Shards("ledger/simulate", "simulations.zarr", arrays=_SIMULATED),),
    ),
    Stage(
        "augment",
        "pairs",
        needs=("simulate",),
        outputs=("pairs.zarr",),
        shards=(Shards("ledger/augment", "pairs.zarr", arrays=(*_SIMULATED, "simulation")),),
        optional=True,
    ),
    Stage("train", "epochs", needs=("simulate",), outputs=("model", "checkpoint"), uses=("augment",)),
    Stage(
        "map",
        "galaxies",
        needs=("train",),
        outputs=("posterior.zarr", "percentiles.parquet"),
        shards=(Shards("ledger/map", "posterior.zarr", table="percentiles.parquet"),),
    ),
    Stage(
        "audit",
        "galaxies with emcee",
        needs=("map",),
        outputs=("audit.json", "audit.zarr", "calibration.zarr", "audit-jobs"),
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
        shards=(
            Shards("ledger/escalate", "results.parquet", kind="table"),
            Shards("escalate-jobs/emcee/ledger", "escalate-jobs/emcee", kind="fits"),
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
        Pairs of a stage and one of its ``uses`` that it made no use of in this run.

    Examples
    --------
    >>> [stage.name for stage in followers("audit")]
    ['audit', 'escalate', 'report']
    """
    found: list[Stage] = []
    for stage in STAGES:
        taken = {*stage.needs, *(other for other in stage.uses if (stage.name, other) not in unused)}
        if stage.name == name or taken & {one.name for one in found}:
            found.append(stage)
    return found
