"""Distillation losses: pure functions of tensors, one equation each.

Every loss takes float32 or float64 tensors whose first axis is the batch (B samples), returns a
scalar and sends no gradient to the teacher. Weights are left to the caller. "Official" is what the
authors' code computes (RepDistiller, mdistiller and OFAKD were the references); where the paper
says something else, `variant` offers both. `kd`, `dkd`, `dist` and `ofa` work on logits [B, C],
the others on features.

Bad arguments raise a TypeError (not a float32 or float64 tensor, target not int64) or a ValueError
(shapes, empty batch, NaN or infinity, temperature, target out of range, variant). The values of
tensors on an accelerator are not inspected, because looking would make the device wait.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(p_t ‖ p_s) with p = softmax(z / T): summed over classes, averaged over the batch.

    Hinton, Vinyals, Dean 2015, Eq. 1 for p. The gradient of the KL term shrinks as 1/T²
    (Eqs. 2 to 4), hence the factor. Averaging over classes too would make it C times too small.
    """
    s, t = _logits(student_logits, teacher_logits, temperature)
    s, t = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    return temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)


def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over all elements; the regressor that makes the shapes equal is outside.

    Romero et al. 2015 (FitNets), Eq. 3, which has ½ and a sum where the code has the mean.
    """
    s, t = _pair(student_features, teacher_features, ("student_features", "teacher_features"))
    return F.mse_loss(s, t)


def attention(student_map: Tensor, teacher_map: Tensor, variant: str = "official") -> Tensor:
    """Distance of attention maps q = Q/‖Q‖, Q = mean over channels of A², maps A [B, C, H, W].

    "official": mean over samples and positions of (q_s − q_t)². "paper": mean over samples of
    ‖q_s − q_t‖, not squared; Zagoruyko, Komodakis 2017, Eq. 2. The larger map is average-pooled
    before it is squared; the numbers of channels may differ.
    """
    _choice("variant", variant, ("official", "paper"))
    s, t = match_maps(student_map, teacher_map)
    s, t = (F.normalize(a.square().mean(1).flatten(1)) for a in (s, t))
    if variant == "official":
        return F.mse_loss(s, t)
    return torch.linalg.vector_norm(s - t, dim=1).mean()


def similarity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """‖G_s − G_t‖²_F / B², G = F Fᵀ with rows of unit length, F = features flattened to [B, D].

    Tung, Mori 2019 (SP), Eqs. 2 to 4. D may differ. A sample whose features are all zero has a row
    of zeros, through which no gradient flows.
    """
    s, t = _rows(student_features, teacher_features)
    return F.mse_loss(_unit(s @ s.T, 0.0), _unit(t @ t.T, 0.0))


def cc(
    student_features: Tensor,
    teacher_features: Tensor,
    variant: str = "official",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Correlation congruence (Peng et al. 2019), features flattened to [B, D].

    "official": mean over i < B of ⟨|s_i − t_i|, |s_{i+1} − t_{i+1}|⟩. Unlike the paper it needs
    equal D and depends on the order of the batch. "paper": ‖K_s − K_t‖²_F / B² with the Gaussian
    kernel exp(−γ‖x − y‖²) of unit rows, its series cut after the power `order`:
    K = exp(−2γ) Σ_p (2γ)^p / p! ⟨x, y⟩^p. One sample gives 0 ("official").
    """
    _choice("variant", variant, ("official", "paper"))
    s, t = _rows(student_features, teacher_features, same=variant == "official")
    if variant == "official":
        gap = (s - t).abs()
        return (gap[:-1] * gap[1:]).sum() / max(len(s) - 1, 1)
    _positive("gamma", gamma)
    if not (isinstance(order, int) and order >= 1):
        raise ValueError(f"order is {order!r}; it must be an integer of at least 1")

    def kernel(x: Tensor) -> Tensor:
        cosine = _unit(x, 0.0) @ _unit(x, 0.0).T
        terms = ((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
        return math.exp(-2 * gamma) * sum(terms)

    return F.mse_loss(kernel(s), kernel(t))


def rkd(
    student_features: Tensor,
    teacher_features: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    """w_d mean_ij h(d_ij/μ_s, δ_ij/μ_t) + w_a mean_ijk h(cos∠jik of s, of t), h = Huber, knee at 1.

    d, δ are distances in student and teacher, μ their mean over i ≠ j. Park et al. 2019 (RKD),
    Section 3.2, from Eq. 5 on; weights from RepDistiller. Features are flattened to [B, D]; D may
    differ. Everything follows from the B×B distances: cos∠jik = (d_ij² + d_ik² − d_jk²) /
    2 d_ij d_ik. The plain form, with all differences x_j − x_i, needs B²D numbers. One sample gives
    0. Equal rows get the distance 1e-6, angles of 0 and no gradient.
    """
    s, t = _rows(student_features, teacher_features)
    if len(s) == 1:
        return s.sum() * 0.0
    (s_distance, s_cosine), (t_distance, t_cosine) = _relations(s), _relations(t)
    return distance_weight * F.smooth_l1_loss(s_distance, t_distance) + (
        angle_weight * F.smooth_l1_loss(s_cosine, t_cosine)
    )


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """mean_ij p^t_ij log((p^t_ij + ε)/(p^s_ij + ε)), p_ij = k_ij / Σ_j k_ij, k = (1 + cosine)/2.

    Passalis, Tefas 2018 (PKT); as in the authors' code, ε = 1e-7 and the mean is over all B² pairs.
    Features are flattened to [B, D]; D may differ. Rows are divided by (norm + ε); a row of zeros
    stays zero and gets no gradient.
    """
    eps = 1e-7

    def distribution(x: Tensor) -> Tensor:
        x = _unit(x, eps)
        kernel = (x @ x.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    s, t = (distribution(x) for x in _rows(student_features, teacher_features))
    return (t * ((t + eps) / (s + eps)).log()).mean()


def vid(mean: Tensor, variance_parameter: Tensor, teacher_features: Tensor) -> Tensor:
    """mean of ½((t − μ)²/σ² + log σ²), one σ² = softplus(parameter) + 1e-5 per channel.

    Ahn et al. 2019 (VID): −log q(t | s) without its constant, so it can be negative.
    `mean` [B, C, ...] is predicted from the student's features, `variance_parameter` [C] has to be
    trained with the rest. A larger teacher map is average-pooled to the size of `mean`; a larger
    student map has to be pooled before the regressor.
    """
    names = ("mean", "teacher_features")
    mu, t = _pair(mean, teacher_features, names, same=False)
    if mu.ndim == t.ndim == 4:
        t = _pool(t, mu)
    _match(mu, t, names)
    if variance_parameter.shape != mu.shape[1:2]:
        raise ValueError(
            f"variance_parameter has shape {tuple(variance_parameter.shape)}, mean has "
            f"{tuple(mu.shape)}; one parameter per channel is needed, shape (mean.shape[1],)"
        )
    variance = (F.softplus(variance_parameter) + 1e-5).view(-1, *[1] * (mu.ndim - 2))
    return 0.5 * ((t - mu).square() / variance + variance.log()).mean()


def nst(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """MMD² of channels: k(s, s) + k(t, t) − 2 k(s, t), k = mean over pairs of ⟨a, b⟩².

    a, b are channels of maps [B, C, H, W], flattened and scaled to unit length; means over samples
    and pairs of channels. Huang, Wang 2017 (NST), polynomial kernel of degree 2. The larger map is
    average-pooled; the numbers of channels may differ.
    """
    s, t = (F.normalize(a.flatten(2), dim=2) for a in match_maps(student_map, teacher_map))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T² (α TCKD + β NCKD): Zhao et al. 2022 (DKD), Section 3; on CIFAR-100 β is 2, 6 or 8.

    TCKD = KL of (target, rest), NCKD = KL among the other classes; KD = TCKD + (1 − p_t(y)) NCKD.
    The official code takes logarithms of probabilities and subtracts 1000 from the target's logit,
    which gives NaN at a logit gap of 104; here the target is left out and all is in log space.
    """
    s, t = _logits(student_logits, teacher_logits, temperature, target)
    others = torch.arange(s.shape[1] - 1, device=s.device).expand(len(s), -1)
    others = others + (others >= target[:, None])

    def split(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p, rest = F.log_softmax(z / temperature, 1), (z / temperature).gather(1, others)
        pair = [log_p.gather(1, target[:, None]), log_p.gather(1, others).logsumexp(1, True)]
        return torch.cat(pair, 1), F.log_softmax(rest, 1)

    (s_pair, s_rest), (t_pair, t_rest) = split(s), split(t)
    tckd = F.kl_div(s_pair, t_pair, reduction="batchmean", log_target=True)
    nckd = F.kl_div(s_rest, t_rest, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T² (β (1 − mean Pearson of rows) + γ (1 − mean Pearson of columns)) on p = softmax(z / T).

    Huang et al. 2022 (DIST), Section 3, with 2, 2, T = 4 on CIFAR-100. T² is in the code, not in
    the paper's listing. The loss is not 0 at s = t: 1e-8 is added to the product of the norms,
    so a class of negligible probability has a correlation of 0 with itself, not 1.
    """
    s, t = _logits(student_logits, teacher_logits, temperature)
    s, t = (s / temperature).softmax(1), (t / temperature).softmax(1)

    def correlation(a: Tensor, b: Tensor, axis: int) -> Tensor:
        a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
        norms = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
        return ((a * b).sum(axis) / (norms + 1e-8)).mean()

    return temperature**2 * (
        beta * (1 - correlation(s, t, 1)) + gamma * (1 - correlation(s, t, 0))
    )


def ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    gamma: float = 1.0,
    temperature: float = 1.0,
    variant: str = "official",
) -> Tensor:
    """−Σ_c w_c log q_c, averaged over the batch; q = softmax(z_s / T), p = softmax(z_t / T).

    "official": w_y = (1 + p_y)^γ − 1 for the target y and w_c = p_c^γ for the others, so γ = 1 is
    plain soft cross-entropy. "lecture": w_y = (1 + p_y)^γ and w_c = p_c, the formula of the slide
    and of Hao et al. 2023 (OFA-KD). Neither has a factor T².
    """
    _choice("variant", variant, ("official", "lecture"))
    _positive("gamma", gamma)
    s, t = _logits(student_logits, teacher_logits, temperature, target)
    log_q, p = F.log_softmax(s / temperature, 1), (t / temperature).softmax(1)
    official = variant == "official"
    boosted = (1 + p.gather(1, target[:, None])) ** gamma - (1 if official else 0)
    weight = (p**gamma if official else p).scatter(1, target[:, None], boosted)
    return -(weight * log_q).sum(1).mean()


def nce(positive: Tensor, negative: Tensor, num_samples: int, mask: Tensor | None = None) -> Tensor:
    """−mean_i [log P/(P + c_i) of the positive + Σ_k log c_i/(P + c_i) of the negatives].

    c_i = (number of negatives of i) / num_samples. Tian et al. 2020 (CRD): one direction
    of the memory-bank form. `positive` [B] and `negative` [B, K] hold log P, P = exp(⟨u, v⟩/τ)/Z;
    `mask` [B, K] says which columns count. The code's ε = 1e-7 stands beside c_i in the
    denominators. Both sides may be learned embeddings: detach what should not be.
    """
    if negative.ndim != 2 or positive.shape != negative.shape[:1] or len(positive) == 0:
        raise ValueError(
            f"positive has shape {tuple(positive.shape)}, negative {tuple(negative.shape)}; "
            "they must be (B,) and (B, K) with B of at least 1"
        )
    if mask is None:
        count = negative.new_full((len(negative),), negative.shape[1])
    else:
        count = mask.sum(1).to(negative.dtype)
    noise, floor = (count / num_samples).log(), (count / num_samples + 1e-7).log()
    hit = F.logsigmoid(positive - floor)
    rejected = F.logsigmoid(floor[:, None] - negative) + (noise - floor)[:, None]
    if mask is not None:
        rejected = rejected.masked_fill(~mask, 0.0)
    return -(hit + rejected.sum(1)).mean()


def info_nce(
    student_embedding: Tensor, teacher_embedding: Tensor, temperature: float = 0.1
) -> Tensor:
    """½ (CE(S/τ, i) + CE(Sᵀ/τ, i)), S = cosines [B, B]: find the partner among the batch.

    InfoNCE (van den Oord et al. 2018, Eq. 4) in both directions, negatives from the batch: the
    form of contrastive distillation without a memory bank. Embeddings [B, D] are scaled to unit
    length here. This is the one loss that does not detach its second argument, because that is the
    output of a learned projection; detach the teacher's features before the projection.
    """
    _positive("temperature", temperature)
    names = ("student_embedding", "teacher_embedding")
    s, _ = _pair(student_embedding, teacher_embedding, names, ndim=2)
    scores = F.normalize(s) @ F.normalize(teacher_embedding).T / temperature
    partner = torch.arange(len(s), device=s.device)
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2


# Shared pieces of the equations


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean [B, B] and cosines [i, j, k] of the angle at i, for B >= 2."""
    x = x - x.detach().mean(0)  # distances do not change, but the Gram matrix loses fewer digits
    gram = x @ x.T
    norms = gram.diagonal()
    scale = norms[:, None] + norms
    squared = scale - 2 * gram
    # Below the rounding error of the subtraction two rows count as equal.
    distinct = squared > 16 * torch.finfo(x.dtype).eps * scale
    squared = squared.masked_fill(~distinct, 0.0)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    distance = squared.clamp_min(1e-12).sqrt().masked_fill(itself, 0.0)
    inverse = squared.masked_fill(~distinct, 1.0).rsqrt() * distinct
    legs = squared[:, :, None] + squared[:, None, :] - squared
    cosine = legs * (inverse[:, :, None] * (0.5 * inverse[:, None, :]))
    return distance / (distance.sum() / (len(x) * (len(x) - 1))), cosine


def _unit(x: Tensor, eps: float) -> Tensor:
    """Rows divided by (norm + eps); a row of zeros stays zero and gets no gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm > 1e-12, x / (norm + eps).clamp_min(1e-12), 0.0)


def _pool(x: Tensor, like: Tensor) -> Tensor:
    """Average-pools a map [B, C, H, W] where it is larger than `like`."""
    size = tuple(min(a, b) for a, b in zip(x.shape[2:], like.shape[2:]))
    return x if size == x.shape[2:] else F.adaptive_avg_pool2d(x, size)


# Checks of the arguments


def _pair(
    student: Tensor,
    teacher: Tensor,
    names: tuple[str, str],
    *,
    same: bool = True,
    ndim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The student's tensor and the detached teacher's, after a check of both."""
    for name, x in zip(names, (student, teacher)):
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            found = f"a {x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} is {found}; convert it with .float() to a float32 tensor")
        if ndim is not None and x.ndim != ndim or x.ndim < 2:
            wanted = f"{ndim or 'at least 2'} axes, samples first"
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {wanted}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; give at least one sample")
        # The sum is the cheapest look at all elements; it may overflow by itself.
        if x.device.type == "cpu" and not math.isfinite(x.detach().sum()):
            if not x.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity; look for the step that made it")
    if student.dtype != teacher.dtype:
        raise TypeError(
            f"{names[0]} is {student.dtype}, {names[1]} is {teacher.dtype}; convert one with .to()"
        )
    _match(student, teacher, names, None if same else 1)
    return student, teacher.detach()


def _match(s: Tensor, t: Tensor, names: tuple[str, str], axes: int | None = None) -> None:
    """Equal shapes, or equal in the first `axes` axes."""
    if s.shape[:axes] != t.shape[:axes]:
        remedy = "project one to the shape of the other" if len(s) == len(t) else "use one batch"
        raise ValueError(
            f"{names[0]} has shape {tuple(s.shape)}, {names[1]} has {tuple(t.shape)}; {remedy}"
        )


def _logits(
    student: Tensor, teacher: Tensor, temperature: float, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Student's and detached teacher's logits [B, C], checked with temperature and target."""
    _positive("temperature", temperature)
    student, teacher = _pair(student, teacher, ("student_logits", "teacher_logits"), ndim=2)
    batch, classes = student.shape
    if classes < 2:
        raise ValueError(f"student_logits has {classes} class; a loss on logits needs at least 2")
    if target is not None:
        if not isinstance(target, Tensor) or target.dtype != torch.int64:
            found = target.dtype if isinstance(target, Tensor) else type(target).__name__
            raise TypeError(f"target is {found}; give class numbers as an int64 tensor")
        if target.shape != (batch,):
            raise ValueError(f"target has shape {tuple(target.shape)}; it must be ({batch},)")
        if target.device.type == "cpu" and not 0 <= target.min() <= target.max() < classes:
            span = f"{target.min()} to {target.max()}"
            raise ValueError(f"target ranges from {span}; classes are 0 to {classes - 1}")
    return student, teacher


def _rows(student: Tensor, teacher: Tensor, same: bool = False) -> tuple[Tensor, Tensor]:
    """Features flattened to [B, D], checked, the teacher's detached."""
    student, teacher = _pair(
        student, teacher, ("student_features", "teacher_features"), same=same
    )
    return student.flatten(1), teacher.flatten(1)


def match_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W], the teacher's detached, the larger average-pooled to the smaller."""
    student, teacher = _pair(student, teacher, ("student_map", "teacher_map"), same=False, ndim=4)
    return _pool(student, teacher), _pool(teacher, student)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be a positive number")


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")
