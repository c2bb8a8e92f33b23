"""The memory bank of contrastive distillation: the last embedding of every training sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses


class Bank(nn.Module):
    """Contrasts student and teacher embeddings with each other's memory (Tian et al. 2020, CRD).

    Negatives come from other classes only. The memory moves after each use; Z is measured on the
    first batch and then kept, as in the authors' code (the paper does not say so). Both are in
    `state_dict`.

    The scores are one matrix product against the whole memory, from which the drawn negatives are
    picked: B n numbers. To gather the embeddings of K negatives first, as the authors do, takes
    B K dim of them, 0.5 GB at the published sizes.

    Args:
        labels: int64 [n], classes of the training samples.
        dim: length of an embedding.
        num_negatives: K; None, or n and more, takes all samples of other classes.
        temperature: divides the cosines.
        momentum: share of the old embedding that stays, in [0, 1).
    """

    def __init__(self, labels: Tensor, dim: int, *, num_negatives: int | None = 16384,
                 temperature: float = 0.07, momentum: float = 0.5):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be a positive number")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and below 1")
        if num_negatives is not None and num_negatives < 1:
            raise ValueError(f"num_negatives is {num_negatives}; it must be at least 1, or None")
        size = labels.bincount()
        if size.max() == len(labels):
            raise ValueError("labels are of one class; negatives are taken from other classes")
        n = len(labels)
        self.num_negatives = None if num_negatives is None or num_negatives >= n else num_negatives
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("student", F.normalize(torch.randn(n, dim)))
        self.register_buffer("teacher", F.normalize(torch.randn(n, dim)))
        self.register_buffer("log_z", torch.full((2,), math.nan))  # student's, teacher's scores
        # Ordered by class, the samples of other classes are all but one block.
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor,
                negatives: Tensor | None = None) -> Tensor:
        """`losses.nce` in both directions; in training mode the memory moves.

        student, teacher: unit embeddings [B, dim]. index: int64 [B], which samples they are.
        negatives: int64 [B, K], sample numbers; None draws them from torch's random stream.
        """
        mask = None
        if negatives is None and self.num_negatives is None:
            mask = self.labels[index][:, None] != self.labels
        elif negatives is None:
            negatives = self.draw(index)
        total = 0.0
        pairs = ((student, self.teacher), (teacher, self.student))
        for way, (embedding, memory) in enumerate(pairs):
            scores = embedding @ memory.T / self.temperature  # [B, n]
            positive = scores.gather(1, index[:, None])
            negative = scores if negatives is None else scores.gather(1, negatives)
            seen = scores if negatives is None else torch.cat([positive, negative], 1)
            log_z = self._log_z(way, seen)
            total = total + losses.nce(positive[:, 0] - log_z, negative - log_z, len(memory), mask)
        if self.training:
            # New tensors, because the backward pass still needs the old ones.
            self.student = self._moved(self.student, student, index)
            self.teacher = self._moved(self.teacher, teacher, index)
        return total

    def draw(self, index: Tensor) -> Tensor:
        """Negatives [B, K] for the samples at `index`, uniform over those of other classes."""
        label = self.labels[index][:, None]
        size, start = self.size[label], self.start[label]
        uniform = torch.rand(len(index), self.num_negatives, device=index.device)
        place = (uniform * (len(self.labels) - size)).long()
        return self.by_class[place + size * (place >= start)]

    @torch.no_grad()
    def _log_z(self, way: int, scores: Tensor) -> Tensor:
        """log Z, Z = n mean exp(score), of the first batch; no branch, which would have to wait."""
        measured = scores.logsumexp((0, 1)) + math.log(len(self.labels) / scores.numel())
        self.log_z[way] = torch.where(self.log_z[way].isnan(), measured, self.log_z[way])
        return self.log_z[way].clone()

    @torch.no_grad()
    def _moved(self, memory: Tensor, new: Tensor, index: Tensor) -> Tensor:
        mixed = self.momentum * memory[index] + (1 - self.momentum) * new
        return memory.index_copy(0, index, F.normalize(mixed))
