"""The registry, every method on every kind of network, the memory bank against its reference."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, GOLDEN, RTOL, close, compare, inputs

from kdlib import losses
from kdlib.distillers import (
    METHODS,
    Batch,
    Distiller,
    Outputs,
    Setup,
    create,
    needs_teacher,
    options_of,
    register,
)
from kdlib.distillers.base import as_map, as_vector, map_shape
from kdlib.distillers.contrast import Bank
from kdlib.models import MLP, ConvNet, Mixer, ViT
from kdlib.stages import Tap, stage_shapes

LABELS = torch.arange(40) % 10
CRD_CASES = {case["id"]: case for case in GOLDEN["cases"] if case["loss"] == "crd"}
FULL_CASES = {case["id"]: case for case in GOLDEN["cases"] if case["loss"] == "crd_full"}
STUDENTS = {
    "ConvNet": lambda: ConvNet((4, 6, 8)),
    "MLP": lambda: MLP((12, 10)),
    "ViT": lambda: ViT(8, 3, heads=2),
    "Mixer": lambda: Mixer(8, 3),
}


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return ConvNet((6, 8, 12))


def setup_of(student, teacher, images, labels=LABELS):
    shapes = None if teacher is None else stage_shapes(teacher, images)
    return Setup(stage_shapes(student, images), shapes, labels, 10)


def vectors(**changes):
    """Setup of two networks whose only stage is a vector, and a batch of six for it."""
    g = torch.Generator().manual_seed(2)
    s, t = torch.randn(6, 5, generator=g), torch.randn(6, 7, generator=g)
    logits = torch.randn(2, 6, 10, generator=g)
    batch = Batch(
        Outputs(logits[0], {"pool": s}),
        Outputs(logits[1], {"pool": t}),
        LABELS[:6],
        torch.arange(6),
        1,
    )
    return Setup({"pool": (5,)}, {"pool": (7,)}, LABELS, 10), batch._replace(**changes)


def step(distiller, student, teacher, images):
    """One batch through both networks and the distiller: its terms."""
    with (
        Tap(student, distiller.student_stages) as taught,
        Tap(teacher, distiller.teacher_stages) as teaches,
    ):
        outputs, lesson = Outputs(*taught(images)), Outputs(*teaches(images))
    index = torch.arange(len(images))  # the lesson comes with its graph, which no method may use
    return distiller(Batch(outputs, lesson, LABELS[index], index, 1))


@pytest.mark.parametrize("network", STUDENTS)
@pytest.mark.parametrize("method", [*METHODS, "kd+crd"])
def test_method(method, network, images, teacher):
    """Finite terms, gradients for the student and the distiller, none for the teacher."""
    torch.manual_seed(0)
    student = STUDENTS[network]()
    if network == "MLP" and method in ("at", "nst", "vid", "ofa", "branches"):
        with pytest.raises(ValueError, match="stages must be maps"):
            create(method, setup_of(student, teacher, images))
        return
    distiller = create(method, setup_of(student, teacher, images))
    terms = step(distiller, student, teacher, images)
    assert list(terms) == {"ce": [], "kd+crd": ["crd", "kd"]}.get(method, [method])
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    if method == "ce":
        return
    torch.stack(tuple(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    gradient = next(student.parameters()).grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_published_weights():
    weights = dict(at=1000, nst=50, sp=3000, rkd=1, pkt=30000, cc=0.02, hint=100, vid=1, crd=0.8)
    maps = {"block": (3, 4, 4), "pool": (3,)}
    for method, weight in weights.items():
        assert create(method, Setup(maps, maps, LABELS, 10)).weight == weight
    _, batch = vectors()
    s, t = batch.student.logits, batch.teacher.logits
    kd = create("kd", vectors()[0])
    close(kd.ce_weight, 0.1, 1e-9)
    close(kd(batch)["kd"].item(), 0.9 * losses.kd(s, t, 4.0).item(), 1e-6)
    close(create("dist", vectors()[0])(batch)["dist"].item(), losses.dist(s, t).item(), 1e-6)


def test_the_other_directions_are_weighted_as_kd():
    p, batch = vectors()
    s, t = batch.student.logits, batch.teacher.logits
    for method, term in (
        ("reverse_kl", losses.reverse_kl(s, t, 4.0)),
        ("jsd", losses.jsd(s, t, 4.0, 0.5)),
    ):
        distiller = create(method, p)
        close(distiller.ce_weight, 0.1, 1e-9)
        close(distiller(batch)[method].item(), 0.9 * term.item(), 1e-6)
    options = {"temperature": 2.0, "beta": 0.2, "alpha": 0.5}
    found = create("jsd", p, **options)(batch)["jsd"].item()
    close(found, 0.5 * losses.jsd(s, t, 2.0, 0.2).item(), 1e-6)
    found = create("reverse_kl", p, temperature=2.0, alpha=1.0)(batch)["reverse_kl"].item()
    close(found, losses.reverse_kl(s, t, 2.0).item(), 1e-6)


def test_dkd_warms_up():
    p, batch = vectors()
    full = losses.dkd(batch.student.logits, batch.teacher.logits, batch.target, 1.0, 2.0, 4.0)
    for epoch, share in ((1, 0.05), (10, 0.5), (20, 1.0), (99, 1.0)):
        term = create("dkd", p, beta=2.0)(batch._replace(epoch=epoch))["dkd"]
        close(term.item(), share * full.item(), 1e-6)
    close(create("dkd", p, beta=2.0, warmup=0)(batch)["dkd"].item(), full.item(), 1e-6)


def test_a_combination_is_a_sum_in_any_order():
    p, batch = vectors()
    built = []
    for name in ("kd+crd", "crd+kd"):
        torch.manual_seed(0)
        built.append(create(name, p, kd=dict(alpha=0.5), crd=dict(weight=2.0, num_negatives=5)))
    terms = []
    for one in built:
        torch.manual_seed(1)
        terms.append(one(batch))
    assert terms[0] == terms[1] and list(terms[0]) == ["crd", "kd"]
    assert terms[0]["kd"] == create("kd", p, alpha=0.5)(batch)["kd"]
    assert built[0].student_stages == built[0].teacher_stages == ("pool",)
    assert built[0].ce_weight is None, "a combination has no published weight"
    assert needs_teacher("ce+kd") and not needs_teacher("ce")


def test_a_new_method_is_one_edit():
    try:

        @register("toy")
        def toy(setup, *, power: float = 1.0, weight: float = 1.0) -> Distiller:
            def loss(batch):
                gap = batch.student.logits - batch.teacher.logits.detach()
                return gap.abs().pow(power).mean()

            return Distiller(loss, weight=weight)

        register("toy")(toy)  # the cell is run again
        p, batch = vectors()
        terms = create("toy+kd", p, toy=dict(weight=3.0))(batch)
        assert list(terms) == ["kd", "toy"] and options_of("toy") == ("power", "weight")
        gap = (batch.student.logits - batch.teacher.logits).abs().mean().item()
        close(terms["toy"].item(), 3 * gap, 1e-6)
    finally:
        del METHODS["toy"]


def test_a_method_of_the_kit_cannot_be_replaced():
    with pytest.raises(ValueError, match="name 'kd' is a method of the kit"):
        register("kd")(lambda setup: Distiller(None))
    assert METHODS["kd"].__module__ == "kdlib.distillers.logits"
    for name in ("kd+mine", "Mine", "", "a b"):
        with pytest.raises(ValueError, match="name must be small letters"):
            register(name)


# Stages


def test_stages_by_name_and_index(images, teacher):
    p = setup_of(ConvNet((4, 6, 8)), teacher, images)
    assert create("at", p).student_stages == ("blocks.0", "blocks.1", "blocks.2")
    assert create("at", p, stage=(0, "blocks.2")).teacher_stages == ("blocks.0", "blocks.2")
    assert create("sp", p).student_stages == ("blocks.2",)
    assert create("rkd", p).student_stages == ("pool",)
    mixed = create("hint", p, stage="blocks.1", teacher_stage=-1)
    assert mixed.student_stages + mixed.teacher_stages == ("blocks.1", "pool")
    terms = step(mixed, ConvNet((4, 6, 8)), teacher, images)  # a map against a vector
    assert terms["hint"].isfinite()


def test_token_maps_keep_their_places():
    tokens = torch.arange(12.0).view(1, 4, 3)  # four tokens of three channels
    assert map_shape((4, 3)) == (3, 2, 2)
    assert as_map(tokens)[0, :, 1, 0].equal(tokens[0, 2])  # row 1, column 0
    assert map_shape((5, 3)) is None and map_shape((7, 1, 1)) is None
    assert as_vector(tokens).equal(tokens.mean(1))


# Methods with state


def test_hint_in_units_of_the_first_batch():
    p, batch = vectors()
    big = batch._replace(
        teacher=batch.teacher._replace(features={"pool": 1000 * batch.teacher.features["pool"]})
    )
    torch.manual_seed(0)
    plain = create("hint", p, stage=-1, normalise=True)
    scaled = copy.deepcopy(plain)
    close(scaled(big)["hint"].item(), plain(batch)["hint"].item(), 1e-5)
    close(plain.loss.scale.item(), batch.teacher.features["pool"].std().item(), 1e-6)
    before = plain.loss.scale.clone()
    plain(big)
    assert plain.loss.scale.equal(before), "the scale moved after the first batch"
    resumed = create("hint", p, stage=-1, normalise=True)
    resumed.load_state_dict(plain.state_dict())
    assert resumed(big)["hint"] == plain(big)["hint"]


def test_vid_trains_its_variance():
    torch.manual_seed(0)
    shapes = {"block": (3, 4, 4)}
    distiller = create("vid", Setup(shapes, shapes, LABELS, 10))
    for parameter in distiller.loss.variances[0]:
        close(F.softplus(parameter).item() + 1e-5, 5.0, 1e-6)
    x = torch.randn(6, 3, 4, 4)
    output = Outputs(torch.randn(6, 10), {"block": x})
    optimizer = torch.optim.SGD(distiller.parameters(), 0.5)
    for _ in range(200):
        loss = distiller(Batch(output, output, LABELS[:6], torch.arange(6), 1))["vid"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (F.softplus(distiller.loss.variances[0]) < 3).all()


def test_dropping_the_bank_gives_info_nce():
    p, batch = vectors()
    torch.manual_seed(0)
    contrast = create("crd", p, bank=False).loss
    assert (contrast.temperature, contrast.student_head.out_features) == (0.1, 64)
    s, t = batch.student.features["pool"], batch.teacher.features["pool"]
    wanted = losses.info_nce(contrast.student_head(s), contrast.teacher_head(t), 0.1)
    close(contrast(batch).item(), wanted.item(), 1e-6)


def test_negatives_of_other_classes_without_the_bank():
    """The classes are the batch's own, which is the joined one under torchrun."""
    p, batch = vectors(target=torch.tensor([3, 3, 1, 0, 1, 3]))
    torch.manual_seed(0)
    contrast = create("crd", p, bank=False, other_classes=True).loss
    s = contrast.student_head(batch.student.features["pool"])
    t = contrast.teacher_head(batch.teacher.features["pool"])
    wanted = losses.info_nce(s, t, 0.1, batch.target)
    close(contrast(batch).item(), wanted.item(), 1e-6)
    assert contrast(batch) < losses.info_nce(s, t, 0.1) - 0.1


def reference_bank(case, x, dtype=torch.float64):
    p = case["params"]
    memory = Bank(
        torch.arange(p["n_data"]),
        p["feat_dim"],
        num_negatives=p["nce_k"],
        temperature=p["nce_t"],
        momentum=p["nce_m"],
    ).to(dtype)
    memory.student, memory.teacher = x["memory_v1"].clone(), x["memory_v2"].clone()
    return memory


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CRD_CASES)
def test_bank_reference(name, precision):
    """The reference runs several steps on one batch; value and gradient are the last one's."""
    case = CRD_CASES[name]
    x, rtol = inputs(case, DTYPES[precision]), RTOL[precision]
    memory = reference_bank(case, x, DTYPES[precision])
    extra = case["expected"][precision]["extra"]
    arguments = x["student_emb"], x["teacher_emb"], x["index"], x["contrast_idx"][:, 1:]
    for wanted in extra["step_losses"]:
        loss = memory(*arguments)
        close(loss.item(), wanted, rtol)
    compare(case, precision, loss, x)
    wanted = case["expected"][precision]["teacher_grad_norm"]["teacher_emb"]
    close(x["teacher_emb"].grad.norm().item(), wanted, rtol)
    for way, z in enumerate(("Z_v1", "Z_v2")):
        close(memory.log_z[way].exp().item(), extra[z], rtol * 10)
    close(memory.student.sum().item(), extra["memory_v1_after_sum"], rtol, rtol * 100)
    close(memory.teacher.sum().item(), extra["memory_v2_after_sum"], rtol, rtol * 100)
    row = memory.student[x["index"][0], :3]
    for found, value in zip(row, extra["memory_v1_after_row0_of_index_first3"]):
        close(found.item(), value, rtol)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", FULL_CASES)
def test_crd_reference(name, precision, monkeypatch):
    """The whole method: projections, unit length, both directions."""
    case, dtype = FULL_CASES[name], DTYPES[precision]
    x, p = inputs(case, dtype), case["params"]
    student, teacher = x["student_feat"], x["teacher_feat"]
    shapes = [{"pool": tuple(f.shape[1:])} for f in (student, teacher)]
    contrast = (
        create(
            "crd",
            Setup(*shapes, torch.arange(p["n_data"]), 10),
            num_negatives=p["nce_k"],
            dim=p["feat_dim"],
            weight=1.0,
        )
        .to(dtype)
        .loss
    )
    for head, side in ((contrast.student_head, "s"), (contrast.teacher_head, "t")):
        head.weight.data, head.bias.data = x["w" + side], x["b" + side]
    contrast.bank = reference_bank(case, x, dtype=dtype)
    monkeypatch.setattr(contrast.bank, "draw", lambda index: x["contrast_idx"][:, 1:])
    outputs = [Outputs(torch.zeros(len(f), 10), {"pool": f}) for f in (student, teacher)]
    loss = contrast(Batch(*outputs, x["index"], x["index"], 1))
    compare(case, precision, loss, x)
    assert teacher.grad is None
    for way, z in enumerate(("Z_v1", "Z_v2")):
        close(
            contrast.bank.log_z[way].exp().item(),
            case["expected"][precision]["extra"][z],
            RTOL[precision] * 10,
        )


def embeddings(seed=0, n=6, dim=8):
    x = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=2)


def test_all_other_classes():
    """Without drawing, the negatives are all samples of other classes, each once."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 1, 0])
    memory = Bank(labels, 8, num_negatives=None, temperature=0.3).double()
    (s, t), index = embeddings(), torch.tensor([3, 0, 9, 4, 5, 2])
    banks = memory.student.clone(), memory.teacher.clone()
    wanted = 0.0
    for v, other in ((s, banks[1]), (t, banks[0])):
        p = (v @ other.T / 0.3).exp()
        p = p / (p.mean() * 10)
        for row, i in zip(p, index):
            negative = row[labels != labels[i]]
            c = len(negative) / 10 + 1e-7
            wanted -= (row[i] / (row[i] + c)).log() + ((c - 1e-7) / (negative + c)).log().sum()
    close(memory(s, t, index).item(), wanted.item() / 6, 1e-6)
    moved = F.normalize(0.5 * banks[0][index] + 0.5 * s)
    assert memory.student[index].allclose(moved)
    rest = torch.ones(10, dtype=torch.bool).index_fill(0, index, False)
    assert memory.student[rest].equal(banks[0][rest]) and memory.teacher[rest].equal(banks[1][rest])


def test_draw():
    """Never the own class, all others equally often, and the same for the same seed."""
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 1, 1, 1])
    memory = Bank(labels, 4, num_negatives=11)
    index = torch.arange(12).repeat(400)
    torch.manual_seed(0)
    drawn = memory.draw(index)
    torch.manual_seed(0)
    assert drawn.shape == (4800, 11) and memory.draw(index).equal(drawn)
    assert (labels[drawn] != labels[index][:, None]).all(), "a negative of the own class"
    for i in range(12):
        count = drawn[index == i].flatten().bincount(minlength=12).double()
        count = count[labels != labels[i]] / count.sum()
        assert (count * len(count) - 1).abs().max() < 0.2


def test_z_is_frozen():
    torch.manual_seed(0)
    memory = Bank(LABELS, 8, num_negatives=5).double()
    memory(*embeddings(), torch.arange(6))
    first = memory.log_z.clone()
    memory(*embeddings(1), torch.arange(6, 12))
    assert memory.log_z.equal(first) and first.isfinite().all()


def test_bank_resumes():
    """The state holds memory and Z; the negatives come from torch's random stream."""
    p, batch = vectors()
    torch.manual_seed(0)
    distiller = create("crd", p, num_negatives=5)
    distiller(batch)
    resumed = create("crd", p, num_negatives=5)
    resumed.load_state_dict(distiller.state_dict())
    terms = []
    for d in (distiller, resumed):
        torch.manual_seed(3)
        terms.append([d(batch)["crd"].item() for _ in range(2)])
    assert terms[0] == terms[1]
    evaluated = distiller.eval().loss.bank.student.clone()
    distiller(batch)
    assert distiller.loss.bank.student.equal(evaluated), "the memory moved in evaluation mode"


# Bad arguments

ERRORS = [
    (
        "kdd",
        {},
        ValueError,
        "method 'kdd' is unknown: use one of at, branches, cc, ce, crd, dist, dkd, ",
    ),
    ("kd+kdd", {}, ValueError, "method 'kdd' is unknown"),
    ("kd+kd", {}, ValueError, "names a part twice"),
    (
        "kd",
        {"temprature": 2.0},
        TypeError,
        "has no option 'temprature': its options are temperature, alpha",
    ),
    ("ce", {"weight": 1}, TypeError, "'ce' has no option 'weight': it has none"),
    ("at", {"gamma": 1}, TypeError, "its options are stage, teacher_stage, variant, weight"),
    ("kd+crd", {"weight": 1}, TypeError, "go by part: crd=dict(...), kd=dict(...); got weight"),
    ("kd", {"alpha": 1.5}, ValueError, "alpha must be a finite number of at least 0 and at most 1"),
    ("jsd", {"beta": 1.0}, ValueError, "beta must be a finite number above 0 and below 1, got 1"),
    ("jsd", {"beta": 0.0}, ValueError, "beta must be a finite number above 0 and below 1, got 0"),
    ("reverse_kl", {"beta": 0.5}, TypeError, "its options are temperature, alpha"),
    ("rkd", {"stage": "blocks.7"}, ValueError, "student: unknown stage 'blocks.7'"),
    ("rkd", {"teacher_stage": 9}, ValueError, "teacher: unknown stage 9"),
    (
        "at",
        {"teacher_stage": (0, 1)},
        ValueError,
        "student has 3 (blocks.0, blocks.1, blocks.2) "
        "and the teacher 2 (blocks.0, blocks.1): choose equally many",
    ),
    (
        "nst",
        {"stage": "pool"},
        ValueError,
        "stages must be maps (C, H, W) or tokens (N, D) of a square grid, but the student has",
    ),
    ("crd", {"stage": (0, 1)}, ValueError, "stage must be one stage, got blocks.0, blocks.1"),
    ("crd", {"bank": False, "num_negatives": 5}, ValueError, "belong to the bank"),
    ("crd", {"other_classes": True}, ValueError, "other_classes belongs to bank=False: leave it"),
    ("crd", {"bank": False, "other_classes": 1}, TypeError, "other_classes must be"),
    ("crd", {"num_negatives": 0}, ValueError, "num_negatives must be a whole number of at least 1"),
    ("vid", {"variance": 0.0}, ValueError, "variance must be a finite number above 1e-05"),
    ("dkd", {"warmup": 0.5}, TypeError, "warmup must be a whole number"),
    ("at", {"variant": "mine"}, ValueError, "variant must be one of official, paper"),
]


@pytest.mark.parametrize("method, options, error, message", ERRORS)
def test_bad_argument(method, options, error, message, images, teacher):
    with pytest.raises(error) as caught:
        create(method, setup_of(ConvNet((4, 6, 8)), teacher, images), **options)
    assert message in str(caught.value)


FREE = {"stage", "teacher_stage", "variant", "bank", "other_classes", "normalise"}  # no numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, "1"], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_no_number_out_of_range_passes(method, bad, images, teacher):
    """Every numeric option of every method, found in its signature."""
    for option in set(options_of(method)) - FREE:
        with pytest.raises((ValueError, TypeError), match=f"method '{method}': .*{option}"):
            create(method, setup_of(ConvNet((4, 6, 8)), teacher, images), **{option: bad})


def test_missing_parts(images, teacher):
    student = ConvNet((4, 6, 8))
    for method in METHODS:
        if needs_teacher(method):
            with pytest.raises(ValueError, match=f"method '{method}': teacher is missing"):
                create(method, setup_of(student, None, images))
    with pytest.raises(ValueError, match="labels must be of two classes or more"):
        create("crd", setup_of(student, teacher, images, torch.zeros(40, dtype=torch.int64)))
    with pytest.raises(ValueError, match="teacher names no stages: set teacher.stages"):
        create("rkd", setup_of(student, teacher, images)._replace(teacher={}))
    assert all(inspect.signature(METHODS[name]).return_annotation for name in METHODS)
