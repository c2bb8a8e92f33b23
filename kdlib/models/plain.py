"""Networks without shortcuts: convolutions, or fully connected layers, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.models.pieces import Mean, check_images, scale_for_relu


class ConvNet(nn.Module):
    """A plain CNN: one 3x3 convolution, batch norm and ReLU per stage, each halving the image.

    widths: output channels of each stage. downsample: "stride" puts stride 2 into the convolution;
    "pool" adds a max-pool of 2 behind it, which costs about twice as much. dropout: probability
    from 0 to below 1, in front of the classifier. Input [n, in_channels, h, w], output logits
    [n, num_classes].
    """

    memory_format = torch.channels_last  # the order of pixels in which `fit` trains it

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        downsample: str = "stride",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = inputs.sizes("widths", widths)
        in_channels, num_classes = inputs.wholes(in_channels=in_channels, num_classes=num_classes)
        dropout = inputs.number("dropout", dropout, low=0, below=1)
        pool = inputs.choice("downsample", downsample, ("stride", "pool")) == "pool"
        blocks, previous = [], in_channels
        for width in widths:
            conv = nn.Conv2d(previous, width, 3, 1 if pool else 2, padding=1, bias=False)
            layers = [conv, nn.BatchNorm2d(width), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
            blocks.append(nn.Sequential(*layers))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = Mean(2, 3)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(previous, num_classes)
        self.in_channels = in_channels
        # The last stage must still see two pixels a side, or it would have nothing to halve.
        self.smallest = 2 ** len(widths) if pool else 2 ** (len(widths) - 1) + 1
        self.stages = (*(f"blocks.{i}" for i in range(len(widths))), "pool")

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images, self.in_channels, self.smallest)
        return self.head(self.dropout(self.pool(self.blocks(images))))


class MLP(nn.Module):
    """Fully connected layers with ReLU and dropout; the input is flattened to [n, in_features].

    hidden: widths of the hidden layers, the last one the embedding; () gives a linear classifier.
    dropout: probability in [0, 1). Output logits [n, num_classes].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        in_features: int = 784,
        num_classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        in_features, num_classes = inputs.wholes(in_features=in_features, num_classes=num_classes)
        dropout = inputs.number("dropout", dropout, low=0, below=1)
        blocks, previous = [], in_features
        for width in inputs.sizes("hidden", hidden, least=0):
            blocks.append(nn.Sequential(nn.Linear(previous, width), nn.ReLU(), nn.Dropout(dropout)))
            previous = width
        self.flatten = nn.Flatten()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(previous, num_classes)
        self.in_features = in_features
        self.stages = tuple(f"blocks.{i}" for i in range(len(blocks))) or ("flatten",)

    def forward(self, images: Tensor) -> Tensor:
        inputs.tensor("images for MLP", images, finite=False)
        if images.shape[1:].numel() != self.in_features:
            raise ValueError(
                f"images for MLP must be [n, ...] with {self.in_features} values a sample, got "
                f"{list(images.shape)}: set in_features when building the network"
            )
        return self.head(self.blocks(self.flatten(images)))


class VGG(nn.Module):
    """Stacks of 3x3 convolutions (Simonyan and Zisserman 2015) with batch norm, for small images.

    Five blocks with 1, 2, 4, 8 and 8 times `width` channels; a max-pool halves the image in front
    of all but the first and the last one, and one linear layer classifies. This is the form of
    RepDistiller, whose vgg8 has (1, 1, 1, 1, 1) convolutions and whose vgg13 has twice as many.

    convolutions: how many each of the five blocks has. width: channels of the first block.
    Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        convolutions: Sequence[int] = (1, 1, 1, 1, 1),
        *,
        width: int = 64,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        repeats = inputs.sizes("convolutions", convolutions, least=5)
        if len(repeats) > 5:
            raise ValueError(f"convolutions must name five blocks, got {len(repeats)}")
        width, in_channels, num_classes = inputs.wholes(
            width=width, in_channels=in_channels, num_classes=num_classes
        )
        blocks, previous = [], in_channels
        for place, (repeat, factor) in enumerate(zip(repeats, (1, 2, 4, 8, 8))):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if place in (1, 2, 3) else []
            for _ in range(repeat):
                conv = nn.Conv2d(previous, factor * width, 3, padding=1)  # the paper's have a bias
                layers += [conv, nn.BatchNorm2d(factor * width), nn.ReLU()]
                previous = factor * width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.Sequential(*blocks)
        self.pool = Mean(2, 3)
        self.head = nn.Linear(previous, num_classes)
        scale_for_relu(self)
        self.in_channels = in_channels
        self.stages = (*(f"blocks.{i}" for i in range(5)), "pool")

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images, self.in_channels, 8)  # three times halved
        return self.head(self.pool(self.blocks(images)))
