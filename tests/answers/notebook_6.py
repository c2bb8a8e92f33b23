"""Answers to the exercises of notebook 6, right and wrong."""

import torch
from torch.nn import functional as F


def reverse(q, p):
    return q.exp() * (q - p)


def mean(each, mask):
    return each[mask].mean()


def reverse_kl(of=reverse, over=mean, vocabulary=torch.sum, teacher=torch.Tensor.detach):
    """`of` the logarithms of q and p; `over` the positions."""

    def loss(s, t, mask):
        each = of(F.log_softmax(s, 2), F.log_softmax(teacher(t), 2))
        return over(vocabulary(each, 2), mask)

    return loss


def within_rows(each, mask):
    return ((each * mask).sum(1) / mask.sum(1)).mean()


def returns(
    order=torch.gt, divide=True, sums=True, numbers=True, end=True, by=None, least=1, mean=False
):
    """`sums`, `numbers` and `end` say where the mask is used; `by` divides by something else."""

    def values(rewards, mask):
        place = torch.arange(mask.shape[1])
        counted = order(place[:, None], place).to(rewards.dtype)
        number = (mask if numbers else torch.ones_like(mask)).to(rewards.dtype) @ counted
        number = by(mask) if by else number
        found = (rewards * mask if sums else rewards) @ counted
        found = found / number.clamp(min=least) if divide else found
        found = found.where(mask, 0.0) if end else found
        return found.mean(1) if mean else found

    return values


def weights(q, p, alpha, of=torch.exp):
    q, p = of(q), of(p)
    return q / (alpha * p + (1 - alpha) * q)


def through_the_ratio(q, p, alpha):
    ratio = (q - p).exp()
    return ratio / (alpha + (1 - alpha) * ratio)


def to_go(reward):
    return reward.flip(1).cumsum(1).flip(1)


def policy_loss(
    reward=lambda q, p: (p - q).detach(), returns=to_go, over=lambda each: each.sum(1).mean()
):
    return lambda q, p: over(-q * returns(reward(q, p)))


RIGHT = {"6.1": reverse_kl(), "6.4": returns(), "6.3": weights, "6.2": policy_loss()}

# (exercise, a common wrong answer, a part of the message that it must meet)
WRONG = [
    ("6.1", reverse_kl(lambda q, p: reverse(p, q)), "forward divergence"),
    ("6.1", reverse_kl(lambda q, p: p.exp() * (q - p)), "weighted with p"),
    ("6.1", reverse_kl(lambda q, p: -reverse(q, p)), "the sign is wrong"),
    ("6.1", reverse_kl(lambda q, p: -q.exp() * p), "the student's entropy"),
    ("6.1", reverse_kl(over=lambda each, mask: (each * mask).mean()), "not by B · T"),
    ("6.1", reverse_kl(over=lambda each, mask: each.mean()), "the padding enters: average"),
    ("6.1", reverse_kl(over=lambda each, mask: each.sum() / mask.sum()), "enters the sum"),
    ("6.1", reverse_kl(vocabulary=torch.mean), "V times too small"),
    ("6.1", reverse_kl(over=within_rows), "within each row first"),
    ("6.1", reverse_kl(over=lambda each, mask: each[mask].sum()), "instead of summing"),
    ("6.1", reverse_kl(over=lambda each, mask: each * mask), "the shape must be []"),
    ("6.1", reverse_kl(over=lambda each, mask: 0 * each.sum()), "compute sum q"),
    ("6.1", reverse_kl(teacher=lambda t: t), "train the teacher too"),
    ("6.1", lambda *given: reverse_kl()(*given).detach(), "no gradient"),
    ("6.1", lambda s, t, mask: reverse_kl(teacher=lambda t: t)(s.detach(), t, mask), "no gradient"),
    ("6.1", reverse_kl(lambda q, p: q.exp().detach() * (q - p)), "its gradient is not"),
    ("6.4", returns(torch.ge), "i > t"),
    ("6.4", returns(divide=False), "by the number of its tokens"),
    ("6.4", returns(by=lambda mask: mask.sum(1, keepdim=True)), "the length of the answer"),
    ("6.4", returns(by=lambda mask: torch.tensor(mask.shape[1])), "not by T"),
    ("6.4", returns(sums=False), "the padding's rewards enter"),
    ("6.4", returns(numbers=False), "the padding enters the number"),
    ("6.4", returns(sums=False, numbers=False), "comes too late"),
    ("6.4", returns(sums=False, numbers=False, end=False), "the mask is not used"),
    ("6.4", returns(torch.lt), "the earlier tokens"),
    ("6.4", returns(mean=True), "for each token: no mean"),
    ("6.4", returns(least=0), "0 / 0"),
    ("6.4", lambda r, mask: returns()(r, mask)[:, 1:], "the shape must be [3, 5], got [3, 4]"),
    ("6.4", lambda r, mask: 0 * r, "how many they are"),
    ("6.4", lambda r, mask: returns()(r, mask) / mask.any(1, keepdim=True), "a row of padding"),
    ("6.3", lambda q, p, a: weights(q, p, 1 - a), "the teacher's share"),
    ("6.3", lambda q, p, a: weights(p, q, 1 - a), "is the numerator"),
    ("6.3", lambda q, p, a: 1 / weights(q, p, a), "the other way round"),
    ("6.3", lambda q, p, a: (q - a * p - (1 - a) * q).exp(), "not their logarithms"),
    ("6.3", lambda q, p, a: weights(q, p, a, of=lambda x: x), "before you mix"),
    ("6.3", lambda q, p, a: weights(q, p, a).log(), "this is log w"),
    ("6.3", lambda q, p, a: weights(q, p, a).cumprod(1), "of the first t"),
    (
        "6.3",
        lambda q, p, a: weights(q, p, a).prod(1, keepdim=True).expand_as(q),
        "over the whole answer",
    ),
    ("6.3", lambda q, p, a: weights(q, p, a).prod(1), "no product over the answer"),
    ("6.3", lambda q, p, a: (q - p).exp(), "not from the teacher alone"),
    ("6.3", lambda q, p, a: weights(q, p, a).mean(), "the shape must be [3, 4], got []"),
    ("6.3", lambda q, p, a: torch.ones_like(q), "token by token"),
    ("6.3", through_the_ratio, "overflows"),
    ("6.2", lambda q, p: -policy_loss()(q, p), "the loss is minus the sum"),
    ("6.2", policy_loss(lambda q, p: (q - p).detach()), "the reward is log p - log q"),
    ("6.2", policy_loss(lambda q, p: p - q), "detach the reward"),
    ("6.2", lambda q, p: (q - p).sum(1).mean(), "itself"),
    ("6.2", policy_loss(returns=lambda r: r.sum(1, keepdim=True)), "with more variance"),
    ("6.2", policy_loss(returns=lambda r: r), "own reward is not enough"),
    ("6.2", policy_loss(returns=lambda r: to_go(r) - r), "begins at i = t"),
    ("6.2", policy_loss(returns=lambda r: r.cumsum(1)), "not over the earlier ones"),
    ("6.2", policy_loss(over=torch.mean), "but sum over their tokens"),
    ("6.2", policy_loss(over=torch.sum), "instead of summing over them"),
    ("6.2", policy_loss(over=lambda each: each.sum(1)), "return one number"),
    ("6.2", lambda q, p: 0 * policy_loss()(q, p), "-R_t / B"),
    ("6.2", policy_loss(lambda q, p: p - q.detach()), "train the teacher too"),
    ("6.2", lambda q, p: policy_loss()(q, p).item(), "no gradient"),
    ("6.2", lambda q, p: 0.0, "a loss with a gradient"),
    (
        "6.2",
        lambda q, p: -((q - q.detach()).exp() * to_go((p - q).detach())).sum(1).mean(),
        "the value is not",
    ),
]
