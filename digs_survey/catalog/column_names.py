"""Which names a survey can give to its own columns: they share tables with the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from digs_survey.results.columns import taken_by

__all__ = ["name_violations"]


def name_violations(columns: Iterable[str]) -> Iterator[str]:
    """Say which names of the survey's own columns the result tables cannot take.

    Names are compared without regard to case: readers of FITS and SQL know no other way.
    """
    alike = defaultdict(list)
    for name in columns:
        alike[name.casefold()].append(name)
        if taken := taken_by(name):
            alike_only = "" if f"'{name}'" in taken else ", where case does not count"
            yield (
                f"{name}: expected a name that the results do not use, found that of {taken}{alike_only}; rename the "
                f"column in the catalog, for example to 'survey_{name}'"
            )
    for names in alike.values():
        if len(names) > 1:
            yield (
                f"{', '.join(names)}: expected names that differ by more than upper and lower case, which FITS and SQL "
                "do not tell apart; rename all but one of these columns in the catalog"
            )
