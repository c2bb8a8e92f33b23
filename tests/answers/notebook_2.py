"""Answers to the exercises of notebook 2, right and wrong."""

import torch
from torch.nn import functional as F

from .formulas import kl, tempered


def without_target(logits, target):
    others = ~F.one_hot(target, logits.shape[1]).bool()
    return logits[others].view(len(logits), -1)


def batch(scores):
    return torch.arange(len(scores))


def cosines(student, teacher, tau):
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / tau


def infonce(student, teacher, tau):
    return F.cross_entropy(cosines(student, teacher, tau), batch(student))


def reverse_divergence(student, teacher):
    return kl(tempered(student), tempered(teacher)).sum()


def reverse_gradient(student, teacher):
    q, gap = F.softmax(student, 1), tempered(student) - tempered(teacher)
    return q * (gap - (q * gap).sum(1, keepdim=True))


def autograd(loss):
    def gradient(student, *others):
        student = student.clone().requires_grad_()
        return torch.autograd.grad(loss(student, *others), student)[0]

    return gradient


def minus_infinity(logits, target):
    return logits.masked_fill(F.one_hot(target, logits.shape[1]).bool(), -torch.inf)


def zero_for_target(logits, target):
    return logits * ~F.one_hot(target, logits.shape[1]).bool()


def waste(change):
    """Changes the probabilities of all classes but the first in rank, [B, 9]."""

    def answer(p):
        first = p.argmax(1)
        others = change(without_target(p, first))
        rest = ~F.one_hot(first, p.shape[1]).bool()
        return p.masked_scatter(rest, others)

    return answer


def even(rest):
    return rest.mean(1, keepdim=True).expand_as(rest)


def sharper(rest):
    """The runners-up differ more, wherever none of them overtakes the first."""
    found = rest**1.3 / (rest**1.3).sum(1, keepdim=True) * rest.sum(1, keepdim=True)
    fits = found.max(1).values < 1 - rest.sum(1)
    return torch.where(fits[:, None], found, rest)


def nearer(rest, share=0.6):
    """Each runner-up moves towards their mean by a share of the way."""
    return rest + share * (even(rest) - rest)


RIGHT = {
    "2.1": lambda s, t, T: (
        T**2 * F.kl_div(tempered(s, T), tempered(t, T), log_target=True, reduction="batchmean")
    ),
    "2.2": lambda s, t, T: T * (F.softmax(s / T, 1) - F.softmax(t / T, 1)) / len(s),
    "2.3": lambda s, t, y: kl(tempered(without_target(t, y)), tempered(without_target(s, y))),
    "2.4": infonce,
    "2.5": reverse_gradient,
    "2.6": waste(nearer),
}

# (exercise, a common wrong answer, a part of the message that it must meet)
WRONG = [
    ("2.1", lambda s, t, T: kl(tempered(t, T), tempered(s, T)).mean(), "factor T² is missing"),
    ("2.1", lambda s, t, T: T * kl(tempered(t, T), tempered(s, T)).mean(), "T², not by T"),
    (
        "2.1",
        lambda s, t, T: T**2 * F.kl_div(tempered(s, T), F.softmax(t / T, 1)).mean(),
        "C times too small",
    ),
    (
        "2.1",
        lambda s, t, T: F.kl_div(tempered(s, T), F.softmax(t / T, 1), reduction="mean"),
        "T² is missing, and",
    ),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s, T)).sum(), "average over the"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(s, T), tempered(t, T)).mean(), "swapped"),
    ("2.1", lambda s, t, T: T**2 * F.cross_entropy(s / T, F.softmax(t / T, 1)), "entropy"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t), tempered(s)).mean(), "both networks"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s)).mean(), "by T too"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s, T)), "return one number"),
    ("2.1", lambda s, t, T: RIGHT["2.1"](s, t, T).item(), "no gradient"),
    ("2.1", lambda s, t, T: F.mse_loss(s, t), "compute T²"),
    ("2.1", lambda s, t, T: RIGHT["2.1"](s, t, T) * float("inf"), "not finite"),
    (
        "2.1",
        lambda s, t, T: (
            T**2 * F.kl_div(F.softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
        ),
        "a probability stands first",
    ),
    ("2.1", lambda s, t, T: F.kl_div(F.softmax(t / T, 1), tempered(s, T)), "probabilities first"),
    ("2.1", lambda s, t, T: F.kl_div(tempered(s, T), tempered(t, T)), "with log_target=True"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t), tempered(s, T)).mean(), "teacher's logits must"),
    (
        "2.1",
        lambda s, t, T: T**2 * kl((t / T).log_softmax(0), (s / T).log_softmax(0)).mean(),
        "not over the batch",
    ),
    (
        "2.1",
        lambda s, t, T: T**2 * kl(tempered(t, T), F.softmax(s / T, 1).log()).mean(),
        "120 apart it is inf instead of",
    ),
    (
        "2.1",
        lambda s, t, T: T**2 * kl(F.softmax(t / T, 1).log(), tempered(s, T)).mean(),
        "120 apart it is nan instead of",
    ),
    (
        "2.1",
        lambda s, t, T: T**2 * kl(tempered(t, T), (F.softmax(s / T, 1) + 1e-10).log()).mean(),
        "softmax underflows",
    ),
    ("2.2", lambda s, t, T: -RIGHT["2.2"](s, t, T), "sign"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) * len(s), "batch size: the loss"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / s.shape[1], "number of entries"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / T, "one factor T is missing"),
    ("2.2", lambda s, t, T: F.softmax(s / T, 1) - F.softmax(t / T, 1), "so is the mean"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) * T, "one factor T is too many"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / T**2, "without T²"),
    ("2.2", lambda s, t, T: T * RIGHT["2.2"](s, t, 1), "at the temperature T"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, 1), "T, and a factor in front"),
    ("2.2", lambda s, t, T: T * RIGHT["2.2"](s, t, 1) * len(s), "T, and the mean over the batch"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, 1) * len(s), "think of T² and of the batch"),
    ("2.2", autograd(lambda s, t, T: RIGHT["2.1"](s, t, T)), "without autograd"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T).sum(), "shape must be [6, 5], got []"),
    ("2.2", lambda s, t, T: s - t, "is T (q - p) / B"),
    (
        "2.3",
        lambda s, t, y: kl(without_target(tempered(t), y), without_target(tempered(s), y)),
        "renormalise",
    ),
    (
        "2.3",
        lambda s, t, y: RIGHT["2.3"](s, t, y) * (1 - F.softmax(t, 1)[torch.arange(len(y)), y]),
        "factor 1 - p_y",
    ),
    ("2.3", lambda s, t, y: kl(tempered(t), tempered(s)), "target class has to go"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](t, s, y), "swapped"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](s, t, y).mean(), "without the mean"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](s, t, y).sum(), "without the sum"),
    (
        "2.3",
        lambda s, t, y: kl(tempered(zero_for_target(t, y)), tempered(zero_for_target(s, y))),
        "still takes part",
    ),
    (
        "2.3",
        lambda s, t, y: kl(tempered(minus_infinity(t, y)), tempered(minus_infinity(s, y))),
        "NaN: a target filled with -inf",
    ),
    ("2.3", lambda s, t, y: s[:, 0], "C - 1 other classes"),
    ("2.4", lambda s, t, tau: F.cross_entropy(s @ t.T / tau, batch(s)), "length one"),
    (
        "2.4",
        lambda s, t, tau: F.cross_entropy(F.normalize(s, 1) @ F.normalize(t, 1).T / tau, batch(s)),
        "normalize(x, dim=1)",
    ),
    ("2.4", lambda s, t, tau: infonce(s, t, 1), "divide the similarities"),
    ("2.4", lambda s, t, tau: infonce(s, t, 1 / tau), "instead of multiplying"),
    ("2.4", lambda s, t, tau: infonce(t, s, tau), "wrong axis"),
    ("2.4", lambda s, t, tau: (infonce(s, t, tau) + infonce(t, s, tau)) / 2, "only one direction"),
    ("2.4", lambda s, t, tau: infonce(s, t, tau) + infonce(t, s, tau), "only one direction"),
    (
        "2.4",
        lambda s, t, tau: F.cross_entropy(
            F.normalize(s, dim=0) @ F.normalize(t, dim=0).T / tau, batch(s)
        ),
        "each feature over the batch",
    ),
    ("2.4", lambda s, t, tau: -infonce(s, t, tau), "sign"),
    (
        "2.4",
        lambda s, t, tau: (
            cosines(s, t, tau).masked_fill(torch.eye(6).bool(), -torch.inf).logsumexp(1)
            - cosines(s, t, tau).diagonal()
        ).mean(),
        "in the denominator",
    ),
    ("2.4", lambda s, t, tau: infonce(s, t, tau) * len(s), "instead of summing"),
    (
        "2.4",
        lambda s, t, tau: F.cross_entropy(cosines(s, t, tau), batch(s), reduction="none"),
        "return one number",
    ),
    ("2.4", lambda s, t, tau: F.mse_loss(s, t), "own row"),
    ("2.5", lambda s, t: F.softmax(s, 1) - F.softmax(t, 1), "forward divergence"),
    ("2.5", lambda s, t: F.softmax(s, 1) * (tempered(s) - tempered(t)), "its mean under q"),
    (
        "2.5",
        lambda s, t: (
            F.softmax(s, 1)
            * (tempered(s) - tempered(t) - (tempered(s) - tempered(t)).mean(1, keepdim=True))
        ),
        "not the plain mean",
    ),
    ("2.5", autograd(reverse_divergence), "without autograd"),
    ("2.5", lambda s, t: F.softmax(s, 1) * (tempered(s) - tempered(t) + 1), "constant +1"),
    ("2.5", lambda s, t: -reverse_gradient(s, t), "sign"),
    (
        "2.5",
        lambda s, t: F.softmax(t, 1) / F.softmax(s, 1) * reverse_gradient(s, t),
        "expectation is under q",
    ),
    ("2.5", lambda s, t: reverse_gradient(s, t) / F.softmax(s, 1), "weighted with its probability"),
    ("2.5", lambda s, t: reverse_gradient(s, t) / len(s), "no mean over the batch"),
    ("2.5", lambda s, t: s - t, "entry by entry"),
    ("2.6", lambda p: p[:, 0], "in the shape of those that you get"),
    ("2.6", lambda p: 2 * p, "stay a distribution"),
    ("2.6", lambda p: p**2 / (p**2).sum(1, keepdim=True), "must keep its probability"),
    ("2.6", waste(even), "no two may become equal"),
    ("2.6", waste(lambda rest: rest.flip(1)), "must keep its rank"),
    ("2.6", lambda p: p, "what do they learn it from"),
    ("2.6", waste(lambda rest: nearer(rest, 0.1)), "direction is right, go on"),
    ("2.6", waste(sharper), "a better teacher of the 3"),
]
