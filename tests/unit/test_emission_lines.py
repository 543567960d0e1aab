"""Which elements emission lines lie on."""

from __future__ import annotations

import numpy as np
import pytest

from digs_survey.noise.emission_lines import EMISSION_LINES, on_emission_lines
from digs_survey.spectra import C_KMS, WavelengthGrid, vacuum_to_air

IN_AIR = {"Hbeta": 4861.33, "Halpha": 6562.80, "[OIII]": 5006.84, "[NII]": 6583.45, "[SII]": 6716.44, "[OI]": 6300.30}
"""Wavelengths that laboratories give, in Angstrom."""
CONTINUUM = (4000.0, 4102.9, 4341.7, 5175.0, 5500.0, 6100.0, 7000.0)
"""The break, higher Balmer lines, the magnesium triplet, and places where there is nothing."""


def elements_at(grid: WavelengthGrid, wavelength: float) -> int:
    return int(np.searchsorted(grid.edges, wavelength)) - 1


@pytest.mark.parametrize("step", [1.0, 10.0, 50.0])
def test_elements_of_lines_are_on_them_and_those_of_the_continuum_are_not(step):
    grid = WavelengthGrid(np.arange(3600.0, 9800.0, step))
    found = on_emission_lines(grid)
    assert found.shape == (len(grid),)
    for lines in EMISSION_LINES.values():
        for line in lines:
            assert found[elements_at(grid, line)]
    for wavelength in CONTINUUM:
        assert not found[elements_at(grid, wavelength)]
    # A line beyond the ends of a grid is on none of its elements.
    assert not on_emission_lines(WavelengthGrid(np.arange(5050.0, 5800.0, step))).any()


@pytest.mark.parametrize("name", ["Hbeta", "HeI", "[NeIII]"])
def test_lines_reach_750_kilometres_a_second_to_either_side(name):
    (line,) = EMISSION_LINES[name]
    grid = WavelengthGrid(np.arange(line - 60, line + 60, 0.1))
    found = on_emission_lines(grid)
    near = np.flatnonzero(found)
    assert (np.diff(near) == 1).all()
    reach = C_KMS * (grid.edges[[near[0], near[-1] + 1]] / line - 1)
    # Elements of 0.1 Angstrom, up to 8 km/s, are on the line where a part of them is.
    np.testing.assert_allclose(np.abs(reach), 754, atol=4 + 1e-6)
    # Elements of 50 Angstrom that end there.
    for velocity, touches in ((740, True), (760, False)):
        below, above = (line * (1 + v / C_KMS) for v in (-velocity, velocity))
        for centres in (below + np.array([-75, -25, 25]), above + np.array([-25, 25, 75])):
            assert on_emission_lines(WavelengthGrid(centres))[1] == touches


def test_lines_in_air_are_where_laboratories_have_them():
    wavelength = np.arange(4500.0, 7000.0, 0.2)
    air, vacuum = WavelengthGrid(wavelength, medium="air"), WavelengthGrid(wavelength)
    found, other = on_emission_lines(air), on_emission_lines(vacuum)
    for name, line in IN_AIR.items():
        vacuum_line = min(EMISSION_LINES[name], key=lambda its: abs(its - line))
        assert vacuum_to_air(vacuum_line) == pytest.approx(line, abs=0.1)
        assert found[elements_at(air, line)]
    # The ends of a line that stands alone lie the same way from it in both.
    low, high = (IN_AIR["Hbeta"] * (1 + v / C_KMS) for v in (-750, 750))
    for grid, shift in ((air, 0.0), (vacuum, EMISSION_LINES["Hbeta"][0] - IN_AIR["Hbeta"])):
        on = on_emission_lines(grid)
        for inside, end in ((low + 0.5, low - 0.5), (high - 0.5, high + 0.5)):
            assert on[elements_at(grid, inside + shift)]
            assert not on[elements_at(grid, end + shift)]
    assert (found != other).any()
    # The same elements, whose wavelengths are given in either medium.
    same = WavelengthGrid(vacuum_to_air(vacuum.wavelength), medium="air")
    assert (on_emission_lines(same) != other).mean() < 1e-3


# -- the floor -----------------------------------------------------------------------------------------------
