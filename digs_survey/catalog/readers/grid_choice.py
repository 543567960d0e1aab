"""What the user chooses of a catalog's elements, and of the correction for Galactic extinction."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digs_survey.catalog.readers.elements import Elements, native_elements, steps_of
from digs_survey.catalog.readers.extinction import SFD_SCALE, extinction_per_ebv
from digs_survey.catalog.readers.spectra_block import Spectra
from digs_survey.errors import ConfigError

__all__ = ["CHOICE_ATTRIBUTE", "MAX_ELEMENTS", "GridChoice", "too_many"]

MAX_ELEMENTS = 100_000
CHOICE_ATTRIBUTE = "ingested_with"
"""Attribute of a catalog that holds the choice in JSON, for files that are added later."""
_REST_STEP = 50.0


@dataclass(frozen=True)
class GridChoice:
    """The elements of a catalog, and whether Galactic extinction is corrected.

    Attributes
    ----------
    step_angstrom : float or None
        Width of the elements. Without it, they are the pixels of the first spectrum, continued to wherever rows reach;
        in the rest frame, 50 Angstrom.
    start_angstrom, stop_angstrom : float or None
        Elements whose centres lie outside are left out. With a step, an element is centred on the first.
    frame : {"observed", "rest"}
    deredden : bool
        Correct for Galactic extinction: Fitzpatrick 1999, R_V = 3.1, with E(B-V) of Schlegel et al. 1998 times 0.86.
    ebv : float or None
        E(B-V) of all rows, in the place of that of their files.
    """

    step_angstrom: float | None = None
    start_angstrom: float | None = None
    stop_angstrom: float | None = None
    frame: Literal["observed", "rest"] = "observed"
    deredden: bool = False
    ebv: float | None = None

    def __post_init__(self) -> None:
        for name in ("step_angstrom", "start_angstrom", "stop_angstrom"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a positive number, found {value}")
        if self.start_angstrom and self.stop_angstrom and self.stop_angstrom <= self.start_angstrom:
            found = f"{self.start_angstrom:g} and {self.stop_angstrom:g}"
            raise ConfigError(f"start_angstrom, stop_angstrom: expected the second above the first, found {found}")
        if self.ebv is not None and not (np.isfinite(self.ebv) and self.ebv >= 0):
            raise ConfigError(f"ebv: expected E(B-V) in mag, not negative, found {self.ebv}")
        if self.ebv is not None and not self.deredden:
            raise ConfigError("ebv: it is for the correction of Galactic extinction, which deredden asks for")

    @property
    def ends(self) -> tuple[float, float]:
        """Least and greatest centre of an element, in Angstrom."""
        low = 0.0 if self.start_angstrom is None else self.start_angstrom * (1 - 1e-9)
        return low, np.inf if self.stop_angstrom is None else self.stop_angstrom * (1 + 1e-9)

    def elements(self, first: Spectra) -> Elements:
        """Return the elements, given the first spectra."""
        step = self.step_angstrom
        if step is None and first.frame != self.frame:
            if self.frame == "observed":
                raise ConfigError("rest-frame spectra: expected frame 'rest', or a step for the observed frame")
            step = _REST_STEP
        return native_elements(first.wavelength) if step is None else steps_of(step, self.start_angstrom)

    def covering(self, elements: Elements, low: float, high: float) -> tuple[int, int]:
        """Return the first element and the one after the last that overlap a range in Angstrom, cut to the ends.

        Both are equal where there is none. There are at most :data:`MAX_ELEMENTS` + 2 of them.
        """
        least, greatest = self.ends
        low, high = max(low, least), min(high, greatest)
        if low > high:
            return 0, 0
        first, stop = elements.covering(low, high)
        if stop - first > MAX_ELEMENTS + 2:
            return first, first + MAX_ELEMENTS + 2
        centres = elements.centres(first, stop)
        inside = np.flatnonzero((centres >= least) & (centres <= greatest) & (centres > 0))
        return (first + int(inside[0]), first + int(inside[-1]) + 1) if inside.size else (first, first)

    def dereddening(self, spectra: Spectra) -> tuple[NDArray[np.float64] | None, str | None]:
        """Return the factors (n, pixel) on flux that undo Galactic extinction.

        Returns
        -------
        factors : ndarray or None
            NaN in rows whose E(B-V) is not a number, or negative. None where no correction is asked for, or possible.
        why : str or None
            Why none is possible.
        """
        if not self.deredden:
            return None, None
        if spectra.frame == "rest":
            return None, "deredden: expected spectra in the observed frame, found the rest frame"
        if self.ebv is None and spectra.ebv is None:
            return None, "deredden: no E(B-V) in the file; give ebv"
        ebv = np.full(len(spectra), self.ebv) if self.ebv is not None else np.asarray(spectra.ebv, dtype=np.float64)
        ebv = np.where(np.isfinite(ebv) & (ebv >= 0), ebv, np.nan)
        with np.errstate(over="ignore"):
            return 10 ** (0.4 * SFD_SCALE * ebv[:, None] * extinction_per_ebv(spectra.wavelength)), None

    def attributes(self, source: str) -> dict[str, Any]:
        """Return the attributes that describe a catalog which is made so."""
        law = f"corrected: Fitzpatrick 1999, R_V = 3.1, E(B-V) times {SFD_SCALE}"
        rest = {"rest_frame": "wavelength / (1 + z), flux * (1 + z), ivar / (1 + z)^2"} if self.frame == "rest" else {}
        correction = {"galactic_extinction": law if self.deredden else "not corrected"}
        return {"source": source, **correction, **rest, CHOICE_ATTRIBUTE: json.dumps(asdict(self))}


def too_many() -> str:
    """Say what helps where there would be too many elements."""
    return (
        f"expected at most {MAX_ELEMENTS} elements, found more; give step_angstrom, or start_angstrom and stop_angstrom"
    )
