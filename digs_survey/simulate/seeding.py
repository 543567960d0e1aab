"""Random numbers that belong to a row: the same for it whatever the shards, the workers and their order."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_uniforms", "stream_key"]

_WORDS_PER_BLOCK = 4


def stream_key(seed: int, stream: str) -> int:
    """Seed of 63 bits for a stream that is drawn as a whole; streams are independent of each other."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def row_uniforms(seed: int, stream: str, start: int, stop: int, columns: int) -> NDArray[np.float64]:
    """Uniform random numbers of the rows ``start`` to ``stop``.

    Every row owns whole blocks of the counter-based generator Philox4x64 (Salmon et al. 2011, SC'11), so
    that any range of rows is a slice of the whole.

    Parameters
    ----------
    seed : int
        Seed of the run.
    stream : str
        Name of the use; streams are independent of each other.
    start, stop : int
        Range of rows.
    columns : int
        Numbers for each row.

    Returns
    -------
    ndarray of float64, shape (stop - start, columns)
        Strictly between 0 and 1.
    """
    key = hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16]
    blocks = -(-columns // _WORDS_PER_BLOCK)
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    generator.advance(start * blocks)
    words = generator.random_raw((stop - start) * blocks * _WORDS_PER_BLOCK)
    rows = words.reshape(stop - start, blocks * _WORDS_PER_BLOCK)[:, :columns]
    # 52 bits, so that adding the half stays exact and 1 is never reached.
    return ((rows >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
