"""A small GPT to read in one sitting: learned positions, pre-norm blocks, a cache for sampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs


class Cache:
    """Keys and values of the tokens read so far, in a buffer with room for more.

    `length` places are filled; `skipped` [batch] of them are padding on the left, None if none is.
    """

    def __init__(self, depth: int, batch: int, room: int) -> None:
        self.depth, self.batch, self.room = depth, batch, room
        self.length = 0
        self.skipped: Tensor | None = None
        self.buffer: Tensor | None = None  # [2, depth, batch, heads, room, d]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [batch, heads, t, d] of a layer; returns all so far."""
        if self.buffer is None:  # only now is the type known, which autocast may change
            shape = (2, self.depth, *keys.shape[:2], self.room, keys.shape[3])
            self.buffer = keys.new_empty(shape)
        end, mine = self.length + keys.shape[2], self.buffer[:, layer]
        mine[0, :, :, self.length : end], mine[1, :, :, self.length : end] = keys, values
        return mine[0, :, :, :end], mine[1, :, :, :end]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block of GPT-2."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, cache: Cache | None, layer: int
    ) -> Tensor:
        b, t, dim = x.shape
        split = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [b, heads, t, dim / heads]
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, dim))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder of `depth` blocks (Radford et al. 2019), without dropout.

    Token ids lie in 0 to vocabulary - 1; a sequence has at most `context` tokens, padding included.
    `dim` is the width of a token, divisible by `heads`; each size is a whole number of at least 1,
    or ValueError or TypeError names it. The output layer has no bias, and its weights are those of
    the token embedding (tied).
    """

    def __init__(self, vocabulary: int, context: int, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        vocabulary, context = inputs.wholes(vocabulary=vocabulary, context=context)
        dim, depth, heads = inputs.wholes(dim=dim, depth=depth, heads=heads)
        self.vocabulary, self.context, self.depth = vocabulary, context, depth
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim {dim} and {heads} heads")
        self.token, self.position = nn.Embedding(vocabulary, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.5 * layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.token.weight, std=dim**-0.5)  # the first logits have a variance of 1
        nn.init.normal_(self.position.weight, std=0.02)
        self.head.weight = self.token.weight

    def new_cache(self, batch: int, room: int) -> Cache:
        """An empty cache for `batch` rows of at most `room` tokens, room <= context."""
        batch, room = inputs.whole("batch", batch), inputs.whole("room", room, high=self.context)
        return Cache(self.depth, batch, room)

    def forward(
        self, tokens: Tensor, *, cache: Cache | None = None, padding: int | None = 0
    ) -> Tensor:
        """Logits [B, T, vocabulary] of the token that follows each of the `tokens` [B, T], int64.

        A row may start with padding: no real token attends to it, positions count from the first
        real token, and its own logits mean nothing. Padding elsewhere is an ordinary token.

        Args:
            cache: from `new_cache`. The tokens continue those in the cache, and join them.
            padding: its id, None if there is none; looked for in the first call of a cache only,
                where every row must hold a real token.

        Raises:
            ValueError: ids out of range, more tokens than the context or the cache can hold
                (padding included), a cache where gradients are computed.
            TypeError: tokens that are no whole numbers.
        """
        return self.head(self.hidden(tokens, cache=cache, padding=padding))

    def hidden(
        self, tokens: Tensor, *, cache: Cache | None = None, padding: int | None = 0
    ) -> Tensor:
        """What the output layer `head` reads, [B, T, dim]; arguments and errors as in `forward`."""
        before, skipped = self._start(tokens, cache, padding)
        place = torch.arange(before + tokens.shape[1], device=tokens.device)
        query = place[before:, None]
        causal = skipped is None and before == 0
        if skipped is None:
            mask = None if causal or len(query) == 1 else place <= query
            x = self.token(tokens) + self.position(query[:, 0])
        else:
            real = place >= skipped[:, None, None]  # [B, 1, before + T]
            # Padding attends to itself: a softmax over nothing would be NaN.
            mask = ((place <= query) & real | (place == query))[:, None]
            x = self.token(tokens) + self.position((query[:, 0] - skipped[:, None]).clamp_min(0))
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, causal, cache, layer)
        if cache is not None:
            cache.length, cache.skipped = len(place), skipped
        return self.norm(x)

    def _start(
        self, tokens: Tensor, cache: Cache | None, padding: int | None
    ) -> tuple[int, Tensor | None]:
        """How many tokens came before, and the padding on the left of each row; checks all."""
        inputs.instance("tokens", tokens, Tensor)
        before, skipped = (0, None) if cache is None else (cache.length, cache.skipped)
        if before == 0 and tokens.is_cpu:
            inputs.classes("tokens", tokens, self.vocabulary, ndim=2)
        if (end := before + tokens.shape[1]) > self.context:
            raise ValueError(f"tokens must be at most {self.context}, the context, got {end}")
        if cache is not None and torch.is_grad_enabled():
            raise ValueError("cache must be None in training, got one: use torch.no_grad()")
        if cache is not None and (cache.batch != len(tokens) or cache.room < end):
            held = f"{cache.batch} of {cache.room}"
            raise ValueError(f"cache must hold {len(tokens)} rows of {end} tokens, got {held}")
        if before == 0 and padding is not None:
            found = (tokens == inputs.whole("padding", padding, low=0)).cumprod(1).sum(1)
            skipped = found if found.any() else None
        return before, skipped
