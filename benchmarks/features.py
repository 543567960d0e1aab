"""What features of a row are worth: posteriors trained alike, each shown the same simulations by other features.

The simulations have the noise, gaps and redshifts of ``noise.observing`` of the preset survey, and so has each batch.
Every posterior has the same flow, the same embedding and as many epochs. All are tested on the same independent rows:
the mean log density of the truth, the share of truths inside the intervals of 68 %, the effective sample size of 1,000
importance weights, and the half-widths over those of the exact posterior. The exact one is that of a posterior that is
given (``--model``): its draws with importance weights, where these are worth 50 draws or more.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._features import Channels, FilledFlux, LeastSquares
from benchmarks._form import finish, parser, write_table
from benchmarks._survey import WeighedDraws, add_model_option, simulated_rows, survey_folder
from digs_survey.audit.mcmc.agreement import half_width, median_of
from digs_survey.audit.select import signal_to_noise
from digs_survey.catalog.prepare import PreparedRows
from digs_survey.config import SurveyConfig, load_config
from digs_survey.estimator.artefact import identify
from digs_survey.estimator.features import FeatureBuilder, build_features
from digs_survey.estimator.freeze import freeze_posterior
from digs_survey.estimator.posterior import FrozenPosterior
from digs_survey.estimator.training.loop import blank_estimator, fit
from digs_survey.importance.spectrum_likelihood import SpectrumLikelihood
from digs_survey.importance.weights import effective_sample_size, log_ratios
from digs_survey.simulate.simulated_spectra import simulated_spectra

BEGIN = "<!-- made by benchmarks/features.py -->"
NETWORK = ("train.hidden_features=48", "train.transforms=5")
"""Overrides of the preset: a smaller flow."""
DRAWS, REFERENCE_DRAWS = 1_000, 4_000
BRIGHT = 15.0
"""S/N of an element from which on a row counts as bright."""
BINS = 5
_SEED, _BLOCK = 81, 5_000
_ENCODED, _TIMES = 200, 5


@dataclass(frozen=True)
class Kind:
    """Features of the table.

    Attributes
    ----------
    name, what : str
    build : callable
    overrides : tuple of str
        Of the configuration.
    """

    name: str
    what: str
    build: FeatureBuilder = build_features
    overrides: tuple[str, ...] = ()


def _fitted(components: int) -> Kind:
    what = f"the package's least squares, K = {components}"
    return Kind(f"fitted-{components}", what, overrides=(f"train.components={components}",))


_K = ("train.components=64",)
KINDS = (
    Kind("filled", "filled flux, 32 PCA scores", partial(FilledFlux, described=False), ("train.components=32",)),
    Kind(
        "described",
        "the same, S/N, z, share of good elements",
        partial(FilledFlux, described=True),
        ("train.components=32",),
    ),
    *(_fitted(components) for components in (16, 32, 64, 96)),
    Kind("no-errors", "plain least squares, K = 64, no errors", partial(LeastSquares, errors="none"), _K),
    Kind("diagonal", "the same, diagonals of A and A⁻¹", partial(LeastSquares, errors="diagonal"), _K),
    Kind("more", "the same, 32 scores of A's correlations", partial(LeastSquares, errors="more"), _K),
    Kind("channels", "perceptron on flux/σ, 1/σ, mask", Channels),
)


@dataclass(frozen=True)
class Tests:
    """Rows that no posterior is trained on.

    Attributes
    ----------
    theta : ndarray, shape (row, parameter)
        The truth.
    rows : PreparedRows
    snr : ndarray, shape (row,)
    exact : ndarray, shape (weighed, parameter)
        Half-widths of the exact posterior of the first rows; NaN where they are not known.
    likelihood : SpectrumLikelihood
    """

    theta: NDArray[np.float64]
    rows: PreparedRows
    snr: NDArray[np.float64]
    exact: NDArray[np.float64]
    likelihood: SpectrumLikelihood

    @classmethod
    def of(cls, reference: FrozenPosterior, count: int, weighed: int) -> Tests:
        """Simulate rows, and weigh draws of a posterior for the first of them."""
        theta, rows = simulated_rows(reference, _SEED, "benchmark", count)
        snr = signal_to_noise(rows.spectrum, rows.ivar, rows.good)
        exact = WeighedDraws.of(reference, rows.take(slice(weighed)), REFERENCE_DRAWS).width
        return cls(theta, rows, snr, exact, SpectrumLikelihood.of_posterior(reference))


def main() -> None:
    options = parser("features", __doc__ or "")
    add_model_option(options)
    names = [kind.name for kind in KINDS]
    options.add_argument("--only", nargs="+", choices=names, default=names, metavar="KIND", help=", ".join(names))
    options.add_argument("--simulations", type=int, help="to train on (default: 80,000)")
    options.add_argument("--epochs", type=int, help="(default: 8)")
    options.add_argument("--tests", type=int, help="rows to test on (default: 2,000)")
    options.add_argument("--weighed", type=int, help="of these, for importance weights (default: 300)")
    options.add_argument("--set", action="append", default=[], metavar="train.NAME=VALUE", help="other settings")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="of rows that are done, which are not made again")
    options.add_argument("--page", type=Path, help="write the table there, as in docs/ablation.md")
    args = options.parse_args()
    simulations = args.simulations or (3_000 if args.quick else 80_000)
    epochs = args.epochs or (2 if args.quick else 8)
    count, weighed = args.tests or (200 if args.quick else 2_000), args.weighed or (20 if args.quick else 300)
    folder = survey_folder(args.model)
    # Few simulations make steps enough in small batches.
    schedule = [f"train.batch_size={64 if args.quick else 512}", f"train.epochs={epochs}", f"train.patience={epochs}"]
    overrides = [*NETWORK, *schedule, *args.set]
    found = measure(
        folder, [k for k in KINDS if k.name in args.only], overrides, simulations, count, weighed, args.keep
    )
    about = f"{simulations:,} simulations, {epochs} epochs, {count:,} test rows, {weighed:,} of them weighed"
    if args.page is not None:
        write_table(args.page, BEGIN, *_page(found), about)
    settings = {"simulations": simulations, "epochs": epochs, "tests": count, "weighed": weighed, "set": overrides}
    finish(about, _table(found), {"benchmark": "features", **settings, "kinds": found}, args.json)


def measure(
    folder: Path,
    kinds: Sequence[Kind],
    overrides: Sequence[str],
    simulations: int,
    tests: int,
    weighed: int,
    keep: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and test a posterior with each kind of features.

    Parameters
    ----------
    folder : Path
        Of the posterior whose model, prior, noise and grid are used, and that stands for the exact one.
    kinds : sequence of Kind
    overrides : sequence of str
        Of the preset survey.
    simulations, tests, weighed : int
        Rows to train on, to test on, and of these for importance weights.
    keep : Path, optional
        Folder of the figures of kinds that are done.

    Returns
    -------
    dict
        Figures by the kind's name.
    """
    reference, identity = FrozenPosterior.load(folder), identify(folder, seed=_SEED)
    found: dict[str, dict[str, Any]] = {}
    data: tuple[Any, ...] = ()
    for kind in kinds:
        config = identity.adopt(load_config("survey", [*overrides, *kind.overrides]))
        sizes = {"simulations": simulations, "tests": tests, "weighed": weighed, "reference": reference.hash}
        settings = sizes | {"train": config.train.model_dump(mode="json")}
        kept = None if keep is None else keep / f"{kind.name}.json"
        if kept is not None and kept.is_file() and (before := json.loads(kept.read_text()))["settings"] == settings:
            found[kind.name] = before["figures"]
            continue
        if not data:
            data = *_simulations(reference, simulations), Tests.of(reference, tests, weighed)
        theta, flux, seen = data
        found[kind.name] = {"what": kind.what} | _one(kind, config, reference, theta, flux, seen)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"settings": settings, "figures": found[kind.name]}))
        print(f"{kind.name}: {json.dumps(found[kind.name])}", flush=True)
    return found


def _simulations(reference: FrozenPosterior, count: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Theta (n, ndim) and noiseless spectra with redshifts (n, wavelength + 1) to train on."""
    what = SpectrumLikelihood.of_posterior(reference).model, reference.prior, reference.noise, _SEED, "simulate"
    blocks = [simulated_spectra(*what, i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]
    return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1].astype(np.float32) for b in blocks])


def _one(
    kind: Kind,
    config: SurveyConfig,
    reference: FrozenPosterior,
    theta: NDArray[np.float64],
    flux: NDArray[np.float32],
    tests: Tests,
) -> dict[str, Any]:
    """Train with one kind of features; return its figures."""
    # Imports what training needs, before its time is taken.
    estimator = blank_estimator(config, len(reference.grid), build=kind.build)
    began = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = fit(config, theta, flux, reference.noise, folder / "train.pt", "features", build=kind.build)
        train_s = time.process_time() - began[0]
        estimator.load_state_dict(state["best"])
        posterior = freeze_posterior(folder, [estimator], config, reference.grid, reference.noise, {}, build=kind.build)
    figures = judge(posterior, tests)
    return {
        "features": estimator.features.size,
        "validation_loss": state["best_loss"],
        "best_epoch": state["best_epoch"],
        "train_core_s": train_s,
        **figures,
        "wall_s": time.perf_counter() - began[1],
    }


def judge(posterior: FrozenPosterior, tests: Tests) -> dict[str, Any]:
    """Return the figures of a posterior on rows that it was not trained on."""
    flux, good, truth = tests.rows.flux, tests.rows.good, tests.theta
    log_q = posterior.log_prob(truth[:, None], flux)[:, 0]
    blocks = np.array_split(np.arange(len(truth)), -(-len(truth) // 250))
    width, distance = (np.empty(truth.shape) for _ in range(2))
    for block in blocks:
        draws = posterior.sample(flux[block], DRAWS)
        width[block] = half_width(draws)
        distance[block] = np.abs(2 * (draws < truth[block, None]).mean(axis=1) - 1)
    inside = distance <= 0.68
    fifths = np.array_split(np.argsort(tests.snr, kind="stable"), BINS)
    weighed = len(tests.exact)
    draws = posterior.sample(flux[:weighed], DRAWS)
    ratios = log_ratios(posterior, tests.likelihood, draws, flux[:weighed], good[:weighed])
    share = effective_sample_size(ratios) / DRAWS
    bright = tests.snr[:weighed] >= BRIGHT
    known = np.isfinite(tests.exact).all(axis=1)
    over = width[:weighed] / tests.exact
    return {
        "parameters": list(posterior.prior.names),
        "log_q": float(log_q.mean()),
        "log_q_error": float(log_q.std() / np.sqrt(len(log_q))),
        "half_width": np.median(width, axis=0).tolist(),
        "width_over_exact": _medians(over[known]),
        "width_over_exact_bright": _medians(over[known & bright]),
        "ess_share_faint": median_of(share[~bright]),
        "ess_share_bright": median_of(share[bright]),
        "exact_known": float(known.mean()),
        "coverage_68": inside.mean(axis=0).tolist(),
        "coverage_error_by_snr": float(max(np.abs(inside[rows].mean(axis=0) - 0.68).max() for rows in fifths)),
        "encode_core_ms": _encoding(posterior, flux[:_ENCODED]),
    }


def _encoding(posterior: FrozenPosterior, flux: NDArray[np.float64]) -> float:
    """Core milliseconds that the features of a row take the frozen posterior, which sees rows one by one."""
    spent = []
    for _ in range(1 + _TIMES):
        began = time.process_time()
        posterior.features(flux)
        spent.append(time.process_time() - began)
    return float(1e3 * np.median(spent[1:]) / len(flux))


def _medians(values: NDArray[np.float64]) -> list[float | None]:
    return [median_of(column) for column in values.T]


def _table(found: dict[str, dict[str, Any]]) -> list[tuple[str, list[float], str]]:
    """Rows of the printed table; where a figure has one value for each parameter, these are its spread."""
    rows: list[tuple[str, list[float], str]] = []
    for name, figures in found.items():
        lines = (
            ("features", [figures["features"]], ""),
            ("log q of the truth", [figures["log_q"]], f"± {figures['log_q_error']:.2f}, of all kinds alike"),
            ("half-width over the exact one", figures["width_over_exact"], "over the parameters"),
            (f"the same, S/N >= {BRIGHT:g}", figures["width_over_exact_bright"], "over the parameters"),
            (f"ESS/N, S/N < {BRIGHT:g}", [figures["ess_share_faint"]], ""),
            (f"ESS/N, S/N >= {BRIGHT:g}", [figures["ess_share_bright"]], ""),
            ("coverage of 68 %", figures["coverage_68"], "over the parameters"),
            ("largest error of it, fifths in S/N", [figures["coverage_error_by_snr"]], ""),
            ("training", [figures["train_core_s"]], "core-s"),
            ("encoding a row", [figures["encode_core_ms"]], "core-ms"),
        )
        rows += [(f"{name}: {line}", [v for v in values if v is not None], unit) for line, values, unit in lines]
    return [row for row in rows if row[1]]


def _page(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of docs/ablation.md."""
    head = ["shown", "features", "log q", "widths", f"S/N ≥ {BRIGHT:g}", f"ESS/N, S/N < {BRIGHT:g}"]
    head += [f"≥ {BRIGHT:g}", "coverage", "train [s]", "encode [ms]"]

    def several(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{np.mean(known):.2f} {max(known):.2f}" if known else "-"

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = []
    for figures in found.values():
        coverage = figures["coverage_68"]
        rows.append(
            [
                figures["what"],
                f"{figures['features']}",
                f"{figures['log_q']:.2f}",
                several(figures["width_over_exact"]),
                several(figures["width_over_exact_bright"]),
                share(figures["ess_share_faint"]),
                share(figures["ess_share_bright"]),
                f"{min(coverage):.2f}-{max(coverage):.2f}",
                f"{figures['train_core_s']:.0f}",
                f"{figures['encode_core_ms']:.2f}",
            ]
        )
    return head, rows


if __name__ == "__main__":
    main()
