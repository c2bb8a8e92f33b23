"""Checks of the exercises of notebook 6: distillation of language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib.check import as_tensor, compare, exercise, normal

NO_GRADIENT = (
    "the value is right but carries no gradient for the student: avoid .item(), .detach(), .numpy()"
)


def _gradients(result: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
    """Of the number `result` with respect to what was given; None where there is none."""
    if not (isinstance(result, Tensor) and result.requires_grad):
        return (None,) * len(given)
    return torch.autograd.grad(result, given, allow_unused=True)


@exercise("6.1")
def _reverse_kl(answer: Callable) -> str | None:
    """The reverse divergence over the tokens of the answers"""
    student, teacher = normal(3, 4, 5, seed=35, scale=2), normal(3, 4, 5, seed=36, scale=2)
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]]).bool()
    teacher.requires_grad_()
    log_q, log_p = F.log_softmax(student.requires_grad_(), 2), F.log_softmax(teacher.detach(), 2)
    q, p, gap = log_q.exp(), log_p.exp(), log_q - log_p
    each = (q * gap).sum(2)

    def mean(values: Tensor) -> Tensor:
        return values.sum(2)[mask].mean()

    right = mean(q * gap)
    result = answer(student, teacher, mask)
    message = compare(
        result,
        right,
        {
            "this is the forward divergence KL(p || q): the expectation of KL(q || p) is under q": (
                mean(p * -gap)
            ),
            "log q - log p is weighted with p: weight it with the student's probabilities, q": mean(
                p * gap
            ),
            "the sign is wrong: q weights log q - log p, and no divergence is negative": -right,
            "this is the cross-entropy -sum q log p: subtract the student's entropy": mean(
                -q * log_p
            ),
            "divide by the number of True positions, not by B · T": (each * mask).mean(),
            "the padding enters: average over the True positions only": each.mean(),
            "the padding enters the sum: only the number of positions knows the mask": (
                each.sum() / mask.sum()
            ),
            "the divergence is V times too small: sum it over the vocabulary": right / 5,
            "every token counts alike: this averages within each row first, and so a token of a "
            "short row counts more": ((each * mask).sum(1) / mask.sum(1)).mean(),
            "average over the True positions instead of summing": each[mask].sum(),
        },
        "compute sum q (log q - log p) over the vocabulary, then the mean over the True positions",
    )
    if message is not None:
        return message
    own, theirs = _gradients(result, student, teacher)
    if own is None:
        return NO_GRADIENT
    if theirs is not None:
        return "the loss would train the teacher too: detach its logits"
    return compare(
        own,
        torch.autograd.grad(right, student)[0],
        {},
        "the value is right, its gradient is not: the student's q carries one as a weight, too",
    )


@exercise("6.2")
def _policy_loss(answer: Callable) -> str | None:
    """A loss whose gradient is the policy gradient"""
    log_q, log_p = (F.logsigmoid(normal(3, 4, seed=seed, scale=2)) for seed in (40, 41))
    reward = log_p - log_q
    whole = reward.sum(1, keepdim=True).expand_as(reward)
    to_go = reward.flip(1).cumsum(1).flip(1)
    right, slope = -(log_q * to_go).sum(1).mean(), -to_go / 3  # the value and its gradient
    earlier = log_q.cumsum(1)
    given = log_q.clone().requires_grad_(), log_p.clone().requires_grad_()
    result = as_tensor(answer(*given))
    if isinstance(result, Tensor) and result.shape:
        return "return one number: the sum over the tokens, the mean over the answers"
    own, theirs = _gradients(result, *given)
    if own is None:
        return compare(result, right, {}, "a loss with a gradient is asked for") or NO_GRADIENT
    message = compare(
        own,
        slope,
        {
            "the sign is wrong, and the student would be pushed away from the teacher: the loss is "
            "minus the sum, and the reward is log p - log q": -slope,
            "detach the reward: it is a number that weights the gradient of log q": (
                slope + earlier / 3
            ),
            "this differentiates log q - log p itself, and the mean of that gradient under q is 0: "
            "the reward has to weight log q": torch.full_like(slope, 1 / 3),
            "this is the whole answer's reward: unbiased too, but with more variance, for a token "
            "does not change the rewards before it; take the reward-to-go, i >= t": -whole / 3,
            "a token's own reward is not enough: it also answers for the tokens after it": (
                -reward / 3
            ),
            "a token's own reward belongs to its reward-to-go: the sum begins at i = t": (
                (reward - to_go) / 3
            ),
            "the reward-to-go sums over the tokens that follow, not over the earlier ones": (
                -reward.cumsum(1) / 3
            ),
            "average over the answers, but sum over their tokens": slope / 4,
            "average over the answers instead of summing over them": slope * 3,
        },
        "the gradient with respect to log q(y_t) must be -R_t / B, R_t the sum of log p - log q "
        "over i >= t",
    )
    if message is None and theirs is not None:
        return "the loss would train the teacher too: the whole reward carries no gradient"
    return message or compare(
        result, right, {}, "the gradient is right, the value is not: it is -sum log q(y_t) R_t"
    )


@exercise("6.3")
def _weights(answer: Callable) -> str | None:
    """Importance weights of tokens from a mixture"""
    log_q, log_p = (F.logsigmoid(normal(3, 4, seed=seed, scale=2)) for seed in (38, 39))
    q, p, alpha = log_q.exp(), log_p.exp(), 0.3
    mixture = alpha * p + (1 - alpha) * q
    right = q / mixture
    message = compare(
        answer(log_q, log_p, alpha),
        right,
        {
            "alpha is the teacher's share, 1 - alpha the student's": (
                q / ((1 - alpha) * p + alpha * q)
            ),
            "the student's probability is the numerator: the expectation is wanted under q": (
                p / mixture
            ),
            "the other way round: what is wanted, q, over what was drawn from": mixture / q,
            "mix the probabilities, not their logarithms: alpha log p + (1 - alpha) log q is the "
            "logarithm of another distribution": (alpha * (log_q - log_p)).exp(),
            "these are logarithms: exponentiate them before you mix": (
                log_q / (alpha * log_p + (1 - alpha) * log_q)
            ),
            "this is log w: exponentiate it": right.log(),
            "each token has its own weight: this is the product of the first t": right.cumprod(1),
            "each token has its own weight: this is the product over the whole answer": (
                right.prod(1, keepdim=True).expand_as(right)
            ),
            "return one weight for each token, no product over the answer": right.prod(1),
            "the tokens were drawn from the mixture, not from the teacher alone": q / p,
        },
        "divide q by alpha p + (1 - alpha) q, token by token",
    )
    return message or _weights_at_the_ends(answer)


def _weights_at_the_ends(answer: Callable) -> str | None:
    """Float32 at alpha = 1/5: simple fractions, then tokens that only one of the two expects."""
    log_q = torch.tensor([[0.5, 0.25, 0.5]]).log()
    log_p = torch.tensor([[0.25, 0.5, 0.5]]).log()
    far = torch.tensor([[-120.0, -1.0]])
    right = torch.tensor([[10 / 9, 5 / 6, 1.0, 0.0, 1.25]])
    given = torch.cat([log_q, far], 1), torch.cat([log_p, far.flip(1)], 1)
    result = as_tensor(answer(*given, 0.2)).detach().to(right)
    if result.shape == right.shape and torch.allclose(result, right, rtol=1e-4, atol=1e-6):
        return None
    return (
        "right for ordinary tokens, but where log q and log p lie 119 apart, or at alpha = 0.2, "
        f"it is {[round(w, 4) for w in result.flatten().tolist()]} instead of "
        f"{[round(w, 4) for w in right.flatten().tolist()]}: the ratio p/q or q/p alone overflows"
    )


@exercise("6.4")
def _returns(answer: Callable) -> str | None:
    """The mean reward of the later tokens"""
    rewards, place = normal(3, 5, seed=37), torch.arange(5)
    mask = place < torch.tensor([[5], [3], [1]])  # the padding has rewards, too
    ones, kept = torch.ones_like(rewards), rewards.where(mask, 0.0)

    def total(values: Tensor, order: Callable = torch.gt) -> Tensor:
        return values @ order(place[:, None], place).double()

    def ratio(sums: Tensor, numbers: Tensor, padding: bool = False) -> Tensor:
        return (sums / numbers.clamp(min=1)).where(mask | padding, 0.0)

    number = total(mask.double())
    result = answer(rewards, mask)
    found = as_tensor(result)
    if isinstance(found, Tensor) and found.isnan().any():
        return "the result is NaN: an answer's last token has no later one, which gives 0 / 0"
    message = compare(
        result,
        ratio(total(kept), number),
        {
            "leave out the token's own reward: the sum begins behind it, i > t": ratio(
                total(kept, torch.ge), total(mask.double(), torch.ge)
            ),
            "divide the sum by the number of its tokens": ratio(total(kept), ones),
            "divide by the number of later tokens, not by the length of the answer": ratio(
                total(kept), mask.sum(1, keepdim=True)
            ),
            "divide by the number of later tokens, not by T": ratio(total(kept), 5 * ones),
            "the padding's rewards enter the sum: set them to 0 first": ratio(
                total(rewards), number
            ),
            "the padding enters the number: count the later tokens whose mask is True": ratio(
                total(kept), total(ones)
            ),
            "the padding enters the sum and the number: a mask at the end comes too late": ratio(
                total(rewards), total(ones)
            ),
            "the mask is not used: padding must enter neither the sum nor the number": ratio(
                total(rewards), total(ones), padding=True
            ),
            "these are the earlier tokens: what a token changes comes after it": ratio(
                total(kept, torch.lt), total(mask.double(), torch.lt)
            ),
            "return one value for each token: no mean over the answer": ratio(
                total(kept), number
            ).mean(1),
        },
        "for each token: the sum of the answer's later rewards, divided by how many they are",
    )
    return message or _returns_by_hand(answer)


def _returns_by_hand(answer: Callable) -> str | None:
    """Two rows of small numbers; the second has no token at all."""
    rewards = torch.tensor([[1.0, 2.0, 3.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    right = torch.tensor([[2.5, 3.0, 0.0, 0.0], [0.0] * 4])
    result = as_tensor(answer(rewards, mask)).detach().to(right)
    if torch.equal(result, right):
        return None
    return (
        "right for longer answers, but the rewards 1, 2, 3 must give 2.5, 3, 0, and a row of "
        f"padding zeros; got {result.tolist()}"
    )
