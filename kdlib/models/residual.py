"""Convolutional networks with shortcuts: what a block computes is added to what it reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs
from kdlib.models.pieces import Mean, check_images, scale_for_relu


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016).

    Where the shape changes, the shortcut keeps every second pixel and adds channels of zeros
    (option A of the paper, without parameters), or it is a 1x1 convolution (`project`, option B).
    """

    def __init__(self, in_channels: int, width: int, stride: int, project: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - in_channels
        self.project: nn.Module | None = None
        if project and (stride > 1 or self.new_channels):
            conv = nn.Conv2d(in_channels, width, 1, stride, bias=False)
            self.project = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.project is not None:
            return F.relu(out + self.project(x))
        shortcut = x[:, :, :: self.stride, :: self.stride]  # keep every second pixel
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))  # zero channels


class ResNet(nn.Module):
    """The residual network of He et al. 2016 for small images: 3 stages of (depth - 2) / 6 blocks.

    depth: 6n + 2 from 8 to 110. width: channels of the first stage; the others have 2 and 4 times
    as many. stem: channels of the convolution in front, at most `width`, which is the default.
    shortcut: "padded" (option A of the paper, its networks for CIFAR) or "projected" (option B).
    Depth 20, width 16 and three input channels give the paper's 0.27 million parameters. Depth 8,
    width 64, stem 32 and projected shortcuts give RepDistiller's resnet8x4.
    Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    memory_format = torch.channels_last  # the order of pixels in which `fit` trains it

    def __init__(
        self,
        depth: int = 20,
        *,
        width: int = 16,
        stem: int | None = None,
        shortcut: str = "padded",
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        depth = inputs.choice("depth", inputs.whole("depth", depth), range(8, 111, 6))
        width, in_channels, num_classes = inputs.wholes(
            width=width, in_channels=in_channels, num_classes=num_classes
        )
        previous = width if stem is None else inputs.whole("stem", stem, high=width)
        project = inputs.choice("shortcut", shortcut, ("padded", "projected")) == "projected"
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, previous, 3, padding=1, bias=False),
            nn.BatchNorm2d(previous),
            nn.ReLU(),
        )
        blocks = []
        for factor in (1, 2, 4):
            stride = 1 if factor == 1 else 2
            first = ResidualBlock(previous, factor * width, stride, project)
            previous = factor * width
            rest = (ResidualBlock(previous, previous, 1) for _ in range((depth - 2) // 6 - 1))
            blocks.append(nn.Sequential(first, *rest))
        self.blocks = nn.Sequential(*blocks)
        self.pool = Mean(2, 3)
        self.head = nn.Linear(previous, num_classes)
        scale_for_relu(self)
        self.in_channels = in_channels
        self.stages = ("blocks.0", "blocks.1", "blocks.2", "pool")

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images, self.in_channels, 3)
        return self.head(self.pool(self.blocks(self.stem(images))))


class PreActivationBlock(nn.Module):
    """Norm and ReLU in front of each of two 3x3 convolutions; nothing acts on the sum itself.

    He et al. 2016, "Identity mappings in deep residual networks". Where the shape changes, the
    shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.project: nn.Module | None = None
        if stride > 1 or width != in_channels:
            self.project = nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + (x if self.project is None else self.project(active))


class WideResNet(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis 2016): 3 stages of (depth - 4) / 6 blocks.

    depth: 6n + 4 from 10 to 40. widen: the stages have 16, 32 and 64 times as many channels. There
    is no dropout. Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    memory_format = torch.channels_last

    def __init__(
        self, depth: int = 16, widen: int = 1, *, in_channels: int = 1, num_classes: int = 10
    ) -> None:
        super().__init__()
        depth = inputs.choice("depth", inputs.whole("depth", depth), range(10, 41, 6))
        widen, in_channels, num_classes = inputs.wholes(
            widen=widen, in_channels=in_channels, num_classes=num_classes
        )
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks, previous = [], 16
        for factor in (1, 2, 4):
            width = 16 * factor * widen
            first = PreActivationBlock(previous, width, 1 if factor == 1 else 2)
            rest = (PreActivationBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1))
            blocks.append(nn.Sequential(first, *rest))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(previous)
        self.pool = Mean(2, 3)
        self.head = nn.Linear(previous, num_classes)
        scale_for_relu(self)
        self.in_channels = in_channels
        self.stages = ("blocks.0", "blocks.1", "blocks.2", "pool")

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images, self.in_channels, 3)
        return self.head(self.pool(F.relu(self.norm(self.blocks(self.stem(images))))))


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 channel by channel, 1x1 back (without ReLU).

    The shortcut joins the narrow ends, where the shape stays (Sandler et al. 2018). An expansion
    of 1 leaves the first convolution out.
    """

    def __init__(self, in_channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        expand = _activated(nn.Conv2d(in_channels, wide, 1, bias=False)) if expansion > 1 else []
        each = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        back = nn.Conv2d(wide, width, 1, bias=False)
        self.layers = nn.Sequential(*expand, *_activated(each), back, nn.BatchNorm2d(width))
        self.same_shape = stride == 1 and in_channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same_shape else self.layers(x)


def _activated(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6()]


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, Table 2) for small images.

    The blocks are the paper's; of its five halvings of the image the second is left out, as
    in RepDistiller, whose mobile_half has width 0.5. Four stages end where the next one halves the
    image, and at the last block.

    width: multiplier of the channels, from 1/16 to 8; as in the paper the 1280 of the last layer
    only grow. Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    memory_format = torch.channels_last
    # (expansion, channels, blocks, stride of the first block), stage by stage
    settings = (
        ((1, 16, 1, 1), (6, 24, 2, 1)),
        ((6, 32, 3, 2),),
        ((6, 64, 4, 2), (6, 96, 3, 1)),
        ((6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self, width: float = 1.0, *, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        width = inputs.number("width", width, low=1 / 16, high=8)
        in_channels, num_classes = inputs.wholes(in_channels=in_channels, num_classes=num_classes)
        previous, last = int(32 * width), int(1280 * max(width, 1))
        stem = nn.Conv2d(in_channels, previous, 3, 2, padding=1, bias=False)
        self.stem = nn.Sequential(*_activated(stem))
        stages = []
        for stage in self.settings:
            blocks = []
            for expansion, channels, count, stride in stage:
                size = int(channels * width)
                for step in (stride, *[1] * (count - 1)):
                    blocks.append(InvertedResidual(previous, size, step, expansion))
                    previous = size
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.last = nn.Sequential(*_activated(nn.Conv2d(previous, last, 1, bias=False)))
        self.pool = Mean(2, 3)
        self.head = nn.Linear(last, num_classes)
        scale_for_relu(self)
        self.in_channels = in_channels
        self.stages = (*(f"blocks.{i}" for i in range(len(stages))), "pool")

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images, self.in_channels, 9)
        return self.head(self.pool(self.last(self.blocks(self.stem(images)))))
