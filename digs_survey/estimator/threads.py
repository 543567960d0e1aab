"""Rows shared out among threads, so that no row's last bits depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from digs_survey.cluster.cores import usable_cores
from digs_survey.sps.arrays import one_thread

__all__ = ["for_each"]


def for_each(function: Callable[[int], None], count: int) -> None:
    """Call a function with 0 to count - 1 on as many threads as torch may use, on each of them with one of torch's
    and of numpy's linear algebra.

    The compiled loops release the lock. A product that torch shares out among its threads has other last bits, and
    its threads wait longer for each other than one spectrum takes.
    """
    allowed = torch.get_num_threads()
    # torch knows of affinity, not of the quota of a container.
    threads = max(min(allowed, usable_cores(), count), 1)

    def take(first: int) -> None:
        for row in range(first, count, threads):
            function(row)

    torch.set_num_threads(1)
    try:
        with one_thread():
            if threads == 1:
                take(0)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    for done in [pool.submit(take, first) for first in range(threads)]:
                        done.result()
    finally:
        torch.set_num_threads(allowed)
