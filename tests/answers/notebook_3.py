"""Answers to the exercises of notebook 3, right and wrong."""

import torch
from torch.nn import functional as F

from .formulas import kl, tempered


def combined(s, t, y, T, alpha):
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * T**2 * kl(
        tempered(t.detach(), T), tempered(s, T)
    ).mean()


def step(*bugs):
    """A training step; `bugs` names those that it has."""

    def train(student, teacher, optimizer, images, labels, augment):
        student.train("mode" not in bugs)
        teacher.train("eval" in bugs)
        view = augment(images)
        with torch.set_grad_enabled("no_grad" in bugs):
            targets = F.softmax(teacher(view) / 4, 0 if "axis" in bugs else 1)
        logits = student(augment(images) if "views" in bugs else view)
        soft = 16 * F.kl_div(tempered(logits, 4), targets, reduction="batchmean")
        if "T2" in bugs:
            soft = soft / 16
        loss = 0.1 * F.cross_entropy(logits / 4 if "labels" in bugs else logits, labels)
        optimizer.zero_grad()
        (loss + 0.9 * soft).backward()
        if "clip" not in bugs:
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        if "step" not in bugs:
            optimizer.step()
        return loss + 0.9 * soft

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


def predictions(*given):
    return lambda statements: torch.tensor(given)


HARMFUL = {"epochs": 3, "temperature": 16.0, "alpha": 1.0}
FLATTERING = {"lr": 0.15, "alpha": 0.5}


def recipes(first=HARMFUL, second=FLATTERING):
    return lambda recipe: (recipe | first, recipe | second)


RIGHT = {
    "3.1": combined,
    "3.2": hook(lambda seen: seen[2]),
    "3.3": predictions(True, False, True),
    "3.4": ends,
    "3.5": recipes(),
    "3.6": attention(),
    "3.7": step(),
}

# (exercise, a common wrong answer, a part of the message that it must meet)
WRONG = [
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
    ("3.2", lambda model, name, images: model.get_submodule(name)(images), "module to the images"),
    ("3.2", lambda model, *x: hook(lambda seen: seen[2])(model.eval(), *x), "mode changed"),
    ("3.2", lambda model, *x: hook(lambda seen: seen[2])(model.train(), *x), "mode changed"),
    ("3.2", torch.no_grad()(hook(lambda seen: seen[2])), "carry no gradient"),
    ("3.2", lambda model, name, images: model[:3](images) + 1, "output of the module called"),
    ("3.3", predictions(True, True, True), "statement 2"),
    ("3.3", predictions(True, False, False), "statement 3"),
    ("3.3", predictions(False, False, True), "statement 1"),
    ("3.3", predictions(False, True, False), "statement 1"),
    ("3.3", predictions(1, 2, 3), "True or False for each"),
    ("3.3", predictions(True), "shape must be [3]"),
    ("3.4", unpaired, "seed by seed"),
    ("3.4", lambda a, b: unpaired(a, b, factor=2.3060041), "there are 4 degrees"),
    ("3.4", lambda a, b: unpaired(a, b, n=1), "and divide by the root of n"),
    ("3.4", lambda a, b: ends(a, b, root=1), "root of n"),
    ("3.4", lambda a, b: ends(a, b, factor=1.959964), "1.96 is for many seeds"),
    ("3.4", lambda a, b: ends(a, b, correction=0), "ddof=1"),
    ("3.4", lambda a, b: ends(a, b, factor=2.5705818), "4 degrees"),
    ("3.4", lambda a, b: ends(a, b, factor=2.1318468), "one-sided"),
    ("3.4", lambda a, b: ends(b, a), "the sign"),
    ("3.4", lambda a, b: ends(a, b)[0], "shape must be [2], got []"),
    ("3.4", lambda a, b: (0, 1), "mean ± t"),
    ("3.5", lambda recipe: recipe, "return two recipes"),
    ("3.5", lambda recipe: (recipe, "lr"), "a dictionary of epochs"),
    ("3.5", recipes({"batch_size": 8}), "nothing else"),
    ("3.5", recipes({"epochs": 40}), "epochs must be 1 to 10"),
    ("3.5", recipes(FLATTERING, HARMFUL), "the other way round"),
    ("3.5", recipes(HARMFUL | {"epochs": 1}), "falls below 85 %"),
    ("3.5", recipes({}), "KD is not 6 points behind"),
    ("3.5", recipes(second={"lr": 0.2}), "falls below 75 %"),
    ("3.5", recipes(second={"lr": 0.02}), "KD is not 5 points ahead"),
    ("3.6", attention(of=lambda a: a.mean(1)), "square the activations first"),
    ("3.6", attention(of=lambda a: a.abs().mean(1)), "absolute value weights"),
    ("3.6", attention(of=lambda a: a.mean(1).square()), "opposite signs cancel"),
    ("3.6", attention(lambda a: a), "scale every sample"),
    ("3.6", attention(lambda a: F.normalize(a, 1)), "normalize(x, dim=1)"),
    ("3.6", attention(lambda a: F.normalize(a, dim=0)), "not each position"),
    ("3.6", attention(lambda a: F.normalize(a.view(-1, 4, 4)).flatten(1)), "flatten the map"),
    ("3.6", attention(reduce=torch.sum), "instead of summing"),
    ("3.6", attention(reduce=lambda a: a.sum(1).mean()), "over the positions too"),
    ("3.6", attention(reduce=lambda a: a), "return one number"),
    ("3.6", lambda s, t: s.sum(), "mean of (a_s - a_t)²"),
    ("3.7", step("eval"), "the teacher changed"),
    ("3.7", step("no_grad"), "teacher gets gradients"),
    ("3.7", step("step"), "did not move"),
    ("3.7", step("views"), "two different augmentations of an image: draw one for both"),
    ("3.7", step("labels"), "labels are not softened"),
    ("3.7", step("mode"), "still in evaluation mode"),
    ("3.7", step("axis"), "sum to one over the classes"),
    ("3.7", step("clip"), "nothing is clipped"),
    ("3.7", step("axis", "clip"), "over the classes of an image; and 1 more"),
    ("3.7", step("T2"), "line by line"),
]
