r"""Autoregressive flows from plain arrays: their densities, and their inverses in one incremental pass.

One transform maps coordinate i of v to :math:`z_i = f(v_i; \phi_i)`, monotonic, where the parameters :math:`\phi_i`
come from a masked network of :math:`v_{<i}` and the context (Papamakarios et al. 2017, arXiv 1705.07057).
Inverting it needs :math:`v_{<i}` first: the plain way runs the whole network once for each coordinate. Here the
hidden units are sorted by degree (the number of coordinates that they may see), each pass evaluates only the units
that have just become computable, and the context is projected once for each galaxy. All draws of a galaxy together
cost about one evaluation of the network.

The loops are compiled with numba (:mod:`~digs_survey.estimator.flows.compiled`). Where that fails, or where the
environment has :data:`~digs_survey.jit.PLAIN`, the same passes run in torch
(:mod:`~digs_survey.estimator.flows.plain`), more slowly and with other roundings. Either way everything is computed one
galaxy at a time with shapes that depend on nothing else, so that a galaxy's draws are the same bytes whatever else is
in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digs_survey.estimator.flows import plain
from digs_survey.jit import loops, padded

if TYPE_CHECKING:
    from torch import nn

    from digs_survey.estimator.flows.compiled import Packed

__all__ = ["KINDS", "MaskedFlow", "compiled_loops"]

KINDS = ("maf", "zuko_maf", "zuko_nsf")
"""Flows by the names of sbi's builders.

maf: tanh networks, scale softplus + 1e-3 and shift. zuko_maf: ReLU networks, shift and softly bounded log scale.
zuko_nsf: ReLU networks, widths, heights and slopes of a monotonic rational-quadratic spline on [-5, 5].
"""


def compiled_loops() -> ModuleType | None:
    """Return :mod:`~digs_survey.estimator.flows.compiled`, or None where the plain loops are to run."""
    return loops("digs_survey.estimator.flows.compiled")


@dataclass(frozen=True)
class MaskedFlow:
    """A stack of t autoregressive transforms over a standard normal base of d dimensions.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    w_in, b_in : ndarray of float32, shape (t, hidden, d), (t, hidden)
        First hidden layers; the columns are the coordinates in the order of the transform.
    w_context, b_context : ndarray of float32, shape (t, hidden, context), (t, hidden)
        What the context adds to them; through tanh in the kind maf.
    w_hidden, b_hidden : ndarray of float32, shape (t, layers, hidden, hidden), (t, layers, hidden)
    w_out, b_out : ndarray of float32, shape (t, d, parameters, hidden), (t, d, parameters)
        Unconstrained parameters of each coordinate's transform.
    stops : ndarray of int64, shape (t, d)
        ``stops[t, i]`` is the number of hidden units that see no coordinate after the first i.
    reads, writes : ndarray of int64, shape (t, d)
        The i-th coordinate of the transform is ``reads[i]`` of v and ``writes[i]`` of z.
    """

    kind: str
    w_in: NDArray[np.float32]
    b_in: NDArray[np.float32]
    w_context: NDArray[np.float32]
    b_context: NDArray[np.float32]
    w_hidden: NDArray[np.float32]
    b_hidden: NDArray[np.float32]
    w_out: NDArray[np.float32]
    b_out: NDArray[np.float32]
    stops: NDArray[np.int64]
    reads: NDArray[np.int64]
    writes: NDArray[np.int64]

    @property
    def ndim(self) -> int:
        """Number of coordinates."""
        return self.w_in.shape[-1]

    def inverse(self, base: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
        """Draws v (d, draws) of one galaxy from standard-normal points (d, draws) and its context (context,)."""
        compiled = compiled_loops()
        if compiled is None:
            return plain.draw(self, base, context)
        return compiled.draw(self._packed, *_own(base, context))

    def log_prob(self, v: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log density (draws,) at v (d, draws) of one galaxy with this context (context,)."""
        compiled = compiled_loops()
        if compiled is None:
            return plain.density(self, v, context)
        return compiled.density(self._packed, *_own(v, context))

    @cached_property
    def _packed(self) -> Packed:
        from digs_survey.estimator.flows.compiled import Packed

        values: dict[str, Any] = {
            **{name: np.array(getattr(self, name)) for name in Packed._fields if name != "kind"},
            "kind": KINDS.index(self.kind),
            "w_context": np.ascontiguousarray(self.w_context.transpose(0, 2, 1)),
            **{name: padded(getattr(self, name)) for name in ("w_in", "w_hidden", "w_out")},
        }
        return Packed(**values)

    def arrays(self, prefix: str = "flow.") -> dict[str, NDArray[Any]]:
        """Return every array, and the kind as its letters, for :meth:`from_arrays`; names start with ``prefix``."""
        kind = np.frombuffer(self.kind.encode(), dtype=np.uint8)
        return {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)} | {f"{prefix}kind": kind}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], prefix: str = "flow.") -> MaskedFlow:
        """Rebuild a flow from :meth:`arrays`; others in the dictionary are left alone."""
        values: dict[str, Any] = {field.name: arrays[f"{prefix}{field.name}"] for field in fields(cls)}
        kind = values["kind"].tobytes().decode()
        if kind not in KINDS:
            raise ValueError(f"flow: expected one of the kinds {', '.join(KINDS)}, found {kind!r}")
        return cls(**(values | {"kind": kind}))

    @classmethod
    def from_sbi(cls, flow: nn.Module) -> MaskedFlow:
        """Take the weights of a flow that one of sbi's builders in :data:`KINDS` made without z-scoring."""
        # Here, since sampling needs none of what training does.
        from digs_survey.estimator.flows.extract import flow_arrays

        kind, tensors = flow_arrays(flow)
        return cls(kind, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})


def _own(*arrays: NDArray[np.floating]) -> tuple[NDArray[np.float32], ...]:
    """Copies of one type, since numba compiles again for every layout and for what must not be written to."""
    return tuple(np.array(array, dtype=np.float32, order="C") for array in arrays)
