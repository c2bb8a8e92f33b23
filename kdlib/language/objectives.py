"""What a student language model minimises: modules, batch -> named terms, for `engine.loop`.

- `Supervised`: the data's answers
- `Distillation`: a divergence to the teacher at given prefixes. Where these come from makes the
  method: the data (word-level KD), fresh answers of the teacher, or the student (GKD)

`MiniLLM` has a module of its own, `minillm`, and takes from here what all of them share.

q is the student, p the teacher, y_t a token of an answer y, r_t = log p(y_t)/q(y_t). The teacher
is no part of the module: it is neither trained nor stored. Means are over tokens of answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs
from kdlib.engine.loop import NotFinite
from kdlib.language.divergences import divergence
from kdlib.language.tokenizers import PAD, Batch
from kdlib.stages import evaluating


class Answers(Batch):
    """A batch whose answers a network has drawn."""

    __slots__ = ()


def joined(prompts: Tensor, answers: Tensor, mask: Tensor) -> Answers:
    """Prompts [B, P] and answers [B, N] with their mask as a batch [B, P - 1 + N] to learn from."""
    tokens = torch.cat((prompts, answers), 1)
    return Answers(tokens[:, :-1], tokens[:, 1:], behind(prompts, mask))


def behind(prompts: Tensor, values: Tensor) -> Tensor:
    """Values [B, N] of an answer's tokens where these are predicted, [B, P - 1 + N], 0 before."""
    return F.pad(values, (prompts.shape[1] - 1, 0))


class Tally:
    """Means over an epoch of what is watched and not minimised."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, float | Tensor]] = {}

    def add(self, name: str, total: float | Tensor, count: float | Tensor) -> None:
        """Add to the sum, and to what it is divided by."""
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = before[0] + total, before[1] + count

    def means(self) -> dict[str, float]:
        """The means since the last call."""
        sums, self._sums = self._sums, {}
        return {name: float(total) / float(count) for name, (total, count) in sums.items() if count}


def nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood −log q(y_t) in nats, where the mask is True; 0 over nothing.

    Args:
        logits: [B, T, V].
        targets: int64 [B, T].
        mask: bool [B, T].
    """
    total = F.cross_entropy(_precise(logits[mask]), targets[mask], reduction="sum")
    return total / mask.sum().clamp(min=1)


def _precise(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Supervised(nn.Module):
    """The mean of −log q(y_t) over the tokens of the given answers: supervised fine-tuning (SFT).

    On answers that a teacher has written this is sequence-level KD (Kim, Rush 2016), and training
    on a black box if they come from a file.

    Args:
        student: tokens [B, T], padding=id -> logits [B, T, V], such as `GPT`.
        padding: the token that fills rows up.

    The term is "nll". FloatingPointError: the logits became infinite or NaN.
    """

    def __init__(self, student: nn.Module, *, padding: int = PAD) -> None:
        super().__init__()
        self.student, self.padding = student, padding

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = read(self.student, batch.tokens, self.padding)
        return {"nll": nll(logits, batch.targets, batch.mask)}


class Distillation(nn.Module):
    """(1 − nll) · D(p, q) + nll · (−log q(y_t)), means over the tokens of the answers.

    D is a `divergence` over the whole vocabulary at each prefix. Word-level KD takes the prefixes
    from the data, with kind "forward"; GKD (Agarwal et al. 2024, Algorithm 1) from the student as
    well, with kind "jsd", and no gradient goes through their drawing: what MiniLLM's long part is.

    Args:
        student, teacher: tokens [B, T], padding=id -> logits [B, T, V], of one vocabulary.
        kind, beta, temperature: see `divergence`.
        nll: share of the cross-entropy with the batch's answers, in [0, 1). MiniLLM's baselines KD
            and SeqKD have 0.5 in the official scripts.
        padding: the token that fills rows up.
        tally: takes the means of "reward", r_t, and "reverse_kl", KL(q ‖ p), of `Answers`.

    The terms are "divergence" and "nll". FloatingPointError: the student's logits became infinite
    or NaN. ValueError: the teacher has another vocabulary, an option is out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        kind: str = "forward",
        beta: float = 0.5,
        temperature: float = 1.0,
        nll: float = 0.0,
        padding: int = PAD,
        tally: Tally | None = None,
    ) -> None:
        super().__init__()
        one = torch.zeros(1, 1, 2)
        divergence(one, one, kind, beta=beta, temperature=temperature)  # checks the options
        self.student, self._teacher = student, (teacher,)
        self.kind, self.beta, self.temperature = kind, beta, temperature
        self.nll = inputs.number("nll", nll, low=0, below=1)
        self.padding, self.tally = padding, tally

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = read(self.student, batch.tokens, self.padding)
        teacher = taught(self._teacher[0], batch.tokens, self.padding)
        options: dict[str, Any] = {"temperature": self.temperature, "mask": batch.mask}
        value = divergence(logits, teacher, self.kind, beta=self.beta, **options)
        if self.tally is not None and isinstance(batch, Answers):
            _watch(self.tally, batch, logits.detach(), teacher)
        terms = {"divergence": (1 - self.nll) * value}
        if self.nll:
            terms["nll"] = self.nll * nll(logits, batch.targets, batch.mask)
        return terms


def _watch(tally: Tally, batch: Batch, logits: Tensor, teacher: Tensor) -> None:
    """The reward and the reverse KL of the student's own answers."""
    ratios = log_probs(teacher, batch.targets) - log_probs(logits, batch.targets)
    tally.add("reward", ratios.where(batch.mask, 0.0).sum(), batch.mask.sum())
    tally.add("reverse_kl", divergence(logits, teacher, "reverse", mask=batch.mask), 1)


def log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / T) [B, T] of the targets int64 [B, T], from logits [B, T, V]."""
    scaled = _precise(logits) / temperature
    return scaled.gather(-1, targets[..., None])[..., 0] - scaled.logsumexp(-1)


# Reading a network


def read(network: nn.Module, tokens: Tensor, padding: int) -> Tensor:
    """The student's logits [B, T, V], finite."""
    logits = network(tokens, padding=padding)
    if logits.is_cpu and not math.isfinite(logits.detach().sum()):
        raise NotFinite("the student's logits became infinite or NaN")
    return logits


@torch.no_grad()
def taught(teacher: nn.Module, tokens: Tensor, padding: int) -> Tensor:
    """The teacher's logits [B, T, V], in evaluation mode."""
    with evaluating(teacher):
        return teacher(tokens, padding=padding)
