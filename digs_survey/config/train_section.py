"""The section of the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from digs_survey.config.types import Count, Fraction, Positive, Section

__all__ = ["TrainConfig"]


class TrainConfig(Section):
    """The neural posterior estimator and its training."""

    flow: Literal["maf", "zuko_maf", "zuko_nsf"] = "maf"
    """sbi's builder: the masked autoregressive flow of nflows (the paper's) or of zuko, or zuko's neural splines."""
    hidden_features: Count = 64
    """Units in each hidden layer of each transform."""
    transforms: Count = 5
    blocks: Count = 2
    """Hidden layers in each transform after the first."""
    embedding: Literal["none", "mlp", "conv"] = "mlp"
    """Between features and flow, once for each spectrum: nothing, a residual perceptron, or residual convolutions
    along the elements, which need whitening = "element"."""
    embedding_features: Count = 64
    """What an embedding gives to the flow."""
    embedding_layers: Annotated[int, Field(ge=0)] = 2
    """Residual layers of an embedding."""
    flux_transform: Literal["log10", "asinh"] = "log10"
    """Of the flux: its log10, or the inverse hyperbolic sine of it in units of the noise, which is log10 where
    the flux is bright, linear where it is faint, and knows negative flux."""
    whitening: Literal["pca", "element", "least_squares"] = "pca"
    """Principal components of the features, or the features of each element, both of unit variance; or, with
    noise.kind = "row", coefficients of principal components fitted to the spectrum by least squares with the row's own
    errors, and the errors of the coefficients."""
    components: Count = 40
    """For "pca" and "least_squares": principal components (at most the grid's elements)."""
    amplitude: Literal["feature", "centred", "equivariant"] = "centred"
    """How a spectrum's amplitude gets to the mass: as one more feature; also as the centre of the mass coordinate; or
    by symmetry, where the network sees the shape alone and log mass is relative to the amplitude."""
    pairs: Literal["fresh", "disk"] = "fresh"
    """Noisy spectra to train on: fresh noise on the simulations in each pass, or the pairs of the augment stage, whose
    noise is the same in each pass."""
    ensemble: Count = 1
    """Flows trained apart over the same features, whose equal mixture is the posterior."""
    batch_size: Count = 4096
    epochs: Count = 40
    """Passes over the training split."""
    learning_rate: Positive = 1e-2
    gradient_clip: Positive = 2.0
    validation_fraction: Fraction = 0.05
    """Share of the simulations that no weight is trained on; with all their pairs where pairs are read from disk."""
    patience: Count = 20
    """Epochs without a better validation loss after which training stops."""
    workers: Count = 1
    """Data-parallel workers (Ray Train where more than one, or on a Ray cluster)."""
    threads_per_worker: Count = 2
    """Threads of each worker; part of what fixes the weights to the bit."""
    buffer_rows: Annotated[int, Field(ge=2)] = 1_000_000
    """Simulations, or pairs, in the memory of each worker at most (4 bytes for each element); more are streamed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the embedding network's matrix products; densities are float32 always. "auto" takes bfloat16 on a GPU."""

    @model_validator(mode="after")
    def _elements_for_convolutions(self) -> TrainConfig:
        if self.embedding == "conv" and self.whitening != "element":
            raise ValueError(
                "embedding = 'conv' convolves along the elements of the grid; expected whitening = 'element', "
                f"found {self.whitening!r}"
            )
        return self
