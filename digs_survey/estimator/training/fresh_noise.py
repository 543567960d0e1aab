"""Fresh noise for training rows: random numbers belong to a row of a batch, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from digs_survey.noise.model import NoiseModel
from digs_survey.noise.row_noise import RowNoise
from digs_survey.simulate.seeding import stream_key

__all__ = ["noisy_rows"]

_UNIT = 256
"""Rows that one generator serves."""


def noisy_rows(spectra: Tensor, noise: NoiseModel, seed: int, stream: str, first: int = 0) -> Tensor:
    """Add noise, and take out stretches, on the device of the spectra.

    Parameters
    ----------
    spectra : Tensor, shape (n, wavelength)
        Noiseless rows ``first`` to ``first + n - 1`` of a batch.
    noise : NoiseModel
    seed : int
        Of the run.
    stream : str
        Name of the batch. A row's noise depends on it, the seed and the row alone, not on how a batch is divided.
    first : int

    Returns
    -------
    Tensor of float32, shape (n, wavelength)
        With row noise, observations (n, 2 wavelength + 1) of rows (n, wavelength + 1) that end with their redshift.
    """
    if isinstance(noise, RowNoise):
        return _observed_rows(spectra, noise, seed, stream, first)
    rows, elements = spectra.shape
    tables, stretches = noise.config.kind != "fractional", noise.config.missing.columns
    widths = [1 if tables else 0, noise.normals(elements), stretches]
    uniform, normal, lost = (spectra.new_empty(rows, width) for width in widths)
    _draw([(uniform, torch.rand), (normal, torch.randn), (lost, torch.rand)], seed, stream, first)
    errors = None
    if tables:
        errors = torch.as_tensor(noise.pick(uniform[:, 0].cpu().numpy()), dtype=torch.float32).to(spectra.device)
    noisy = noise.perturb(spectra, normal, errors)
    if not stretches and (noise.keeps_negative or bool((noisy > 0).all())):
        return noisy
    return torch.from_numpy(noise.apply_missing(noisy.cpu().numpy(), lost.cpu().numpy())).to(spectra)


def _observed_rows(clean: Tensor, noise: RowNoise, seed: int, stream: str, first: int) -> Tensor:
    """Observe noiseless rows with redshifts (n, wavelength + 1): (n, 2 wavelength + 1)."""
    rows, elements = clean.shape[0], clean.shape[1] - 1
    uniform = clean.new_empty(rows, noise.conditions + elements)
    normal = clean.new_empty(rows, noise.normals(elements))
    _draw([(uniform, torch.rand), (normal, torch.randn)], seed, stream, first)
    # Of 24 bits, 0 among them, at which a normal would be infinite.
    return noise.observe_with(clean.double(), uniform.double() + 2.0**-25, normal.double()).float()


def _draw(wanted: list[tuple[Tensor, Callable[..., Tensor]]], seed: int, stream: str, first: int) -> None:
    """Fill arrays of a batch's rows from ``first`` on with random numbers that belong to the rows."""
    rows, device = len(wanted[0][0]), wanted[0][0].device
    for unit in range(first // _UNIT, -(-(first + rows) // _UNIT)):
        generator = torch.Generator(device).manual_seed(stream_key(seed, f"{stream}/{unit}"))
        here = slice(max(first, unit * _UNIT), min(first + rows, (unit + 1) * _UNIT))
        into, part = _less(here, first), _less(here, unit * _UNIT)
        for numbers, draw in wanted:
            if numbers.shape[1]:
                numbers[into] = draw((_UNIT, numbers.shape[1]), generator=generator, device=device)[part]


def _less(rows: slice, start: int) -> slice:
    return slice(rows.start - start, rows.stop - start)
