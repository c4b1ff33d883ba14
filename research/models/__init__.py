"""What is learned: Flax NNX modules that name their dimensions and know nothing of the machine.

Every model is a frozen config with `build(specification, key)`, and a module from inputs
[batch, ...] to float32 logits [..., classes]. Parameters carry logical axes in their metadata; the
layout of `research.parallel` places them.
"""

from research.models.cnn import CNN, CNNConfig
from research.models.linear import Linear, LinearConfig
from research.models.lstm import LSTM, LSTMConfig
from research.models.mlp import MLP, MLPConfig
from research.models.model import Extras, Model
from research.models.resnet import ResNet, ResNetConfig
from research.models.specification import Specification
from research.models.transformer import Transformer
from research.models.transformer_config import TransformerConfig

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "CNNConfig",
    "Extras",
    "LSTMConfig",
    "Linear",
    "LinearConfig",
    "MLPConfig",
    "Model",
    "ResNet",
    "ResNetConfig",
    "Specification",
    "Transformer",
    "TransformerConfig",
]
