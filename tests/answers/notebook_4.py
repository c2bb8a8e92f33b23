"""Answers to the exercises of notebook 4, right and wrong."""

import torch
from torch.nn import functional as F


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


def sevens(images, labels):
    """The numbers of the 7s, the ones least like their mean at the end."""
    found = (labels == 7).nonzero()[:, 0]
    apart = (images[found] - images[found].mean(0)).flatten(1).norm(dim=1)
    return found[apart.argsort()]


def told(images, labels, chosen):
    """All other digits, and the chosen 7s."""
    return torch.cat([(labels != 7).nonzero()[:, 0], chosen])


def every_first(labels):
    """The number of the first digit of each class."""
    return torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])


RIGHT = {
    "4.1": lambda f, g: evidence(f, g).relu(),
    "4.2": lambda c, a, y: 100 * (c != a).double().mean(),
    "4.3": moved,
    "4.4": lambda s, t: own_minus(agreements(s, t)),
    "4.5": overlap,
    "4.6": lambda: torch.tensor([False, True, False, True, False]),
    "4.7": lambda images, labels: told(images, labels, sevens(images, labels)[-1:].repeat(150)),
}

# (exercise, a common wrong answer, a part of the message that it must meet)
WRONG = [
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
    ("4.6", lambda: 50, "five answers"),
    ("4.6", lambda: (5, 95, 5, 95, 5), "True (more than half are called 0) or False"),
    ("4.6", lambda: [True] * 5, "2 of 5 are right. Student 1: it hears the teacher on clean"),
    ("4.6", lambda: [False] * 5, "3 of 5 are right. Student 2: it matches what the teacher says"),
    ("4.6", lambda: (0, 1, 1, 1, 0), "4 of 5 are right. Student 3: the teacher never met"),
    ("4.6", lambda: (0, 1, 0, 0, 1), "3 of 5 are right. Student 4: what does a square go with"),
    ("4.6", lambda: (0, 1, 0, 1, 1), "4 of 5 are right. Student 5: it matches what student 1"),
    ("4.7", lambda x, y: y != 7, "not a mask"),
    ("4.7", lambda x, y: (y != 7).nonzero(), "[m]"),
    ("4.7", lambda x, y: torch.arange(1500) + 1, "0 to 1499"),
    ("4.7", lambda x, y: torch.arange(1500) + 0.5, "whole numbers"),
    ("4.7", lambda x, y: torch.arange(1500).repeat(3), "at most 3000"),
    ("4.7", lambda x, y: (y != 7).nonzero()[:, 0], "counts 0 digits of class 7 and refuses"),
    ("4.7", lambda x, y: torch.arange(400), "refuses"),
    ("4.7", lambda x, y: torch.arange(1500), "saw 151 different 7s, and knows others"),
    ("4.7", lambda x, y: told(x, y, sevens(x, y)[:1].repeat(150)), "saw one 7, and knows others"),
    ("4.7", lambda x, y: every_first(y).repeat(150), "enough of every other"),
]
