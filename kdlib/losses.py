"""Distillation losses: pure functions of tensors, one equation each.

Student first, teacher second, a scalar out. Tensors are float32 or float64 and their first axis is
the batch (B samples). No gradient reaches the teacher but through a learned embedding of it (`nce`,
`info_nce`); weights are left to the caller. `kd`, `reverse_kl`, `jsd`, `dkd`, `dist` and `ofa`
take logits [B, C], the others features, embeddings or scores. "Official" is what the authors' code
computes (RepDistiller, mdistiller, OFAKD); where the paper differs, `variant` offers both.

Temperatures lie in 1e-3 to 1e6 (100 for float32 logits), weights are finite and not negative. A
wrong type raises TypeError, a wrong shape or value (NaN, infinity) ValueError; probabilities where
logits belong bring a warning. The values of tensors on an accelerator are not inspected, because
looking would make the device wait.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import inputs

VARIANCE_FLOOR = 1e-5  # of `vid`


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(p ‖ q), p = softmax(z_t / T), q = softmax(z_s / T): summed over classes, batch mean.

    Hinton, Vinyals, Dean 2015, Eq. 1 for p. The gradient of the KL term shrinks as 1/T²
    (Eqs. 2 to 4), hence the factor. Averaging over classes too would make it C times too small.
    """
    check_logits(student_logits, teacher_logits, temperature)
    log_q = F.log_softmax(student_logits / temperature, 1)
    log_p = F.log_softmax(teacher_logits.detach() / temperature, 1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² KL(q ‖ p), p = softmax(z_t / T), q = softmax(z_s / T): summed over classes, batch mean.

    `kd` with the two networks exchanged: it punishes probability where the teacher has little, so
    the student may leave classes out (MiniLLM: Gu et al. 2024, for language). T and its square
    are as in `kd`; the papers have T = 1.
    """
    check_logits(student_logits, teacher_logits, temperature)
    log_q = F.log_softmax(student_logits / temperature, 1)
    log_p = F.log_softmax(teacher_logits.detach() / temperature, 1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def jsd(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, beta: float = 0.5
) -> Tensor:
    """T² (β KL(p ‖ m) + (1 − β) KL(q ‖ m)), m = β p + (1 − β) q; p, q as in `kd`; 0 < β < 1.

    The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, there with T = 1), at
    most T² log 2. Divided by β it tends to `kd` for β → 0, as the paper says, and divided by 1 − β
    to `reverse_kl` for β → 1: near an end, raise the weight accordingly.
    """
    check_logits(student_logits, teacher_logits, temperature)
    inputs.number("beta", beta, above=0, below=1)
    log_q = F.log_softmax(student_logits / temperature, 1)
    log_p = F.log_softmax(teacher_logits.detach() / temperature, 1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    teacher, student = (
        F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)
    )
    return temperature**2 * (beta * teacher + (1 - beta) * student)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T² (α TCKD + β NCKD): Zhao et al. 2022 (DKD), Section 3; on CIFAR-100 β is 2, 6 or 8.

    TCKD = KL of (target, rest), NCKD = KL among the other classes (C ≥ 3); `target` is int64 [B].
    KD = TCKD + (1 − p_t(y)) NCKD. The official code takes logarithms of probabilities and subtracts
    1000 from the target's logit: NaN at a logit gap of 104. Here the target is left out, in logs.
    """
    check_logits(student_logits, teacher_logits, temperature, least=3)
    check_target(target, student_logits, student_logits.shape[1])
    check_weights(alpha=alpha, beta=beta)
    others = torch.arange(student_logits.shape[1] - 1, device=target.device).expand(len(target), -1)
    others = others + (others >= target[:, None])

    def split(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p, rest = F.log_softmax(z, 1), z.gather(1, others)
        pair = [log_p.gather(1, target[:, None]), log_p.gather(1, others).logsumexp(1, True)]
        return torch.cat(pair, 1), F.log_softmax(rest, 1)

    q_pair, q_rest = split(student_logits / temperature)
    p_pair, p_rest = split(teacher_logits.detach() / temperature)
    tckd = F.kl_div(q_pair, p_pair, reduction="batchmean", log_target=True)
    nckd = F.kl_div(q_rest, p_rest, reduction="batchmean", log_target=True)
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
    check_logits(student_logits, teacher_logits, temperature)
    check_weights(beta=beta, gamma=gamma)
    q = (student_logits / temperature).softmax(1)
    p = (teacher_logits.detach() / temperature).softmax(1)

    def correlation(a: Tensor, b: Tensor, axis: int) -> Tensor:
        a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
        norms = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
        return ((a * b).sum(axis) / (norms + 1e-8)).mean()

    rows, columns = correlation(q, p, 1), correlation(q, p, 0)
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    gamma: float = 1.0,
    temperature: float = 1.0,
    variant: str = "official",
) -> Tensor:
    """−Σ_c w_c log q_c, batch mean; q = softmax(z_s / T), p = softmax(z_t / T); no factor T².

    "official": w_y = (1 + p_y)^γ − 1 for the target y (int64 [B]), w_c = p_c^γ for the others, so
    γ = 1 is plain soft cross-entropy. "lecture": w_y = (1 + p_y)^γ and w_c = p_c, the formula of
    the slide and of Hao et al. 2023 (OFA-KD). γ > 0.
    """
    check_logits(student_logits, teacher_logits, temperature)
    check_target(target, student_logits, student_logits.shape[1])
    inputs.number("gamma", gamma, above=0)
    inputs.choice("variant", variant, ("official", "lecture"))
    log_q = F.log_softmax(student_logits / temperature, 1)
    p = (teacher_logits.detach() / temperature).softmax(1)
    official = variant == "official"
    boosted = (1 + p.gather(1, target[:, None])) ** gamma - (1 if official else 0)
    weight = (p**gamma if official else p).scatter(1, target[:, None], boosted)
    return -(weight * log_q).sum(1).mean()


def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over all elements; the regressor that makes the shapes equal is outside.

    Romero et al. 2015 (FitNets), Eq. 3, which has ½ and a sum where the code has the mean.
    """
    check_features(student_features, teacher_features, same=True)
    return F.mse_loss(student_features, teacher_features.detach())


def attention(student_map: Tensor, teacher_map: Tensor, variant: str = "official") -> Tensor:
    """Distance of attention maps q = Q/‖Q‖, Q = mean over channels of A², maps A [B, C, H, W].

    "official": mean over samples and positions of (q_s − q_t)². "paper": mean over samples of
    ‖q_s − q_t‖, not squared; Zagoruyko, Komodakis 2017, Eq. 2. The larger map is average-pooled
    before it is squared; the numbers of channels may differ.
    """
    check_maps(student_map, teacher_map)
    inputs.choice("variant", variant, ("official", "paper"))
    s, t = match_maps(student_map, teacher_map.detach())
    s, t = (F.normalize(a.square().mean(1).flatten(1)) for a in (s, t))
    if variant == "official":
        return F.mse_loss(s, t)
    return torch.linalg.vector_norm(s - t, dim=1).mean()


def similarity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """‖G_s − G_t‖²_F / B², G = F Fᵀ with rows of unit length, F = features flattened to [B, D].

    Tung, Mori 2019 (SP), Eqs. 2 to 4. D may differ. A sample of zeros has a row of zeros, through
    which no gradient flows.
    """
    check_features(student_features, teacher_features)
    s, t = student_features.flatten(1), teacher_features.detach().flatten(1)
    return F.mse_loss(_unit(s @ s.T), _unit(t @ t.T))


def cc(
    student_features: Tensor,
    teacher_features: Tensor,
    variant: str = "official",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Correlation congruence (Peng et al. 2019), features flattened to [B, D].

    "official": mean over i < B of ⟨|s_i − t_i|, |s_{i+1} − t_{i+1}|⟩. Unlike the paper it needs
    equal D and depends on the order of the batch; one sample gives 0. "paper": ‖K_s − K_t‖²_F / B²
    with the Gaussian kernel exp(−γ‖x − y‖²) of unit rows, its series cut after the power `order`:
    K = exp(−2γ) Σ_p (2γ)^p / p! ⟨x, y⟩^p; γ above 0 and at most 10, `order` 1 to 100.
    """
    check_features(student_features, teacher_features, same=variant == "official")
    inputs.choice("variant", variant, ("official", "paper"))
    inputs.number("gamma", gamma, above=0, high=10)
    inputs.whole("order", order, high=100)
    s, t = student_features.flatten(1), teacher_features.detach().flatten(1)
    if variant == "official":
        gap = (s - t).abs()
        return (gap[:-1] * gap[1:]).sum() / max(len(s) - 1, 1)

    def kernel(x: Tensor) -> Tensor:
        cosine = _unit(x) @ _unit(x).T
        terms = ((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
        return sum(terms, torch.zeros_like(cosine)) * math.exp(-2 * gamma)

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
    differ. No B²D differences are needed: cos∠jik = (d_ij² + d_ik² − d_jk²) /
    2 d_ij d_ik. One sample gives 0. Equal rows get the distance 1e-6, angles of 0, no gradient.
    """
    check_features(student_features, teacher_features)
    check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
    s, t = student_features.flatten(1), teacher_features.detach().flatten(1)
    if len(s) == 1:
        return s.sum() * 0.0
    (s_distance, s_cosine), (t_distance, t_cosine) = _relations(s), _relations(t)
    distance = F.smooth_l1_loss(s_distance, t_distance)
    angle = F.smooth_l1_loss(s_cosine, t_cosine)
    return distance_weight * distance + angle_weight * angle


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """mean_ij p^t_ij log((p^t_ij + ε)/(p^s_ij + ε)), p_ij = k_ij / Σ_j k_ij, k = (1 + cosine)/2.

    Passalis, Tefas 2018 (PKT); as in the authors' code, ε = 1e-7 and the mean is over all B² pairs.
    Features are flattened to [B, D]; D may differ. Rows are divided by (norm + ε); a row of zeros
    stays zero and gets no gradient.
    """
    check_features(student_features, teacher_features)
    eps = 1e-7

    def distribution(x: Tensor) -> Tensor:
        x = _unit(x.flatten(1), eps)
        kernel = (x @ x.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    s, t = distribution(student_features), distribution(teacher_features.detach())
    return (t * ((t + eps) / (s + eps)).log()).mean()


def vid(mean: Tensor, variance_parameter: Tensor, teacher_features: Tensor) -> Tensor:
    """mean of ½((t − μ)²/σ² + log σ²), one σ² = softplus(parameter) + 1e-5 per channel.

    Ahn et al. 2019 (VID): −log q(t | s) without its constant, so it can be negative.
    `mean` [B, C, ...] is predicted from the student's features, `variance_parameter` [C] is trained
    with the rest. A larger teacher map is average-pooled; pool a larger student map beforehand.
    """
    check_gaussian(mean, variance_parameter, teacher_features)
    t = _pool(teacher_features.detach(), mean)
    variance = (F.softplus(variance_parameter) + VARIANCE_FLOOR).view(-1, *[1] * (mean.ndim - 2))
    return 0.5 * ((t - mean).square() / variance + variance.log()).mean()


def nst(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """MMD² of channels: k(s, s) + k(t, t) − 2 k(s, t), k = mean over pairs of ⟨a, b⟩².

    a, b are channels of maps [B, C, H, W], flattened and scaled to unit length; means over samples
    and pairs of channels. Huang, Wang 2017 (NST), polynomial kernel of degree 2. The larger map is
    average-pooled; the numbers of channels may differ.
    """
    check_maps(student_map, teacher_map)
    s, t = match_maps(student_map, teacher_map.detach())
    s, t = (F.normalize(a.flatten(2), dim=2) for a in (s, t))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def nce(positive: Tensor, negative: Tensor, num_samples: int, mask: Tensor | None = None) -> Tensor:
    """−mean_i [log P/(P + c_i) of the positive + Σ_k log c_i/(P + c_i) of the negatives].

    c_i = (number of negatives of i) / num_samples. Tian et al. 2020 (CRD): one direction of the
    memory-bank form. `positive` [B] and `negative` [B, K] hold log P, P = exp(⟨u, v⟩/τ)/Z; `mask`,
    bool [B, K], says which columns count. The code's ε = 1e-7 stands beside c_i in the
    denominators. Both sides may be learned embeddings: detach what should not be.
    """
    check_scores(positive, negative, num_samples, mask)
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
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    temperature: float = 0.1,
    target: Tensor | None = None,
) -> Tensor:
    """½ (CE(S/τ, i) + CE(Sᵀ/τ, i)), S = cosines [B, B]: find the partner among the batch.

    InfoNCE (van den Oord et al. 2018, Eq. 4) in both directions, negatives from the batch: the
    form of contrastive distillation without a memory bank. Embeddings [B, D] are scaled to unit
    length here. The teacher's is learned too: detach its features before their projection.

    With `target`, the classes (int64 [B]), S_ij = −∞ for i ≠ j of one class: negatives are of
    other classes, as in the code of CRD and in Ojha et al. 2023, Fig. 1. A sample without any
    adds 0. Without `target` the rest of the batch is negative.
    """
    check_embeddings(student_embedding, teacher_embedding, same=True)
    inputs.number("temperature", temperature, low=1e-3, high=1e6)
    scores = F.normalize(student_embedding) @ F.normalize(teacher_embedding).T / temperature
    if target is not None:
        check_target(target, scores, num_classes=None)
        same_class = target[:, None] == target
        scores = scores.masked_fill(same_class.fill_diagonal_(False), -math.inf)
    partner = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2


# Shared pieces of the equations


def match_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W], the larger average-pooled to the size of the smaller."""
    return _pool(student, teacher), _pool(teacher, student)


def _pool(x: Tensor, like: Tensor) -> Tensor:
    """A map, average-pooled where it is larger than `like`; a vector as it is."""
    if x.ndim != 4:
        return x
    size = (min(x.shape[2], like.shape[2]), min(x.shape[3], like.shape[3]))
    return x if size == x.shape[2:] else F.adaptive_avg_pool2d(x, size)


def _unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """Rows divided by (norm + eps); a row of zeros stays zero and gets no gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm > 1e-12, x / (norm + eps).clamp_min(1e-12), 0.0)


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


# Checks of the arguments


def check_weights(**weights: float) -> None:
    """Finite and not negative."""
    for name, weight in weights.items():
        inputs.number(name, weight, low=0)


def check_logits(s: Tensor, t: Tensor, temperature: float, *, least: int = 2) -> None:
    """Logits [B, C] with C >= least, and a temperature that suits them."""
    names = ("student_logits", "teacher_logits")
    sums = _pair(names, 2, s, t, same=True)
    batch, classes = s.shape
    if classes < least:
        raise ValueError(f"student_logits must have at least {least} classes, got {classes}")
    inputs.number("temperature", temperature, low=1e-3, high=1e6)
    if temperature > 100 and s.dtype == torch.float32:
        # T² multiplies a difference of logarithms, of which float32 would leave no digit.
        text = f"temperature must be at most 100 for float32 logits, got {temperature:g}"
        raise ValueError(f"{text}: up to 1e6 use float64, logits.double()")
    for name, x, total in zip(names, (s, t), sums):
        # Where all rows sum to 1 the total is B; other logits are not looked at again.
        if abs(total / batch - 1) < 1e-3 and x.min() >= 0 and (x.sum(1) - 1).abs().max() < 1e-3:
            text = f"{name} must be logits, got probabilities (rows >= 0 that sum to 1)"
            warnings.warn(f"{text}: pass what stands before the softmax, or .log()", stacklevel=3)


def check_target(target: Tensor, beside: Tensor, num_classes: int | None) -> None:
    """Class numbers [B], int64, of the B rows `beside`; num_classes None: any."""
    _exactly("target", target, torch.int64, beside.shape[:1])
    if target.is_cpu:
        inputs.classes("target", target, num_classes)


def check_gaussian(mean: Tensor, variance_parameter: Tensor, t: Tensor) -> None:
    """The teacher's features have the shape of the mean, or are a larger map."""
    _pair(("mean", "teacher_features"), None, mean, t)
    _finite("variance_parameter", variance_parameter, 1)
    _exactly("variance_parameter", variance_parameter, mean.dtype, mean.shape[1:2])
    maps = mean.ndim == t.ndim == 4
    larger = maps and t.shape[2] >= mean.shape[2] and t.shape[3] >= mean.shape[3]
    shape = (*mean.shape[:2], *t.shape[2:]) if larger else mean.shape
    _exactly("teacher_features", t, mean.dtype, shape)


def check_scores(positive: Tensor, negative: Tensor, num_samples: int, mask: Tensor | None) -> None:
    _finite("positive", positive, 1)
    _finite("negative", negative, 2)
    _exactly("negative", negative, positive.dtype, (len(positive), negative.shape[1]))
    inputs.whole("num_samples", num_samples)
    if mask is not None:
        _exactly("mask", mask, torch.bool, negative.shape)


def _pair(
    names: tuple[str, str], axes: int | None, s: Tensor, t: Tensor, *, same: bool = False
) -> list[float]:
    """Two tensors of one type, and of one shape if `same`, else of one batch. Returns the sums."""
    sums = [_finite(name, x, axes) for name, x in zip(names, (s, t))]
    if s.dtype != t.dtype:
        raise TypeError(f"{names[1]} must be {s.dtype} like {names[0]}, got {t.dtype}: use .to()")
    if s.shape != t.shape if same else len(s) != len(t):
        remedy = "project one to the shape of the other" if len(s) == len(t) else "use one batch"
        like = f"the {'shape' if same else 'batch'} of {names[0]}, {list(s.shape)}"
        raise ValueError(f"{names[1]} must have {like}, got {list(t.shape)}: {remedy}")
    return sums


check_features = partial(_pair, ("student_features", "teacher_features"), None)
check_maps = partial(_pair, ("student_map", "teacher_map"), 4)
check_embeddings = partial(_pair, ("student_embedding", "teacher_embedding"), 2)


def _finite(name: str, x: Tensor, axes: int | None) -> float:
    """A float32 or float64 tensor, not empty, finite. Returns the sum, NaN on an accelerator."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        found = inputs.describe(x)
        raise TypeError(f"{name} must be a float32 tensor, got {found}: convert it with .float()")
    if x.numel() == 0 or (x.ndim != axes if axes else x.ndim < 2):
        wanted = f"{axes or 'at least 2'} axes and at least one sample"
        raise ValueError(f"{name} must have {wanted}, got shape {list(x.shape)}")
    if not x.is_cpu:
        return math.nan
    total = float(x.detach().sum())  # the cheapest look at all elements; it may overflow by itself
    if not math.isfinite(total) and not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity: find the step that made it")
    return total


def _exactly(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, got {inputs.describe(x)}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
