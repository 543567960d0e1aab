"""Readers under damage: whatever bytes, cards and lengths a file has, there are spectra or a reason."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import survey_files as make
from hypothesis import given, settings
from hypothesis import strategies as st

import digs_survey as ds
from digs_survey.catalog.readers.grid_choice import GridChoice
from digs_survey.catalog.readers.reading import LeftOut, read_file
from digs_survey.catalog.readers.rebinning import rebinned
from digs_survey.errors import CatalogError, ConfigError

FITS = (make.desi, make.sdss, make.plate, make.msaexp, make.x1d, make.eso, make.linear, make.log10, make.natural_log)
CARD = re.compile(rb"[A-Z][A-Z0-9_-]{0,7} *= ")
FEW = settings(max_examples=60, deadline=None)


_FOLDERS: list[TemporaryDirectory[str]] = []
"""Removed when the tests end."""


@cache
def made(kind: Any) -> tuple[Path, bytes, Any]:
    """A file of a kind, its bytes and its reader; what belongs to it lies beside it."""
    folder = TemporaryDirectory(prefix="fuzz-")
    _FOLDERS.append(folder)
    (path, *_), reader = kind(Path(folder.name))
    return path, path.read_bytes(), reader


def goes_through(reader: Any, path: Path) -> None:
    """Read a file and rebin what it has."""
    for found in read_file(reader, path):
        if isinstance(found, LeftOut):
            assert found.reason
            assert found.rows >= 0
            continue
        assert len(found)
        for choice in (GridChoice(), GridChoice(step_angstrom=20.0, frame="rest", deredden=True, ebv=0.1)):
            with suppress(CatalogError, ConfigError):
                for part in rebinned(found, choice.elements(found), choice):
                    assert isinstance(part, LeftOut) or np.isfinite(part.flux).all()


@FEW
@given(kind=st.sampled_from(make.KINDS), data=st.data())
def test_damaged_bytes(kind, data):
    path, whole, reader = made(kind)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path.write_bytes(bytes(damaged))
    goes_through(reader, path)


@FEW
@given(kind=st.sampled_from(FITS), data=st.data())
def test_changed_cards(kind, data):
    path, whole, reader = made(kind)
    cards = [at for at in range(0, len(whole), 80) if CARD.match(whole, at)]
    changed = bytearray(whole)
    text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    values = st.one_of(
        st.integers(-(2**63), 2**63).map(str),
        st.integers(-1, 400).map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(str),
        st.sampled_from(["T", "F", "", "NaN", "'Hz'", "'A'", "'1E'", "'mag(AB)'", "'WAVE-LOG'", "'300D'", "'PE(9)'"]),
        text.map(lambda word: f"'{word}'"),
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(cards)) + 10
        changed[at : at + 70] = data.draw(values).encode("ascii")[:70].ljust(70)
    path.write_bytes(bytes(changed))
    goes_through(reader, path)


NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(3000.0, 9000.0), st.integers(-5, 5).map(float)
)


@FEW
@given(data=st.data())
def test_columns_of_any_length_and_value(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    names = ("wave", "flux", "ivar")
    columns = {name: data.draw(st.lists(NUMBERS, max_size=6)) for name in names}
    if data.draw(st.booleans()):
        columns["wave"] = sorted(columns["wave"])
    longest = max(map(len, columns.values()))
    padded = {name: [*map(str, values), *[""] * (longest - len(values))] for name, values in columns.items()}
    lines = [",".join(cells) for cells in zip(*padded.values(), strict=True)]
    path = folder / "fuzz.csv"
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    toml = 'layout = "pixels"\nmedium = "air"\nwavelength = "wave"\nflux = "flux"\nivar = "ivar"\n'
    toml += 'wavelength_unit = "Angstrom"\nflux_unit = "1e-17 erg / (s cm2 Angstrom)"\nredshift = 0.1\n'
    goes_through(make.mapped(folder, toml), path)


@FEW
@given(data=st.data())
def test_arrays_of_any_length_and_value(data):
    shapes = st.sampled_from([(3,), (2, 3), (1, 3), (2, 2), (0, 3), (3, 0), (2, 1, 3), ()])

    def array() -> np.ndarray:
        shape = data.draw(shapes)
        size = int(np.prod(shape))
        return np.array(data.draw(st.lists(NUMBERS, min_size=size, max_size=size))).reshape(shape)

    given_arrays = {name: array() for name in ("flux", "ivar", "mask", "redshift", "galaxy_id")}
    given_arrays["galaxy_id"] = given_arrays["galaxy_id"].astype(str)
    wave = np.array(data.draw(st.lists(NUMBERS, max_size=3)))
    try:
        found = ds.Spectra(wave, flux_unit="uJy", medium="air", **given_arrays)
    except CatalogError:
        return
    assert found.flux.shape == (len(found), found.wavelength.size)
    assert np.isfinite(found.flux).all()
    assert ((found.ivar > 0) == found.good).all()


@pytest.mark.parametrize("kind", make.KINDS, ids=lambda kind: kind.__name__)
def test_every_length_of_a_file_ends(kind):
    path, whole, reader = made(kind)
    for length in np.linspace(0, len(whole), 12).astype(int).tolist():
        path.write_bytes(whole[:length])
        goes_through(reader, path)


@pytest.mark.parametrize("card", [b"NAXIS   ", b"TFIELDS ", b"BITPIX  "])
def test_counts_beyond_the_limit_of_fits_end_at_once(card):
    path, whole, reader = made(make.eso)
    at = whole.rindex(card + b"= ") + 10
    path.write_bytes(
        whole[:at] + (b"'A'" if card == b"BITPIX  " else b"7667610109238018457").ljust(70) + whole[at + 70 :]
    )
    (left,) = read_file(reader, path)
    assert f"the header is damaged: {card.decode().strip()}" in left.reason
