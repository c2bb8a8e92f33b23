"""Small networks for images of 14 to 32 pixels; each names its stages (see `kdlib.stages`)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _check_images(model: nn.Module, images: Tensor, channels: int, smallest: int) -> None:
    """Reject what would otherwise fail deep inside a layer, with a message about the images."""
    name = type(model).__name__
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"{name} expects images of shape [n, {channels}, height, width], got "
            f"{list(images.shape)}; set in_channels when building the model, or reshape the images"
        )
    if min(images.shape[2:]) < smallest:
        raise ValueError(
            f"{name} halves the image in every stage and needs at least {smallest} x {smallest} "
            f"pixels, got {images.shape[2]} x {images.shape[3]}; use fewer stages or larger images"
        )


def _check_sizes(**sizes: int) -> None:
    """Every named size must be a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")


class Mean(nn.Module):
    """Mean over the given dimensions: global average pooling as a module that can be tapped."""

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class ConvNet(nn.Module):
    """A plain CNN: one 3x3 convolution, batch norm and ReLU per stage, each halving the image.

    widths: output channels of each stage. downsample: "stride" puts stride 2 into the convolution;
    "pool" adds a max-pool of 2 behind it, which costs about twice as much. dropout: probability,
    in front of the classifier. Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        downsample: str = "stride",
        dropout: float = 0.0,
    ):
        super().__init__()
        if downsample not in ("stride", "pool"):
            raise ValueError(f'downsample must be "stride" or "pool", got {downsample!r}')
        if not widths:
            raise ValueError("widths needs at least one stage, got an empty sequence")
        _check_sizes(in_channels=in_channels, num_classes=num_classes)
        pool, blocks, previous = downsample == "pool", [], in_channels
        for width in widths:
            _check_sizes(widths=width)
            conv = nn.Conv2d(previous, width, 3, 1 if pool else 2, padding=1, bias=False)
            layers = [conv, nn.BatchNorm2d(width), nn.ReLU()]
            blocks.append(nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else [])))
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
        _check_images(self, images, self.in_channels, self.smallest)
        return self.head(self.dropout(self.pool(self.blocks(images))))


class MLP(nn.Module):
    """Fully connected layers with ReLU and dropout; the input is flattened to [n, in_features].

    hidden: widths of the hidden layers, the last one the embedding; () gives a linear classifier.
    Output logits [n, num_classes].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        in_features: int = 784,
        num_classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_sizes(in_features=in_features, num_classes=num_classes)
        blocks, previous = [], in_features
        for width in hidden:
            _check_sizes(hidden=width)
            blocks.append(nn.Sequential(nn.Linear(previous, width), nn.ReLU(), nn.Dropout(dropout)))
            previous = width
        self.flatten = nn.Flatten()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(previous, num_classes)
        self.in_features = in_features
        self.stages = tuple(f"blocks.{i}" for i in range(len(blocks))) or ("flatten",)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim < 2 or images.shape[1:].numel() != self.in_features:
            raise ValueError(
                f"MLP expects a batch [n, ...] of {self.in_features} values per sample, got shape "
                f"{list(images.shape)}; set in_features when building the model"
            )
        return self.head(self.blocks(self.flatten(images)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]  # keep every second pixel
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))  # zero channels


class ResNet(nn.Module):
    """The residual network of He et al. 2016 for small images: 3 stages of (depth - 2) / 6 blocks.

    depth: 6n + 2 from 8 to 56. width: channels of the first stage; the others have 2 and 4 times as
    many. Depth 20, width 16 and three input channels give the paper's 0.27 million parameters.
    Input [n, in_channels, h, w], output logits [n, num_classes].
    """

    def __init__(
        self, depth: int = 20, *, width: int = 16, in_channels: int = 1, num_classes: int = 10
    ):
        super().__init__()
        if depth not in range(8, 57, 6):
            raise ValueError(f"depth must be 6n + 2 from 8 to 56 (8, 14, 20, ...), got {depth}")
        _check_sizes(width=width, in_channels=in_channels, num_classes=num_classes)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        blocks, previous = [], width
        for factor in (1, 2, 4):
            first = ResidualBlock(previous, factor * width, 1 if factor == 1 else 2)
            previous = factor * width
            rest = (ResidualBlock(previous, previous, 1) for _ in range((depth - 2) // 6 - 1))
            blocks.append(nn.Sequential(first, *rest))
        self.blocks = nn.Sequential(*blocks)
        self.pool = Mean(2, 3)
        self.head = nn.Linear(previous, num_classes)
        for module in self.modules():  # PyTorch's default is too small for a deep ReLU network
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.in_channels = in_channels
        self.stages = ("blocks.0", "blocks.1", "blocks.2", "pool")

    def forward(self, images: Tensor) -> Tensor:
        _check_images(self, images, self.in_channels, 3)
        return self.head(self.pool(self.blocks(self.stem(images))))


class Attention(nn.Module):
    """Multi-head self-attention on tokens [n, t, dim], through PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, dim = x.shape
        query, key, value = (
            self.qkv(x).view(n, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # [n, heads, t, dim / heads]
        return self.out(mixed.transpose(1, 2).reshape(n, t, dim))


class TokenMixing(nn.Module):
    """The mixing layer of an MLP-Mixer: one MLP across the tokens, shared by all channels."""

    def __init__(self, tokens: int):
        super().__init__()
        self.mlp = _mlp(tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class TokenBlock(nn.Module):
    """Mix the tokens, then the channels, each after a layer norm and around a shortcut."""

    def __init__(self, dim: int, mixing: nn.Module):
        super().__init__()
        self.norm1, self.mixing = nn.LayerNorm(dim), mixing
        self.norm2, self.mlp = nn.LayerNorm(dim), _mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _TokenNet(nn.Module):
    """What ViT and Mixer share: patches to tokens, blocks, mean over the tokens, classifier."""

    def __init__(self, dim, depth, mixing, patch, image_size, in_channels, num_classes):
        super().__init__()
        _check_sizes(dim=dim, depth=depth, patch=patch, image_size=image_size)
        _check_sizes(in_channels=in_channels, num_classes=num_classes)
        if patch > image_size:
            raise ValueError(f"patch must fit into the image, got {patch} > {image_size} pixels")
        self.patch, self.image_size, self.in_channels = patch, image_size, in_channels
        self.grid = -(-image_size // patch)  # patches a side, rounded up: the border is padded
        # Linear on cut-out patches equals a convolution with stride, and is faster on a processor.
        self.embed = nn.Linear(in_channels * patch**2, dim)
        self.blocks = nn.Sequential(
            *(TokenBlock(dim, mixing(self.grid**2)) for _ in range(depth)),
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = Mean(1)
        self.head = nn.Linear(dim, num_classes)
        self.stages = (*(f"blocks.{i}" for i in range(depth)), "pool")

    def tokens(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, grid * grid, dim], row by row."""
        _check_images(self, images, self.in_channels, 1)
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"{type(self).__name__} expects images of {self.image_size} x {self.image_size} "
                f"pixels, got {images.shape[2]} x {images.shape[3]}; set image_size when building"
            )
        n, g, p = len(images), self.grid, self.patch
        before, missing = (g * p - self.image_size) // 2, g * p - self.image_size
        if missing:
            images = F.pad(images, (before, missing - before) * 2)
        patches = images.reshape(n, self.in_channels, g, p, g, p).permute(0, 2, 4, 1, 3, 5)
        return self.embed(patches.reshape(n, g * g, self.in_channels * p * p))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.norm(self.blocks(self.tokens(images)))))


class ViT(_TokenNet):
    """A small vision transformer (Dosovitskiy et al. 2021) that averages its tokens.

    dim: width of a token, divisible by heads. patch: pixels a side; an image that patch does not
    divide is padded with zeros. Stages "blocks.i" give tokens [n, grid * grid, dim].
    Input [n, in_channels, image_size, image_size], output logits [n, num_classes].
    """

    def __init__(
        self,
        dim: int = 48,
        depth: int = 2,
        *,
        heads: int = 4,
        patch: int = 4,
        image_size: int = 28,
        in_channels: int = 1,
        num_classes: int = 10,
    ):
        _check_sizes(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim {dim} and {heads} heads")

        def mixing(tokens: int) -> nn.Module:
            return Attention(dim, heads)

        super().__init__(dim, depth, mixing, patch, image_size, in_channels, num_classes)
        # Large for a ViT (0.02 is usual): with few images, positions must be told apart from the
        # start, or the first epochs go into growing this table.
        self.position = nn.Parameter(0.2 * torch.randn(1, self.grid**2, dim))

    def tokens(self, images: Tensor) -> Tensor:
        return super().tokens(images) + self.position


class Mixer(_TokenNet):
    """A small MLP-Mixer (Tolstikhin et al. 2021); arguments and stages as in `ViT`, no heads."""

    def __init__(
        self,
        dim: int = 48,
        depth: int = 2,
        *,
        patch: int = 4,
        image_size: int = 28,
        in_channels: int = 1,
        num_classes: int = 10,
    ):
        super().__init__(dim, depth, TokenMixing, patch, image_size, in_channels, num_classes)
