"""Small networks for images of 14 to 32 pixels; each names its stages (see `kdlib.stages`).

Arguments out of range raise ValueError, of another type TypeError, with their name; so do images
that a network cannot read. Networks built around others (`Ensemble`, `Answers`) come last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs


def _check_images(model: nn.Module, images: Tensor, channels: int, smallest: int) -> None:
    """Reject what would otherwise fail deep inside a layer, with a message about the images."""
    name = type(model).__name__
    hint = "set in_channels when building the network, or reshape the images"
    inputs.images(f"images for {name}", images, channels=(channels,), finite=False, hint=hint)
    if min(images.shape[2:]) < smallest:
        raise ValueError(
            f"images for {name} must have at least {smallest} x {smallest} pixels, got "
            f"{images.shape[2]} x {images.shape[3]}: use fewer stages or larger images"
        )


class Mean(nn.Module):
    """Mean over the given dimensions: global average pooling as a module that can be tapped."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


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
        _check_images(self, images, self.in_channels, self.smallest)
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


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - in_channels

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

    memory_format = torch.channels_last  # the order of pixels in which `fit` trains it

    def __init__(
        self, depth: int = 20, *, width: int = 16, in_channels: int = 1, num_classes: int = 10
    ) -> None:
        super().__init__()
        depth = inputs.choice("depth", inputs.whole("depth", depth), range(8, 57, 6))
        width, in_channels, num_classes = inputs.wholes(
            width=width, in_channels=in_channels, num_classes=num_classes
        )
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

    def __init__(self, dim: int, heads: int) -> None:
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

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mlp = _mlp(tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class TokenBlock(nn.Module):
    """Mix the tokens, then the channels, each after a layer norm and around a shortcut."""

    def __init__(self, dim: int, mixing: nn.Module) -> None:
        super().__init__()
        self.norm1, self.mixing = nn.LayerNorm(dim), mixing
        self.norm2, self.mlp = nn.LayerNorm(dim), _mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _TokenNet(nn.Module):
    """What ViT and Mixer share: patches to tokens, blocks, mean over the tokens, classifier."""

    def __init__(
        self,
        dim: int,
        depth: int,
        mixing: Callable[[int], nn.Module],
        patch: int,
        image_size: int,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        dim, depth, image_size = inputs.wholes(dim=dim, depth=depth, image_size=image_size)
        in_channels, num_classes = inputs.wholes(in_channels=in_channels, num_classes=num_classes)
        patch = inputs.whole("patch", patch, high=image_size)
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
                f"images for {type(self).__name__} must have {self.image_size} x "
                f"{self.image_size} pixels, got {images.shape[2]} x {images.shape[3]}: set "
                f"image_size when building the network"
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
    ) -> None:
        dim, heads = inputs.wholes(dim=dim, heads=heads)
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
    ) -> None:
        super().__init__(dim, depth, TokenMixing, patch, image_size, in_channels, num_classes)


class TwoDigits(nn.Module):
    """A network that knows that a number has two digits: it reads each half of the image with the
    same MLP and adds their scores, z[10 a + b] = z_left[a] + z_right[b].

    hidden: as in `MLP`. in_features: values of one half. Input [n, ..., width] with an even width,
    such as [n, 1, 14, 28], output logits [n, 100]. It names no stages: a tap on `digit` keeps the
    right half.
    """

    def __init__(self, hidden: Sequence[int] = (32, 32), *, in_features: int = 14 * 14) -> None:
        super().__init__()
        self.digit = MLP(hidden, in_features=in_features, num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        half, odd = divmod(inputs.tensor("images", images, finite=False).shape[-1], 2)
        if odd:
            raise ValueError(f"images must have an even width, got {list(images.shape)}")
        left, right = self.digit(images[..., :half]), self.digit(images[..., half:])
        return (left[:, :, None] + right[:, None, :]).flatten(1)


class Ensemble(nn.Module):
    """Several networks as one: its logits [n, classes] are the logarithm of their mean probability.

    members: a sequence of one network or more; all of them give the same classes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        inputs.instance("members", members, (list, tuple, nn.ModuleList), "list the networks")
        for place, member in enumerate(members):
            inputs.instance(f"members[{place}]", member, nn.Module)
        if not len(members):
            raise ValueError("members must hold at least one network, got none")
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        found = [inputs.logits("a member", member(images), len(images)) for member in self.members]
        if len({logits.shape for logits in found}) > 1:
            raise ValueError(
                f"members must give the same classes, got {[logits.shape[1] for logits in found]}"
            )
        # Through logarithms only: the mean of probabilities that are 0 in this precision is not 0.
        return torch.stack(found).log_softmax(2).logsumexp(0) - math.log(len(found))


class Answers(nn.Module):
    """What a closed service reveals of its network, as log-probabilities [n, classes].

    top: the probabilities of so many most probable classes, 1 or more and not all of them; what is
    left is spread evenly over the others. decimals: all probabilities, rounded to 0 to 4 decimals;
    as 0 has no logarithm, 1e-5 is added to each. Exactly one of the two is given, else ValueError.
    """

    def __init__(
        self, teacher: nn.Module, *, top: int | None = None, decimals: int | None = None
    ) -> None:
        super().__init__()
        if (top is None) == (decimals is None):
            raise ValueError(
                f"exactly one of top and decimals must be given, got {top} and {decimals}"
            )
        self.teacher = inputs.instance("teacher", teacher, nn.Module)
        self.top = None if top is None else inputs.whole("top", top)
        self.decimals = (
            None if decimals is None else inputs.whole("decimals", decimals, low=0, high=4)
        )

    def forward(self, images: Tensor) -> Tensor:
        p = inputs.logits("teacher", self.teacher(images), len(images)).softmax(1)
        if self.decimals is not None:
            scale = 10**self.decimals
            return (p.mul(scale).round() / scale + 1e-5).log()
        top = inputs.whole("top", self.top, high=p.shape[1] - 1)
        known, classes = p.topk(top, 1)
        unseen = (1 - known.sum(1, keepdim=True)).clamp_min(1e-7) / (p.shape[1] - top)
        answers = unseen.expand_as(p).scatter(1, classes, known)
        return answers.clamp_min(torch.finfo(p.dtype).tiny).log()  # a known 0 has no logarithm
