"""Each exercise: a right answer passes, each common mistake meets its own message."""

import pytest
import torch
from torch.nn import functional as F

from kdlib import check as module
from kdlib.check import check, verdict


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(1)


def tempered(logits, temperature=1.0):
    return F.log_softmax(logits / temperature, 1)


def without_target(logits, target):
    others = ~F.one_hot(target, logits.shape[1]).bool()
    return logits[others].view(len(logits), -1)


def infonce(student, teacher, tau):
    scores = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / tau
    return F.cross_entropy(scores, torch.arange(len(scores)))


def cosines(student, teacher, tau):
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / tau


def reverse_gradient(student, teacher):
    q, gap = F.softmax(student, 1), tempered(student) - tempered(teacher)
    return q * (gap - (q * gap).sum(1, keepdim=True))


def zero_for_target(logits, target):
    return logits * ~F.one_hot(target, logits.shape[1]).bool()


def batch(scores):
    return torch.arange(len(scores))


RIGHT = {
    "2.1": lambda s, t, T: T**2 * F.kl_div(tempered(s, T), tempered(t, T), log_target=True,
                                           reduction="batchmean"),
    "2.2": lambda s, t, T: T * (F.softmax(s / T, 1) - F.softmax(t / T, 1)) / len(s),
    "2.3": lambda s, t, y: kl(tempered(without_target(t, y)), tempered(without_target(s, y))),
    "2.4": infonce,
    "2.5": reverse_gradient,
}

WRONG = [
    ("2.1", lambda s, t, T: kl(tempered(t, T), tempered(s, T)).mean(), "factor T² is missing"),
    ("2.1", lambda s, t, T: T * kl(tempered(t, T), tempered(s, T)).mean(), "T², not by T"),
    ("2.1", lambda s, t, T: T**2 * F.kl_div(tempered(s, T), F.softmax(t / T, 1)).mean(),
     "C times too small"),
    ("2.1", lambda s, t, T: F.kl_div(tempered(s, T), F.softmax(t / T, 1), reduction="mean"),
     "T² is missing, and"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s, T)).sum(), "average over the"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(s, T), tempered(t, T)).mean(), "swapped"),
    ("2.1", lambda s, t, T: T**2 * F.cross_entropy(s / T, F.softmax(t / T, 1)), "entropy"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t), tempered(s)).mean(), "both networks"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s)).mean(), "by T too"),
    ("2.1", lambda s, t, T: T**2 * kl(tempered(t, T), tempered(s, T)), "return one number"),
    ("2.1", lambda s, t, T: RIGHT["2.1"](s, t, T).item(), "no gradient"),
    ("2.1", lambda s, t, T: F.mse_loss(s, t), "compute T²"),
    ("2.1", lambda s, t, T: "loss", "return a tensor, not str"),
    ("2.1", lambda s, t, T: s @ t, "raised RuntimeError"),
    ("2.1", lambda s, t, T: RIGHT["2.1"](s, t, T) * float("nan"), "not finite"),
    ("2.2", lambda s, t, T: -RIGHT["2.2"](s, t, T), "sign"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) * len(s), "batch size: the loss"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / s.shape[1], "number of entries"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / T, "one factor T is missing"),
    ("2.2", lambda s, t, T: F.softmax(s / T, 1) - F.softmax(t / T, 1), "so is the mean"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) * T, "one factor T is too many"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T) / T**2, "without T²"),
    ("2.2", lambda s, t, T: RIGHT["2.2"](s, t, T).sum(), "shape must be [6, 5], got []"),
    ("2.2", lambda s, t, T: s - t, "is T (q - p) / B"),
    ("2.3", lambda s, t, y: kl(without_target(tempered(t), y), without_target(tempered(s), y)),
     "renormalise"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](s, t, y)
     * (1 - F.softmax(t, 1)[torch.arange(len(y)), y]), "factor 1 - p_y"),
    ("2.3", lambda s, t, y: kl(tempered(t), tempered(s)), "target class has to go"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](t, s, y), "swapped"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](s, t, y).mean(), "without the mean"),
    ("2.3", lambda s, t, y: RIGHT["2.3"](s, t, y).sum(), "without the sum"),
    ("2.3", lambda s, t, y: kl(tempered(zero_for_target(t, y)), tempered(zero_for_target(s, y))),
     "still takes part"),
    ("2.3", lambda s, t, y: s[:, 0], "C - 1 other classes"),
    ("2.4", lambda s, t, tau: F.cross_entropy(s @ t.T / tau, batch(s)), "length one"),
    ("2.4", lambda s, t, tau: F.cross_entropy(F.normalize(s, 1) @ F.normalize(t, 1).T / tau,
                                              batch(s)), "normalize(x, dim=1)"),
    ("2.4", lambda s, t, tau: infonce(s, t, 1), "divide the similarities"),
    ("2.4", lambda s, t, tau: infonce(s, t, 1 / tau), "instead of multiplying"),
    ("2.4", lambda s, t, tau: infonce(t, s, tau), "wrong axis"),
    ("2.4", lambda s, t, tau: -infonce(s, t, tau), "sign"),
    ("2.4", lambda s, t, tau: (cosines(s, t, tau).masked_fill(torch.eye(6).bool(), -torch.inf)
                               .logsumexp(1) - cosines(s, t, tau).diagonal()).mean(),
     "in the denominator"),
    ("2.4", lambda s, t, tau: infonce(s, t, tau) * len(s), "instead of summing"),
    ("2.4", lambda s, t, tau: F.cross_entropy(cosines(s, t, tau), batch(s), reduction="none"),
     "return one number"),
    ("2.4", lambda s, t, tau: F.mse_loss(s, t), "own row"),
    ("2.5", lambda s, t: F.softmax(s, 1) - F.softmax(t, 1), "forward divergence"),
    ("2.5", lambda s, t: F.softmax(s, 1) * (tempered(s) - tempered(t)), "subtract the divergence"),
    ("2.5", lambda s, t: F.softmax(s, 1) * (tempered(s) - tempered(t) + 1), "constant +1"),
    ("2.5", lambda s, t: -reverse_gradient(s, t), "sign"),
    ("2.5", lambda s, t: F.softmax(t, 1) / F.softmax(s, 1) * reverse_gradient(s, t),
     "expectation is under q"),
    ("2.5", lambda s, t: reverse_gradient(s, t) / F.softmax(s, 1), "weighted with its probability"),
    ("2.5", lambda s, t: reverse_gradient(s, t) / len(s), "no mean over the batch"),
    ("2.5", lambda s, t: s - t, "entry by entry"),
]


def test_every_exercise_is_tested():
    assert set(RIGHT) == set(module.EXERCISES) == {name for name, _, _ in WRONG}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answer_passes(name):
    assert verdict(name, RIGHT[name]).startswith(f"correct: {name} ")


@pytest.mark.parametrize("name, answer, message", WRONG)
def test_mistake_meets_its_message(name, answer, message):
    line = verdict(name, answer)
    assert line.startswith(f"not yet: {name} ") and message in line


def test_reverse_gradient_agrees_with_autograd():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    kl(tempered(student), tempered(teacher)).sum().backward()
    assert torch.allclose(student.grad, reverse_gradient(student.detach(), teacher))


def unfinished(*_):
    raise NotImplementedError


@pytest.mark.parametrize("name", module.EXERCISES)
@pytest.mark.parametrize("answer", [None, ..., unfinished, lambda *_: None, lambda *_: ...])
def test_untouched_exercise(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out.startswith(f"[to do] {name}: ")


def test_verdict_never_raises():
    assert verdict("9.9", 1).startswith("not yet: there is no exercise '9.9'")
    for name in module.EXERCISES:
        assert verdict(name, 3).startswith(f"not yet: {name} your code raised TypeError")
        assert verdict(name, lambda: 3).startswith(f"not yet: {name} your code raised TypeError")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        module.exercise("2.1")(lambda answer: None)
