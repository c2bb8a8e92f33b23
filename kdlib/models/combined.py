"""Networks built around others: one network used twice, several as one, a closed service."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.models.plain import MLP


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

    members: a sequence of one network or more; all of them give the same classes. It names no
    stages, because no member's features are those of all: as a teacher it serves methods on logits.
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
        count = images.shape[0]
        found = [inputs.logits("a member", member(images), count) for member in self.members]
        if len({logits.shape[1] for logits in found}) > 1:
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
        p = inputs.logits("teacher", self.teacher(images), images.shape[0]).softmax(1)
        if self.decimals is not None:
            scale = 10**self.decimals
            return (p.mul(scale).round() / scale + 1e-5).log()
        top = inputs.whole("top", self.top, high=p.shape[1] - 1)
        known, classes = p.topk(top, 1)
        unseen = (1 - known.sum(1, keepdim=True)).clamp_min(1e-7) / (p.shape[1] - top)
        answers = unseen.expand_as(p).scatter(1, classes, known)
        return answers.clamp_min(torch.finfo(p.dtype).tiny).log()  # a known 0 has no logarithm
