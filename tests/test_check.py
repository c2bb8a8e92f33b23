"""Each exercise: a right answer passes, each common mistake meets its own message."""

import ast
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdlib import check as module
from kdlib.check import as_tensor, check, verdict

# One of the wrong answers is the slip that PyTorch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean'")


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(1)


def tempered(logits, temperature=1.0):
    return F.log_softmax(logits / temperature, 1)


def without_target(logits, target):
    others = ~F.one_hot(target, logits.shape[1]).bool()
    return logits[others].view(len(logits), -1)


def batch(scores):
    return torch.arange(len(scores))


def cosines(student, teacher, tau):
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / tau


def infonce(student, teacher, tau):
    return F.cross_entropy(cosines(student, teacher, tau), batch(student))


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


def rivals(costs, accuracies, strictly=True):
    """Which network (row) beats which (column)."""
    cheaper, better = costs[:, None] <= costs, accuracies[:, None] >= accuracies
    unequal = (costs[:, None] < costs) | (accuracies[:, None] > accuracies)
    return cheaper & better & (unequal if strictly else ~torch.eye(len(costs)).bool())


def beaten(costs, accuracies, strictly):
    return rivals(costs, accuracies, strictly).any(0)


def members(logits, target):
    """Minus log-probabilities of the targets, [members, samples]."""
    return -tempered(logits.flatten(0, 1)).view_as(logits)[:, torch.arange(len(target)), target]


def mixed(logits, target):
    return -F.softmax(logits, 2).mean(0)[torch.arange(len(target)), target].log()


def best_ratio(costs, accuracies):
    ratios = accuracies / costs
    return ratios == ratios.max()


def layers(sizes):
    """Weights and biases of a fully connected network."""
    return sum(a * b for a, b in pairwise(sizes)), sum(sizes[1:])


def cost(sizes):
    weights, biases = layers(sizes)
    return weights + biases, 2 * weights


def combined(s, t, y, T, alpha):
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * T**2 * kl(
        tempered(t.detach(), T), tempered(s, T)
    ).mean()


def step(*without):
    """A training step; `without` names what it forgets."""

    def train(student, teacher, optimizer, images, labels):
        teacher.train("eval" in without)
        with torch.set_grad_enabled("no_grad" in without):
            targets = F.softmax(teacher(images) / 4, 1)
        logits = student(images)
        reduction = "mean" if "batchmean" in without else "batchmean"
        soft = F.kl_div(tempered(logits, 4), targets, reduction=reduction)
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft * (1 if "T2" in without else 16)
        if "zero_grad" not in without:
            optimizer.zero_grad()
        loss.backward()
        if "step" not in without:
            optimizer.step()
        return loss

    return train


def hook(pick, remove=True):
    def features(model, name, images):
        found = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda *seen: found.append(pick(seen))
        )
        logits = model(images)
        if remove:
            handle.remove()
        return logits if pick(("", "", None)) is Ellipsis else found[0]

    return features


def attention(unit=F.normalize, reduce=torch.mean, of=lambda a: a.square().mean(1)):
    def loss(student, teacher):
        s, t = (unit(of(a).flatten(1)) for a in (student, teacher))
        return reduce((s - t).square())

    return loss


def ends(a, b, factor=2.7764451, correction=1, root=5**0.5):
    gap = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    half = factor * gap.std(correction=correction) / root
    return gap.mean() - half, gap.mean() + half


def unpaired(a, b, factor=2.7764451, n=5):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    half = factor * ((a.var() + b.var()) / n).sqrt()
    return (a - b).mean() - half, (a - b).mean() + half


def moved(x, g, image, epsilon, size, by=torch.sign, start=None, box=True, unit=True, centre=None):
    x = (x if start is None else image) + size * by(g)
    centre = image if centre is None else centre
    x = x.clamp(centre - epsilon, centre + epsilon) if box else x
    return x.clamp(0, 1) if unit else x


def evidence(feature, gradient):
    return (gradient.mean((2, 3), keepdim=True) * feature).sum(1)


def agreements(student, teacher):
    return 100 * (student[:, None] == teacher[None]).double().mean(2)


def own_minus(table, count=4, whole=False):
    own = table.diagonal()
    return own - (table.sum(1) - (0 if whole else own)) / count


def regions(a, b, classes):
    one, two = F.one_hot(a, classes).bool(), F.one_hot(b, classes).bool()
    return (one & two).sum(0).double(), (one | two).sum(0).double(), one.sum(0), two.sum(0)


def overlap(a, b, classes):
    both, either, *_ = regions(a, b, classes)
    return 100 * (both / either).nanmean()


RIGHT = {
    "1.1": cost,
    "1.2": lambda c, a: ~beaten(c, a, strictly=True),
    "1.3": lambda z, y: members(z, y).mean(0) - mixed(z, y),
    "1.4": lambda p, T: F.softmax(p.log() / T, 1),
    "2.1": lambda s, t, T: (
        T**2 * F.kl_div(tempered(s, T), tempered(t, T), log_target=True, reduction="batchmean")
    ),
    "2.2": lambda s, t, T: T * (F.softmax(s / T, 1) - F.softmax(t / T, 1)) / len(s),
    "2.3": lambda s, t, y: kl(tempered(without_target(t, y)), tempered(without_target(s, y))),
    "2.4": infonce,
    "2.5": reverse_gradient,
    "3.1": combined,
    "3.2": hook(lambda seen: seen[2]),
    "3.3": ends,
    "3.4": attention(),
    "3.5": step(),
    "4.1": lambda f, g: evidence(f, g).relu(),
    "4.2": lambda c, a, y: 100 * (c != a).double().mean(),
    "4.3": moved,
    "4.4": lambda s, t: own_minus(agreements(s, t)),
    "4.5": overlap,
}

WRONG = [
    ("1.1", lambda sizes: (layers(sizes)[0], 2 * layers(sizes)[0]), "every layer has biases"),
    ("1.1", lambda sizes: (sum(layers(sizes)), layers(sizes)[0]), "weight costs two operations: a"),
    ("1.1", lambda sizes: 2 * (layers(sizes)[0],), "parameters include the biases"),
    ("1.1", lambda sizes: (sum(layers(sizes)), cost(sizes)[1] + layers(sizes)[1]), "leaves the"),
    ("1.1", lambda sizes: (sum(layers(sizes)), 2 * sum(layers(sizes))), "a bias is one addition"),
    ("1.1", lambda sizes: cost(sizes)[::-1], "parameters come first"),
    ("1.1", lambda sizes: cost(sizes)[0], "shape must be [2], got []"),
    ("1.1", lambda sizes: (1, 2), "inputs times outputs"),
    ("1.1", lambda sizes: cost(sizes[:4]), "right for three layers, not for 4"),
    (
        "1.1",
        lambda sizes: (
            sizes[0] * sizes[1] + sizes[1] * sizes[2] + sizes[2] * sizes[-1] + sum(sizes[1:]),
            2 * layers(sizes)[0],
        ),
        "not for 4",
    ),
    ("1.2", lambda c, a: beaten(c, a, strictly=True), "wrong way round"),
    ("1.2", lambda c, a: ~((c[:, None] < c) & (a[:, None] > a)).any(0), "is better too"),
    ("1.2", lambda c, a: ~beaten(c, a, strictly=False), "two equal networks do not"),
    (
        "1.2",
        lambda c, a: [
            i == min(j for j in range(7) if (c[j], a[j]) == (c[i], a[i]))
            and not beaten(c, a, strictly=True)[i]
            for i in range(7)
        ],
        "of two equal networks",
    ),
    ("1.2", lambda c, a: ~((c[:, None] <= c) & (a[:, None] >= a)).any(0), "beat itself"),
    ("1.2", lambda c, a: [all(a[i] > v for v in a[:i]) for i in range(7)], "not sorted by cost"),
    ("1.2", best_ratio, "one point of the frontier"),
    ("1.2", lambda c, a: ~rivals(c, a).any(1), "the winner is on axis 0"),
    ("1.2", lambda c, a: rivals(c, a).any(1), "and the wrong way round"),
    ("1.2", lambda c, a: a > 50, "at least as good in both"),
    ("1.3", lambda z, y: mixed(z, y) - members(z, y).mean(0), "sign"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y).mean(), "without the mean"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y).sum(), "without the sum"),
    ("1.3", lambda z, y: members(z, y) - mixed(z, y), "over the members too"),
    ("1.3", lambda z, y: members(z, y).sum(0) - mixed(z, y), "this sums over the members"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y) + torch.tensor(3.0).log(), "probabilities: the"),
    ("1.3", lambda z, y: members(z, y).mean(0) - members(z, y).mean(0), "mean of the logarithms"),
    (
        "1.3",
        lambda z, y: members(z, y).mean(0) - F.cross_entropy(z.mean(0), y, reduction="none"),
        "averages the logits",
    ),
    (
        "1.3",
        lambda z, y: mixed(z, y).neg().exp() - members(z, y).mean(0).neg().exp(),
        "difference of probabilities",
    ),
    ("1.3", mixed, "the ensemble's loss: what"),
    ("1.3", lambda z, y: members(z, y).mean(0), "the members' loss: subtract"),
    ("1.3", lambda z, y: y.double(), "mean over members"),
    ("1.4", lambda p, T: (p / T) / (p / T).sum(1, keepdim=True), "changes nothing"),
    ("1.4", lambda p, T: p / T, "no longer sum to one"),
    ("1.4", lambda p, T: F.softmax(p / T, 1), "take the logarithm"),
    ("1.4", lambda p, T: F.softmax(p.log() * T, 1), "the power is 1 / T"),
    ("1.4", lambda p, T: p ** (1 / T), "must sum to one"),
    ("1.4", lambda p, T: F.log_softmax(p.log() / T, 1), "not their logarithms"),
    ("1.4", lambda p, T: F.softmax(p.log() / T, 0), "not over the batch"),
    ("1.4", lambda p, T: F.softmax(p, 1), "softmax(log p / T)"),
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
    ("2.1", lambda s, t, T: "loss", "return a tensor, not str"),
    ("2.1", lambda s, t, T: s @ t, "raised RuntimeError"),
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
    ("2.2", lambda s, t, T: s @ t, "raised RuntimeError"),
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
    ("2.5", autograd(lambda s, t: kl(tempered(s), tempered(t)).sum()), "without autograd"),
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
    ("3.1", lambda s, t, y, T, a: combined(s, t, y, T, 1 - a), "alpha is the teacher's share"),
    (
        "3.1",
        lambda s, t, y, T, a: (
            combined(s, t, y, T, a) + (1 / T**2 - 1) * combined(s, t, y, T, 1) * a
        ),
        "T² is missing in front",
    ),
    (
        "3.1",
        lambda s, t, y, T, a: (
            combined(s, t, y, T, a) + (T**2 - 1) * (1 - a) * F.cross_entropy(s, y)
        ),
        "T² belongs to",
    ),
    (
        "3.1",
        lambda s, t, y, T, a: (
            combined(s, t, y, T, a) + (1 - a) * (F.cross_entropy(s / T, y) - F.cross_entropy(s, y))
        ),
        "the labels are not softened",
    ),
    (
        "3.1",
        lambda s, t, y, T, a: combined(s, t, y, T, a) - 0.8 * a * combined(s, t, y, T, 1),
        "C times too small",
    ),
    ("3.1", lambda s, t, y, T, a: a * combined(s, t, y, T, 1), "with the labels is missing"),
    (
        "3.1",
        lambda s, t, y, T, a: combined(s, t, y, T, a) + a * F.cross_entropy(s, y),
        "weight the cross-entropy",
    ),
    ("3.1", lambda *a: combined(*a).item(), "no gradient"),
    ("3.1", lambda s, t, y, T, a: combined(s, t, y, T, a) + 0 * t.sum(), "train the teacher too"),
    ("3.1", lambda s, t, y, T, a: s.sum(), "compute (1 - alpha)"),
    ("3.2", hook(lambda seen: ...), "output of the whole network"),
    ("3.2", hook(lambda seen: seen[1] and seen[1][0]), "what enters the module"),
    ("3.2", hook(lambda seen: seen[2], remove=False), "hook is still there"),
    ("3.2", lambda model, name, images: images, "shape must be [5, 3]"),
    ("3.2", lambda model, name, images: model.get_submodule(name)(images), "module to the images"),
    ("3.2", lambda model, *x: hook(lambda seen: seen[2])(model.eval(), *x), "mode changed"),
    ("3.2", lambda model, *x: hook(lambda seen: seen[2])(model.train(), *x), "mode changed"),
    ("3.2", torch.no_grad()(hook(lambda seen: seen[2])), "carry no gradient"),
    ("3.2", lambda model, name, images: model[:3](images) + 1, "output of the module called"),
    ("3.3", unpaired, "seed by seed"),
    ("3.3", lambda a, b: unpaired(a, b, factor=2.3060041), "there are 4 degrees"),
    ("3.3", lambda a, b: unpaired(a, b, n=1), "and divide by the root of n"),
    ("3.3", lambda a, b: ends(a, b, root=1), "root of n"),
    ("3.3", lambda a, b: ends(a, b, factor=1.959964), "1.96 is for many seeds"),
    ("3.3", lambda a, b: ends(a, b, correction=0), "ddof=1"),
    ("3.3", lambda a, b: ends(a, b, factor=2.5705818), "4 degrees"),
    ("3.3", lambda a, b: ends(a, b, factor=2.1318468), "one-sided"),
    ("3.3", lambda a, b: ends(b, a), "the sign"),
    ("3.3", lambda a, b: ends(a, b)[0], "shape must be [2], got []"),
    ("3.3", lambda a, b: (0, 1), "mean ± t"),
    ("3.4", attention(of=lambda a: a.mean(1)), "square the activations first"),
    ("3.4", attention(of=lambda a: a.abs().mean(1)), "absolute value weights"),
    ("3.4", attention(of=lambda a: a.mean(1).square()), "opposite signs cancel"),
    ("3.4", attention(lambda a: a), "scale every sample"),
    ("3.4", attention(lambda a: F.normalize(a, 1)), "normalize(x, dim=1)"),
    ("3.4", attention(lambda a: F.normalize(a, dim=0)), "not each position"),
    ("3.4", attention(lambda a: F.normalize(a.view(-1, 4, 4)).flatten(1)), "flatten the map"),
    ("3.4", attention(reduce=torch.sum), "instead of summing"),
    ("3.4", attention(reduce=lambda a: a.sum(1).mean()), "over the positions too"),
    ("3.4", attention(reduce=lambda a: a), "return one number"),
    ("3.4", lambda s, t: s.sum(), "mean of (q_s - q_t)²"),
    ("3.5", step("eval"), "the teacher changed"),
    ("3.5", step("batchmean"), "reduction='mean' divides"),
    ("3.5", step("T2"), "factor T² is missing"),
    ("3.5", step("T2", "batchmean"), "T² is missing, and"),
    ("3.5", step("zero_grad"), "earlier steps add up"),
    ("3.5", step("step"), "did not move"),
    ("3.5", step("no_grad"), "teacher gets gradients"),
    ("3.5", step("zero_grad", "T2"), "line by line"),
    ("3.5", lambda s, t, o, x, y: step()(s.eval(), t, o, x, y), "student must be in training"),
    ("4.1", evidence, "ReLU is missing"),
    ("4.1", lambda f, g: (g.mean((2, 3), keepdim=True) * f).relu().sum(1), "after the sum"),
    ("4.1", lambda f, g: (g * f).sum(1).relu(), "over the positions first"),
    ("4.1", lambda f, g: evidence(f, g).relu() / f.shape[1], "sum over the channels instead"),
    ("4.1", lambda f, g: evidence(f, g).relu() * 25, "instead of summing"),
    ("4.1", lambda f, g: evidence(f, g).abs(), "no absolute value"),
    ("4.1", lambda f, g: f.sum(1), "mean gradient of their channel"),
    ("4.1", lambda f, g: evidence(f, g).relu()[:, None], "drop the channel axis"),
    ("4.1", lambda f, g: g.sum(1), "weights are the mean"),
    ("4.2", lambda c, a, y: (c != a).double().mean(), "in percent"),
    ("4.2", lambda c, a, y: 100 * (c == a).double().mean(), "did not change"),
    ("4.2", lambda c, a, y: 100 * (a != y).double().mean(), "error under attack"),
    (
        "4.2",
        lambda c, a, y: 100 * ((c == y).double().mean() - (a == y).double().mean()),
        "loss of accuracy",
    ),
    ("4.2", lambda c, a, y: 100 * (c != a)[c == y].double().mean(), "prediction was wrong, too"),
    ("4.2", lambda c, a, y: 100 * ((c == y) & (a != y)).double().mean(), "wrong before, too"),
    ("4.2", lambda c, a, y: (c != a).sum().double(), "divide by the number"),
    ("4.2", lambda c, a, y: 0.0, "whatever the label"),
    ("4.3", lambda *x: moved(*x, by=lambda g: -g.sign()), "goes down the loss"),
    ("4.3", lambda *x: moved(*x, by=lambda g: g), "take the sign"),
    ("4.3", lambda *x: moved(*x, start="image"), "start from `moved`"),
    ("4.3", lambda *x: moved(*x, unit=False), "left [0, 1]"),
    ("4.3", lambda *x: moved(*x, box=False), "left the box"),
    ("4.3", lambda *x: moved(*x, box=False, unit=False), "both limits"),
    ("4.3", lambda *x: moved(*x, centre=x[0]), "not around `moved`"),
    ("4.3", lambda x, g, i, e, s: moved(x, g, i, e, e), "epsilon is the limit"),
    ("4.3", lambda x, g, i, e, s: i, "clip twice"),
    ("4.4", lambda s, t: own_minus(agreements(s, t)) / 100, "percentage points"),
    ("4.4", lambda s, t: own_minus(agreements(s, t), 5, True), "among the others"),
    ("4.4", lambda s, t: own_minus(agreements(s, t), 5), "divide by s - 1"),
    ("4.4", lambda s, t: agreements(s, t).diagonal(), "subtract the one"),
    ("4.4", lambda s, t: -own_minus(agreements(s, t)), "sign"),
    ("4.4", lambda s, t: own_minus(agreements(s, t).T), "not one teacher with all"),
    ("4.4", lambda s, t: own_minus(agreements(s, t)).mean(), "for each student"),
    ("4.4", lambda s, t: torch.zeros(5), "for student i"),
    ("4.5", lambda *x: overlap(*x) / 100, "in percent"),
    ("4.5", lambda a, b, c: 100 * (a == b).double().mean(), "equal points"),
    ("4.5", lambda a, b, c: 100 * (a == b).sum() / (2 * len(a) - (a == b).sum()), "at once"),
    (
        "4.5",
        lambda a, b, c: 100 * (regions(a, b, c)[0] / regions(a, b, c)[1].clamp(min=1)).mean(),
        "no disagreement",
    ),
    (
        "4.5",
        lambda a, b, c: 100 * (regions(a, b, c)[0] / regions(a, b, c)[1]).nan_to_num(1).mean(),
        "leave it out",
    ),
    (
        "4.5",
        lambda a, b, c: 100 * (regions(a, b, c)[0] / sum(regions(a, b, c)[2:])).nanmean(),
        "the two regions",
    ),
    (
        "4.5",
        lambda a, b, c: 100 * (regions(a, b, c)[0] / regions(a, b, c)[2]).nanmean(),
        "teacher's region",
    ),
    ("4.5", lambda a, b, c: 100 * (regions(a, b, c)[0] / regions(a, b, c)[1])[:5], "mean over"),
    (
        "4.5",
        lambda a, b, c: (
            100 * (regions(a, b, c)[0] / regions(a, b, c)[1])[regions(a, b, c)[0] > 0].mean()
        ),
        "in one map only",
    ),
    (
        "4.5",
        lambda a, b, c: (
            100 * (regions(a, b, c)[0] / regions(a, b, c)[1])[regions(a, b, c)[2] > 0].mean()
        ),
        "classes of both maps",
    ),
    (
        "4.5",
        lambda a, b, c: (
            100 * (regions(a, b, c)[0] / regions(a, b, c)[1])[regions(a, b, c)[3] > 0].mean()
        ),
        "classes of both maps",
    ),
    (
        "4.5",
        lambda a, b, c: 100 * (regions(a, b, c)[0] / regions(a, b, c)[1]).mean(),
        "division by 0",
    ),
    ("4.5", lambda a, b, c: 0.0, "for each class"),
]


def test_every_exercise_is_tested():
    assert set(RIGHT) == set(module.exercises()) == {name for name, _, _ in WRONG}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answer_passes(name):
    assert verdict(name, RIGHT[name]).startswith(f"correct: {name} ")


KINDS = {
    "array": lambda result: result.detach().numpy(),
    "numpy scalar": lambda result: result.numpy()[()],
    "list": lambda result: result.tolist(),
    "list of tensors": list,
    "list of arrays": lambda result: [row.numpy() for row in result],
    "array of tensors": lambda result: np.array([*result, None], dtype=object)[:-1],
}
TRAINED = {"2.1", "3.1", "3.2", "3.5"}  # the answer has to carry a gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(RIGHT) - TRAINED))
def test_right_answer_of_another_type_passes(name, kind):
    def answer(*given):
        result = RIGHT[name](*given)
        result = torch.stack(result) if isinstance(result, tuple) and name != "1.1" else result
        result = torch.as_tensor(result)
        return KINDS[kind](result) if result.ndim or not kind.endswith("s") else result

    assert verdict(name, answer).startswith(f"correct: {name} ")


def test_gradients_are_asked_for_whatever_the_type():
    for name in ("2.1", "3.1", "3.2"):
        line = verdict(name, lambda *given, name=name: RIGHT[name](*given).detach().numpy())
        assert "no gradient" in line
    assert verdict("3.2", lambda *given: list(RIGHT["3.2"](*given))).startswith("correct: 3.2")


@pytest.mark.parametrize(
    "given, value",
    [
        (2, 2.0),
        (True, 1.0),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.arange(3, dtype=np.uint8), [0.0, 1.0, 2.0]),
        (range(2), [0.0, 1.0]),
        ([torch.tensor(1), np.float64(2), 3], [1.0, 2.0, 3.0]),
        (([1, 2], np.array([True, False])), [[1.0, 2.0], [1.0, 0.0]]),
    ],
)
def test_as_tensor(given, value):
    found = as_tensor(given)
    assert found.dtype == torch.float64 and found.tolist() == value


@pytest.mark.parametrize(
    "given", ["2", None, [1, [2, 3]], [], {"a": 1}, 1j, [1, "a"], np.array(["a"])]
)
def test_what_is_no_tensor_stays(given):
    assert not torch.is_tensor(as_tensor(given))
    assert "return a tensor, not" in verdict("2.2", lambda *_: given if given is not None else "")


def test_complex_numbers_are_not_cut():
    line = verdict("2.2", lambda *given: RIGHT["2.2"](*given) + 1j)
    assert line == "not yet: 2.2 return real numbers, not complex ones"


def test_nothing_but_the_answer_uses_the_random_stream_of_a_gpu(root):
    """`fork_rng` without `devices` initialises every GPU."""
    paths = [*(root / "kdlib" / "exercises").glob("*.py"), root / "kdlib/commands/doctor.py"]
    calls = [
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "fork_rng"
    ]
    assert len(calls) >= 2
    assert {ast.unparse(call) for call in calls} == {"torch.random.fork_rng(devices=[])"}


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


@pytest.mark.parametrize("name", module.exercises())
@pytest.mark.parametrize("answer", [None, ..., unfinished, lambda *_: None, lambda *_: ...])
def test_untouched_exercise(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out.startswith(f"[to do] {name}: ")


def test_verdict_never_raises():
    assert verdict("9.9", 1).startswith("not yet: there is no exercise '9.9'")
    for name in module.exercises():
        assert verdict(name, 3).startswith(f"not yet: {name} your code raised TypeError")
        assert verdict(name, lambda: 3).startswith(f"not yet: {name} your code raised TypeError")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        module.exercise("2.1")(lambda answer: None)
