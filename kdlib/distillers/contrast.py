"""Contrastive distillation (CRD), and its memory: the last embedding of every training sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs, losses
from kdlib.distillers.base import (
    Batch,
    Distiller,
    Pairs,
    Setup,
    Stages,
    as_vector,
    register,
    vector_size,
)


@register("crd")
def crd(
    setup: Setup,
    *,
    bank: bool = True,
    other_classes: bool = False,
    num_negatives: int | None = None,
    temperature: float | None = None,
    momentum: float = 0.5,
    dim: int | None = None,
    stage: Stages = -1,
    teacher_stage: Stages = None,
    weight: float | None = None,
) -> Distiller:
    """Contrastive distillation of the embedding: both sides projected to `dim`, of unit length.

    With `bank`, the paper's form: a memory of all training samples, negatives from other classes.
    Published: 16384 negatives (the default; all where there are fewer), T 0.07, momentum 0.5, dim
    128, weight 0.8; on small networks try 0.1 too. Without, the negatives are the rest of the
    batch (`losses.info_nce`), with `other_classes` only its images of other classes, as in the
    bank; the defaults are T 0.1, dim 64, weight 1. Positives are by image.
    """
    inputs.instance("bank", bank, bool)
    inputs.instance("other_classes", other_classes, bool)
    if bank and other_classes:
        raise ValueError(
            "other_classes belongs to bank=False: leave it out, a bank draws from other classes"
        )
    if not bank and (num_negatives is not None or momentum != 0.5):
        raise ValueError(
            "num_negatives and momentum belong to the bank: leave them out, or set bank=True"
        )
    temperature = (0.07 if bank else 0.1) if temperature is None else temperature
    dim = (128 if bank else 64) if dim is None else dim
    weight = (0.8 if bank else 1.0) if weight is None else weight
    inputs.number("temperature", temperature, low=1e-3, high=100)
    inputs.whole("dim", dim)
    pairs = Pairs(setup, stage, teacher_stage, several=False)
    contrast = Contrast(pairs, dim, temperature, other_classes=other_classes)
    if bank:
        contrast.bank = Bank(
            setup.labels,
            dim,
            temperature=temperature,
            momentum=momentum,
            num_negatives=16384 if num_negatives is None else num_negatives,
        )
    return Distiller(contrast, weight=weight, pairs=pairs)


class Contrast(nn.Module):
    """The two projections; negatives come from the bank, or from the batch where there is none."""

    bank: Bank | None

    def __init__(self, pairs: Pairs, dim: int, temperature: float, *, other_classes: bool = False):
        super().__init__()
        self.pairs, self.temperature, self.bank = pairs, temperature, None
        self.other_classes = other_classes
        ((student, teacher),) = pairs.shapes
        self.student_head = nn.Linear(vector_size(student), dim)
        self.teacher_head = nn.Linear(vector_size(teacher), dim)

    def forward(self, batch: Batch) -> Tensor:
        ((s, t),) = self.pairs(batch)
        s, t = self.student_head(as_vector(s)), self.teacher_head(as_vector(t))
        if self.bank is None:
            target = batch.target if self.other_classes else None
            return losses.info_nce(s, t, self.temperature, target)
        return self.bank(F.normalize(s), F.normalize(t), batch.index)


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

    # In the state: the memories, and log Z of the student's and the teacher's scores (NaN: not
    # measured yet). Ordered by class, the samples of other classes are all but one block.
    student: Tensor
    teacher: Tensor
    log_z: Tensor
    labels: Tensor
    by_class: Tensor
    size: Tensor
    start: Tensor

    def __init__(
        self,
        labels: Tensor,
        dim: int,
        *,
        num_negatives: int | None = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        inputs.number("temperature", temperature, above=0)
        inputs.number("momentum", momentum, low=0, below=1)
        if num_negatives is not None:
            inputs.whole("num_negatives", num_negatives)
        size = labels.bincount()
        if size.max() == len(labels):
            raise ValueError(
                "labels must be of two classes or more: negatives are of other classes"
            )
        n = len(labels)
        self.num_negatives = None if num_negatives is None or num_negatives >= n else num_negatives
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("student", F.normalize(torch.randn(n, dim)))
        self.register_buffer("teacher", F.normalize(torch.randn(n, dim)))
        self.register_buffer("log_z", torch.full((2,), math.nan))
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)

    def forward(
        self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        """`losses.nce` in both directions; in training mode the memory moves.

        student, teacher: unit embeddings [B, dim]. index: int64 [B], which samples they are.
        negatives: int64 [B, K], sample numbers; None draws them from torch's random stream.
        """
        mask: Tensor | None = None
        if negatives is None and self.num_negatives is None:
            mask = torch.ne(self.labels[index][:, None], self.labels)
        elif negatives is None:
            negatives = self.draw(index)
        total = student.new_zeros(())
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
        uniform = torch.rand(len(index), self.num_negatives or 0, device=index.device)
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
