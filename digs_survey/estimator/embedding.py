"""Networks between the features and the flow: each condenses a spectrum once, whatever is then asked of it."""

from __future__ import annotations

from torch import Tensor, nn

from digs_survey.config import TrainConfig
from digs_survey.estimator.feature_base import FeatureBase

__all__ = ["ConvolutionalEmbedding", "ResidualEmbedding", "build_embedding"]

_CHANNELS = 32
_KERNEL = 5


class ResidualEmbedding(nn.Module):
    """Residual multilayer perceptron.

    Parameters
    ----------
    inputs, width, layers : int
        Features in, features out and inside, and residual layers after the first.
    """

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(layers)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed features (n, inputs) into (n, width)."""
        hidden = self.first(features)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return hidden


class ConvolutionalEmbedding(nn.Module):
    """Residual convolutions along the elements, each followed by pooling to half, beside a linear map of all features.

    Without that map, through which the amplitude comes too, training is many times slower: most of what the flow needs
    is linear in the elements, and pooling blurs it.

    Parameters
    ----------
    elements, others : int
        Features in: others first, such as the amplitude, then one for each element.
    width, layers : int
        Features out, and residual layers after the first convolution.
    """

    def __init__(self, elements: int, others: int, width: int, layers: int) -> None:
        super().__init__()
        self.others = others
        self.first = _convolution(1, stride=2)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), _convolution(_CHANNELS), nn.SiLU(), _convolution(_CHANNELS)) for _ in range(layers)
        )
        self.pool = nn.AvgPool1d(2, ceil_mode=True)
        places = -(-elements // 2 ** (1 + layers))
        self.straight = nn.Linear(others + elements, width)
        self.join = nn.Linear(_CHANNELS * places, width)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Embed features (n, others + elements) into (n, width)."""
        elements = features[..., self.others :]
        hidden = self.first(elements.reshape(-1, 1, elements.shape[-1]))
        for layer in self.layers:
            hidden = self.pool(hidden + layer(hidden))
        joined = self.straight(features) + self.join(hidden.reshape(*elements.shape[:-1], -1))
        return joined + self.last(joined)


def _convolution(channels: int, stride: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, _CHANNELS, _KERNEL, stride=stride, padding=_KERNEL // 2)


def build_embedding(network: TrainConfig, features: FeatureBase) -> nn.Module:
    """Return the untrained embedding that a configuration asks for; nn.Identity where it asks for none."""
    width, layers = network.embedding_features, network.embedding_layers
    if network.embedding == "none":
        return nn.Identity()
    if network.embedding == "mlp":
        return ResidualEmbedding(features.size, width, layers)
    elements = features.shape_features
    return ConvolutionalEmbedding(elements, features.size - elements, width, layers)
