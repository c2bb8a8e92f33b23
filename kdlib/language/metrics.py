"""How good are the answers of a language model, and how close is it to its teacher?

- answers as texts: `rouge_l` (like a reference), `validity` (allowed by a judge), `distinct`
- predictions of tokens: `calibration_error`, `reliability`, `excess_error` (exposure bias)
- distributions over whole answers: `exact_kl`, `sampled_kl`

Pure functions. Shares are percent, divergences are in nats, Rouge-L and calibration errors lie in
[0, 1]. Bad arguments raise ValueError, of another type TypeError, with their name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdlib import inputs
from kdlib.analysis import expected_calibration_error
from kdlib.language import judging
from kdlib.language.tokenizers import words

# Answers as texts


def rouge_l(
    prediction: str,
    references: str | Sequence[str],
    *,
    form: str = "unicode",
    best: bool = True,
) -> float:
    """Rouge-L of a text and its references: F = 2PR / (P + R) in [0, 1], 0 if a text is empty.

        P = LCS / words of the prediction, R = LCS / words of the reference

    with LCS the longest common subsequence of words, in order but with gaps (Lin 2004, Section 3,
    with beta = 1 as in the package rouge-score and in MiniLLM).

    Args:
        prediction: any text.
        references: a text, or at least one of them.
        form: "unicode" compares words of any script as `tokenizers.words` cuts them, without signs
            and case, unstemmed. "official" is the package rouge-score with its stemmer, which
            keeps a to z and 0 to 9 alone: Russian texts are empty for it, and "café" is "caf".
        best: the score of the likest reference, as MiniLLM has it; else their mean.

    Raises:
        ModuleNotFoundError: "official" without the package rouge-score.
    """
    inputs.instance("prediction", prediction, str)
    inputs.choice("form", form, ("unicode", "official"))
    inputs.instance("best", best, bool)
    listed = [references] if isinstance(references, str) else _texts("references", references)
    score = _official_rouge if form == "official" else _unicode_rouge
    scores = score(prediction, listed)
    return max(scores) if best else sum(scores) / len(scores)


def _unicode_rouge(prediction: str, references: Sequence[str]) -> list[float]:
    mine = _plain_words(prediction)
    scores = []
    for reference in references:
        other = _plain_words(reference)
        # 2PR / (P + R) with the fractions multiplied out
        common = common_words(mine, other)
        scores.append(2 * common / (len(mine) + len(other)) if common else 0.0)
    return scores


def _plain_words(text: str) -> list[str]:
    """Words without signs, in one case ("ß" is "ss")."""
    return [word for word in words(text.casefold()) if any(map(str.isalnum, word))]


def common_words(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence of two sequences of words.

    A row of the usual table is kept in the bits of one number, where a 0 stands for a place at
    which the length grows: ten words cost one addition (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(other)) - 1
    row = full
    for word in one:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(other) - row.bit_count()


def _official_rouge(prediction: str, references: Sequence[str]) -> list[float]:
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'form "official" needs the package rouge-score: `pip install rouge-score`, or use form '
            '"unicode"'
        ) from error
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return [float(scorer.score(one, prediction)["rougeL"].fmeasure) for one in references]


def validity(
    prompts: Sequence[str],
    responses: Sequence[str],
    judge: Callable[[str, str], Any] = judging.judge,
) -> float:
    """Percent of the responses that the judge calls valid.

    Args:
        prompts: at least one.
        responses: one for each prompt.
        judge: of a prompt and a response, true for a valid one.
    """
    prompts, responses = _texts("prompts", prompts), _texts("responses", responses)
    if len(prompts) != len(responses):
        raise ValueError(
            f"responses must be one for each prompt, got {len(responses)} for {len(prompts)}"
        )
    return 100 * sum(bool(judge(*pair)) for pair in zip(prompts, responses)) / len(prompts)


def distinct(texts: Sequence[str], n: int = 4) -> float:
    """Percent of the n-grams of all texts together that are different: Dist-n, 0 < Dist-n <= 100.

    Li et al. 2016, there with n of 1 and 2; MiniLLM has n = 4. Words and signs count, as
    `tokenizers.words` cuts them. More texts repeat more: compare equal numbers of texts.

    Args:
        texts: at least one of n words or more.
        n: at least 1.
    """
    n = inputs.whole("n", n)
    found = []
    for text in _texts("texts", texts):
        parts = words(text)
        found += [tuple(parts[place : place + n]) for place in range(len(parts) - n + 1)]
    if not found:
        raise ValueError(f"texts must hold one of at least n = {n} words, got only shorter ones")
    return 100 * len(set(found)) / len(found)


def _texts(name: str, found: Sequence[str]) -> Sequence[str]:
    """At least one text."""
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise TypeError(f"{name} must be a list of texts, got {inputs.describe(found)}")
    if not found:
        raise ValueError(f"{name} must hold at least one text, got none")
    for place, text in enumerate(found):
        inputs.instance(f"{name}[{place}]", text, str)
    return found


# Predictions of tokens


class Bin(NamedTuple):
    """The predictions whose confidence lies in (low, high]; the means are NaN if there is none."""

    low: float
    high: float
    size: int
    confidence: float  # their mean confidence
    accuracy: float  # the share that is right


def calibration_error(
    logits: Tensor, targets: Tensor, mask: Tensor | None = None, bins: int = 10
) -> float:
    """Expected calibration error in [0, 1] of the predicted tokens; see
    `analysis.expected_calibration_error`. Where a prompt has several valid answers the token that
    the data have is one of many, and a calibrated model is rarely sure.

    Args:
        logits: [B, T, V] floating-point, finite where the mask is True.
        targets: int64 [B, T], the tokens that followed.
        mask: bool [B, T], tokens that count, at least one; None: all.
        bins: at least 1, of equal width.
    """
    return expected_calibration_error(*_counted(logits, targets, mask), bins)


def reliability(
    logits: Tensor, targets: Tensor, mask: Tensor | None = None, bins: int = 10
) -> list[Bin]:
    """The bins of `calibration_error`, which is the mean of |accuracy - confidence| over them,
    weighted by their sizes: a reliability diagram shows accuracy above confidence.

    The arguments are those of `calibration_error`.
    """
    bins = inputs.whole("bins", bins)
    logits, targets = _counted(logits, targets, mask)
    inputs.tensor("logits", logits, "[n, V]")
    inputs.classes("targets", targets, logits.shape[1])
    confidence, predicted = inputs.float64(logits.detach()).softmax(1).max(1)
    right = inputs.float64(predicted == targets)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(which, minlength=bins).tolist()
    sums = [torch.bincount(which, of, minlength=bins).tolist() for of in (confidence, right)]
    return [
        Bin(
            place / bins,
            (place + 1) / bins,
            count,
            sums[0][place] / count if count else math.nan,
            sums[1][place] / count if count else math.nan,
        )
        for place, count in enumerate(counts)
    ]


def _counted(logits: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [n, V] and targets [n] where the mask is True."""
    inputs.tensor("logits", logits, "[B, T, V]", finite=False)
    inputs.classes("targets", targets, ndim=2)
    mask = _mask(mask, targets)
    if logits.shape[:2] != targets.shape:
        raise ValueError(
            f"logits must be [B, T, V] for targets [B, T] = {list(targets.shape)}, got "
            f"{list(logits.shape)}"
        )
    return logits[mask], targets[mask]


def _mask(mask: Tensor | None, like: Tensor, name: str = "mask") -> Tensor:
    """A bool mask [B, T] with at least one True; all True for None."""
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor [B, T], got {inputs.describe(mask)}")
    if mask.shape != like.shape[:2]:
        raise ValueError(f"{name} must be {list(like.shape[:2])}, got {list(mask.shape)}")
    if not mask.any():
        raise ValueError(f"{name} must hold at least one True, got none: nothing is to be measured")
    return mask


def excess_error(
    on_student: Tensor,
    on_teacher: Tensor,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    ended: str = "zero",
) -> Tensor:
    """ExAccErr by length: by how many percent the error grows because the student reads itself.

        ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l)), l = 1, 2, ..., L

    R(l) is the error summed over the first l tokens of answers that the student wrote, l eps(l) the
    same over answers that the teacher wrote, each a mean over answers; the error of a token is
    KL(p || q) of the whole vocabulary, p of the teacher, given the tokens before it. 0 means that
    the student errs on its own answers as often as on the teacher's: no exposure bias. (Gu et al.
    2024, MiniLLM, Section 3.3 and Appendix B.5, after Arora et al. 2022. The official code reads
    the logits one place too late.)

    The noise is large: 2000 answers and more.

    Args:
        on_student: [B, L], the error at each token of answers drawn from the student, at least 0.
        on_teacher: [B', L'], of answers drawn from the teacher to the same prompts.
        student_mask, teacher_mask: bool, like these: tokens of the answer, its end included; None:
            all. Each row is True from the first column on.
        ended: what an answer that is over adds. "zero": nothing, as in the official code; R is
            then the divergence of whole answers, but lengths matter: a student that stops early
            makes fewer errors. "skip": each place takes the mean over answers that go on.

    Returns:
        float64 [min(L, L')] on the CPU; with "skip" it ends where no answer goes on, NaN where the
        teacher's answers have no error.
    """
    inputs.choice("ended", ended, ("zero", "skip"))
    sums = []
    for name, errors, mask in (
        ("student", on_student, student_mask),
        ("teacher", on_teacher, teacher_mask),
    ):
        inputs.tensor(f"on_{name}", errors, "[B, L]", finite=False)
        used = _mask(mask, errors, f"{name}_mask")
        if not used[:, 0].all() or (used[:, 1:] & ~used[:, :-1]).any():
            raise ValueError(
                f"{name}_mask must be True from the first token of each answer to its last: move "
                "the answers to the left, behind no prompts"
            )
        kept = inputs.float64(errors.detach()).where(used, 0.0).cpu()
        # a divergence of equals may be a rounding error below 0
        inputs.tensor(f"on_{name}", kept, "[B, L]", low=-1e-4)
        running = used.sum(0).cpu()
        if ended == "zero":
            means = kept.mean(0)
        else:
            going = running > 0
            means = (kept.sum(0) / running.clamp(min=1))[going]
        sums.append(means.cumsum(0))
    length = min(map(len, sums))
    regret, expected = (one[:length] for one in sums)
    return 100 * (regret / expected - 1)


# Distributions over whole answers


class Estimate(NamedTuple):
    """A mean over independent draws and its standard error; about 95 % lie within two of them."""

    value: float
    error: float
    draws: int


def exact_kl(source: Tensor, other: Tensor) -> float:
    """KL(source || other) = sum_y p(y) (log p(y) - log q(y)) in nats over all answers y.

    Forward KL has the teacher as the source, reverse KL the student. It is infinite if an answer
    is possible for the source alone.

    Args:
        source: [S] log p, log-probabilities of all possible answers, so that they sum to 1.
        other: [S] log q of the same answers, at most 1 in all.

    Raises:
        ValueError: log-probabilities above 0, or of sums that are not 1 (for `other`, above 1).
    """
    p, q = (_log_probs(name, x, "[S]") for name, x in (("source", source), ("other", other)))
    _same_shape(p, q)
    mass = {name: x.exp().sum().item() for name, x in (("source", p), ("other", q))}
    if abs(mass["source"] - 1) > 1e-3 or mass["other"] > 1 + 1e-3:
        raise ValueError(
            "source must hold the log-probabilities of all answers, and other those of the same, "
            f"got sums of {mass['source']:.4g} and {mass['other']:.4g}: list every answer, or use "
            "`sampled_kl`"
        )
    possible = p > -math.inf
    return (p[possible].exp() * (p[possible] - q[possible])).sum().item()


def sampled_kl(
    source: Tensor, other: Tensor, mask: Tensor | None = None, *, estimator: str = "k1"
) -> Estimate:
    """KL(source || other) in nats between distributions over answers, from answers of the source.

    Forward KL: answers drawn from the teacher, which is the source. Reverse KL: the student's. They
    must have been drawn at temperature 1 and unfiltered. By the chain rule the divergence is the
    sum over tokens, given those before; each estimator sums over the tokens of an answer, and is
    unbiased (Schulman 2020, "Approximating KL divergence", per token). With d = log q - log p:

    - "k1": -d. Negative for some answers, and of the largest variance.
    - "k3": exp(d) - 1 - d. Never negative. Its variance is small where p and q are close, and has
      no limit where q is large and p small.
    - "full": the divergence over the whole vocabulary at each token, from log-probabilities
      [B, T, V]. Only the prefixes are random (Rao-Blackwell), so its variance is mostly by far the
      smallest.

    Args:
        source: log p [B, T] of the drawn tokens, or [B, T, V] for "full"; B >= 2.
        other: log q, of the same shape and tokens.
        mask: bool [B, T], tokens of the answer, its end included; None: all.
        estimator: one of these.

    Raises:
        ValueError: values above 0 (logits, for one), or minus infinity for a drawn token.
    """
    inputs.choice("estimator", estimator, ("k1", "k3", "full"))
    shape = "[B, T, V]" if estimator == "full" else "[B, T]"
    p, q = (_log_probs(name, x, shape) for name, x in (("source", source), ("other", other)))
    _same_shape(p, q)
    if len(p) < 2:
        raise ValueError(f"source must hold at least 2 answers, got {len(p)}: draw more")
    mask = _mask(mask, source).to(p.device)
    if estimator == "full":
        terms = (p.exp() * (p - q)).where(p > -math.inf, 0.0).sum(-1)
    else:
        if not p[mask].isfinite().all():
            raise ValueError(
                "source must be finite for the tokens that it drew, got minus infinity: these "
                "answers come from another distribution"
            )
        difference = q - p
        terms = difference.expm1() - difference if estimator == "k3" else -difference
    sums = terms.where(mask, 0.0).sum(1)
    error = sums.std().item() / math.sqrt(len(sums))
    return Estimate(sums.mean().item(), error, len(sums))


def _log_probs(name: str, found: Tensor, shape: str) -> Tensor:
    """Log-probabilities in double precision: no NaN, nothing above 0 but by rounding."""
    inputs.tensor(name, found, shape, finite=False)
    values = inputs.float64(found.detach())
    if values.isnan().any():
        raise ValueError(f"{name} must be log-probabilities, got NaN: check how they were made")
    if (most := values.max().item()) > 1e-3:
        raise ValueError(
            f"{name} must be log-probabilities, at most 0, got {most:.3g}: take log_softmax of "
            "logits first"
        )
    return values


def _same_shape(source: Tensor, other: Tensor) -> None:
    if source.shape != other.shape:
        raise ValueError(
            f"other must be of the shape of source, {list(source.shape)}, got {list(other.shape)}"
        )
