"""Small networks for images of 14 to 32 pixels; each names its stages (see `kdlib.stages`).

- `plain`: `ConvNet`, `MLP`, `VGG`
- `residual`: `ResNet`, `WideResNet`, `MobileNetV2`
- `tokens`: `ViT`, `Mixer`
- `combined`, built around others: `TwoDigits`, `Ensemble`, `Answers`
- `names`: `by_name` gives a constructor for "resnet20" and the like; `NAMES` lists the kit's own
- `foreign`: the classifiers of torchvision, as `by_name` builds them

Arguments out of range raise ValueError, of another type TypeError, with their name; so do images
that a network cannot read.
"""

from kdlib.models.combined import Answers, Ensemble, TwoDigits
from kdlib.models.names import NAMES, by_name
from kdlib.models.pieces import Mean
from kdlib.models.plain import MLP, VGG, ConvNet
from kdlib.models.residual import (
    InvertedResidual,
    MobileNetV2,
    PreActivationBlock,
    ResidualBlock,
    ResNet,
    WideResNet,
)
from kdlib.models.tokens import Attention, Mixer, TokenBlock, TokenMixing, ViT

__all__ = [
    "MLP",
    "NAMES",
    "VGG",
    "Answers",
    "Attention",
    "ConvNet",
    "Ensemble",
    "InvertedResidual",
    "Mean",
    "Mixer",
    "MobileNetV2",
    "PreActivationBlock",
    "ResNet",
    "ResidualBlock",
    "TokenBlock",
    "TokenMixing",
    "TwoDigits",
    "ViT",
    "WideResNet",
    "by_name",
]
