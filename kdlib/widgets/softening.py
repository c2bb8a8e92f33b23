"""Temperature and alpha, moved by hand on the answer to one image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib import inputs, show
from kdlib.widgets.moving import Moving, grey

ALT = (
    "The teacher's softened answer to one image beside the label and the mixture of both, and how "
    "hard labels, teacher with T² and teacher without T² pull at the logits of a student."
)
HOTTEST = 32.0


def soften(
    image: Tensor,
    logits: Tensor,
    label: int,
    *,
    student: Tensor | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> Moving:
    """The soft target of one image, and the gradient of each part of the loss, under two sliders.

    The loss is (1 - alpha) CE + alpha T² KL (Hinton, Vinyals and Dean 2015, section 2), its
    gradient (1 - alpha) (q₁ - label) + alpha T (q - p) with q = softmax(student/T), at T = 1 q₁,
    and p = softmax(logits/T).

    Args:
        image: [1, h, w], values in [0, 1].
        logits: of the teacher, [classes], at least two.
        label: the class on the label.
        student: its logits [classes]; None: all equal, a student that has learnt nothing.
        temperature: where the slider starts, in [1, 32].
        alpha: where the teacher's share starts, in [0, 1].

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    inputs.images("image", image[None] if isinstance(image, Tensor) else image, unit=True)
    teacher = inputs.tensor("logits", logits, "[classes]").detach().cpu().double()
    count = len(teacher)
    if count < 2:
        raise ValueError(f"logits must hold at least two classes, got {count}")
    label = inputs.whole("label", label, low=0, high=count - 1)
    own = torch.zeros(count) if student is None else inputs.tensor("student", student, "[classes]")
    if len(own) != count:
        raise ValueError(f"student must hold {count} logits like the teacher, got {len(own)}")
    own = own.detach().cpu().double()
    T = inputs.number("temperature", temperature, low=1, high=HOTTEST)
    alpha = inputs.number("alpha", alpha, low=0, high=1)

    soft, hard = F.softmax(teacher / T, 0), F.one_hot(torch.tensor(label), count).double()
    by_label = (1 - alpha) * float((F.softmax(own, 0) - hard).norm())
    by_teacher = alpha * T * float((F.softmax(own / T, 0) - soft).norm())
    still, (picture, bars, pulls) = show.figure(1, 3, height=2.6, width_ratios=(0.8, 1.6, 1))
    picture.imshow(image[0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    picture.set(xticks=[], yticks=[], title=f"label: {label}")
    places, mixed = np.arange(count), alpha * soft + (1 - alpha) * hard
    bars.bar(places - 0.2, soft.numpy(), 0.4, color=show.BLUE, label="teacher at T")
    bars.bar(places + 0.2, hard.numpy(), 0.4, color=show.GREY, hatch="///", label="label")
    ends = places - 0.45, places + 0.45
    bars.hlines(mixed.numpy(), *ends, color=show.BLACK, label="mixed target")
    bars.set(title=f"T = {T:g}, α = {alpha:g}", xlabel="class", ylabel="probability", ylim=(0, 1))
    bars.set_xticks(range(count))
    bars.legend(fontsize=8)
    lengths = {"labels": by_label, "teacher, with T²": by_teacher, "without T²": by_teacher / T**2}
    looks = [show.GREY, show.BLUE, show.SKY]
    pulls.barh(range(3), list(lengths.values()), color=looks, hatch=["///", "", "..."])
    pulls.set(yticks=range(3), yticklabels=list(lengths), title="length of the gradient")
    pulls.invert_yaxis()
    return Moving(
        "softening",
        still,
        ALT,
        {
            "image": grey(image),
            "shape": list(image.shape[-2:]),
            "logits": teacher.tolist(),
            "student": own.tolist(),
            "label": label,
            "temperature": T,
            "alpha": alpha,
            "hottest": HOTTEST,
        },
    )
