"""What faults of the data do to a posterior for rows of any noise, and how many of the rows that they bias are flagged.

"survey told" is 1 where the check of a survey whose rows all have the fault calls it anything but inside.

The table is that of the audit (digs_survey.audit.sensitivity), with more rows and two faults more.
"""

from __future__ import annotations

import time

from benchmarks._form import finish, parser
from benchmarks._survey import add_model_option, survey_posterior
from digs_survey.audit.domain.domain_check import OUTSIDE_VERDICTS
from digs_survey.audit.sensitivity.fault_table import NO_FAULT, measure_sensitivity
from digs_survey.audit.sensitivity.simulated_faults import ALL_FAULTS
from digs_survey.config import MapConfig

_SEED = 78


def main() -> None:
    options = parser("survey_faults", __doc__ or "")
    add_model_option(options)
    options.add_argument("--rows", type=int, help="simulated rows (default: 300)")
    args = options.parse_args()
    posterior = survey_posterior(args.model)
    count = args.rows or (40 if args.quick else 300)
    began = time.process_time()
    settings = MapConfig(min_good_fraction=0.05, predictive_draws=32)
    found = measure_sensitivity(posterior, settings, count, _SEED, ALL_FAULTS)
    rows: list[tuple[str, list[float], str]] = []
    for one in found:
        if one.biased is None or one.flagged is None:
            continue
        rows.append((f"{one.fault}: biased", [one.biased], ""))
        if one.flagged_of_biased is not None:
            rows.append((f"{one.fault}: of these flagged", [one.flagged_of_biased], ""))
        if one.fault == NO_FAULT:
            rows.append((f"{one.fault}: flagged", [one.flagged], ""))
        rows.append((f"{one.fault}: survey told", [float(one.verdict in OUTSIDE_VERDICTS)], ""))
    result = {"benchmark": "survey_faults", "model": posterior.hash, "rows": count}
    result["core_s"] = time.process_time() - began
    finish(f"{count} rows, shares", rows, result | {one.fault: one.to_dict() for one in found}, args.json)


if __name__ == "__main__":
    main()
