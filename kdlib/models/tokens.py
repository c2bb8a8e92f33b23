"""Networks on tokens, the patches of an image: a transformer and a mixer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs
from kdlib.models.pieces import Mean, check_images


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
        check_images(self, images, self.in_channels, 1)
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images for {type(self).__name__} must have {self.image_size} x "
                f"{self.image_size} pixels, got {images.shape[2]} x {images.shape[3]}: set "
                f"image_size when building the network"
            )
        n, g, p = images.shape[0], self.grid, self.patch
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
