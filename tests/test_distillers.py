"""The registry, every method on every kind of network, the memory bank against its reference."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, GOLDEN, RTOL, close, compare, inputs, killed, mutant

from kdlib import bank, distillers, losses
from kdlib.distillers import METHODS, Batch, Distiller, Outputs, Probe, create, register
from kdlib.models import MLP, ConvNet, Mixer, Tap, ViT, stage_shapes

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


def probe(student, teacher, images, labels=LABELS):
    shapes = None if teacher is None else stage_shapes(teacher, images)
    return Probe(stage_shapes(student, images), shapes, labels, 10, 40)


def vectors(**changes):
    """Probe of two networks whose only stage is a vector, and a batch of six for it."""
    g = torch.Generator().manual_seed(2)
    s, t = torch.randn(6, 5, generator=g), torch.randn(6, 7, generator=g)
    logits = torch.randn(2, 6, 10, generator=g)
    batch = Batch(Outputs(logits[0], {"pool": s}), Outputs(logits[1], {"pool": t}), LABELS[:6],
                  None, torch.arange(6), 1)
    return Probe({"pool": (5,)}, {"pool": (7,)}, LABELS, 10, 40), batch._replace(**changes)


def step(distiller, student, teacher, images):
    """One batch through both networks and the distiller: its terms."""
    with Tap(student, distiller.student_stages) as taught:
        outputs = Outputs(*taught(images))
    teaching = None
    if distiller.needs_teacher:
        with Tap(teacher, distiller.teacher_stages) as teaches:
            teaching = Outputs(*teaches(images))  # with its graph, which no method may use
    index = torch.arange(len(images))
    return distiller(Batch(outputs, teaching, LABELS[index], None, index, 1))


@pytest.mark.parametrize("network", STUDENTS)
@pytest.mark.parametrize("method", [*METHODS, "kd+crd"])
def test_method(method, network, images, teacher):
    """Finite terms, gradients for all of the student's path and the distiller, none for teacher."""
    torch.manual_seed(0)
    student = STUDENTS[network]()
    if network == "MLP" and method in ("at", "nst", "vid"):
        with pytest.raises(ValueError, match="needs stages that are maps"):
            create(method, probe(student, teacher, images))
        return
    distiller = create(method, probe(student, teacher, images))
    terms = step(distiller, student, teacher, images)
    assert list(terms) == {"ce": ["ce"], "kd+crd": ["ce", "kd", "crd"]}.get(method, ["ce", method])
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    torch.stack(tuple(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert next(student.parameters()).grad.isfinite().all()


@pytest.mark.parametrize("method", ["hint", "crd", "cc", "rkd", "pkt", "sp"])
def test_student_moves_by_the_method_alone(method, images, teacher):
    torch.manual_seed(0)
    student = STUDENTS["ConvNet"]()
    distiller = create(method, probe(student, teacher, images), ce_weight=0.0)
    terms = step(distiller, student, teacher, images)
    assert list(terms) == [method]
    terms[method].backward()
    assert next(student.parameters()).grad.abs().sum() > 0


def test_published_weights():
    weights = dict(at=1000, nst=50, sp=3000, rkd=1, pkt=30000, cc=0.02, hint=100, vid=1, crd=0.8)
    maps = {"block": (3, 4, 4), "pool": (3,)}
    for method, weight in weights.items():
        assert create(method, Probe(maps, maps, LABELS, 10, 40)).weight == weight
    _, batch = vectors()
    s, t = batch.student.logits, batch.teacher.logits
    kd = create("kd", vectors()[0])(batch)
    close(kd["ce"].item(), 0.1 * F.cross_entropy(s, LABELS[:6]).item(), 1e-6)
    close(kd["kd"].item(), 0.9 * losses.kd(s, t, 4.0).item(), 1e-6)
    close(create("dist", vectors()[0])(batch)["dist"].item(), losses.dist(s, t).item(), 1e-6)


def test_dkd_warms_up():
    p, batch = vectors()
    full = losses.dkd(batch.student.logits, batch.teacher.logits, batch.target, 1.0, 2.0, 4.0)
    for epoch, share in ((1, 0.05), (10, 0.5), (20, 1.0), (99, 1.0)):
        term = create("dkd", p, beta=2.0)(batch._replace(epoch=epoch))["dkd"]
        close(term.item(), share * full.item(), 1e-6)
    close(create("dkd", p, beta=2.0, warmup=0)(batch)["dkd"].item(), full.item(), 1e-6)


def test_soft_target_replaces_the_label_in_the_cross_entropy():
    p, batch = vectors()
    soft = torch.full((6, 10), 0.1)
    found = create("ce", p, ce_weight=2.0)(batch._replace(target=None, soft_target=soft))["ce"]
    close(found.item(), 2 * F.cross_entropy(batch.student.logits, soft).item(), 1e-6)


def test_no_labels_are_needed_without_cross_entropy():
    p, batch = vectors(target=None)
    assert list(create("kd", p, alpha=1.0)(batch)) == ["kd"]
    with pytest.raises(ValueError, match="target is missing"):
        create("kd", p)(batch)


def test_combination():
    """Terms of all parts, the cross-entropy of the first, stages of both."""
    p, batch = vectors()
    torch.manual_seed(0)
    both = create("kd+rkd", p, kd=dict(alpha=0.5), rkd=dict(weight=2.0))
    terms = both(batch)
    assert terms == create("kd", p, alpha=0.5)(batch) | create("rkd", p, weight=2.0).terms(batch)
    assert both.student_stages == both.teacher_stages == ("pool",) and both.needs_teacher
    assert not create("ce", p._replace(teacher=None)).needs_teacher


def test_a_new_method_is_one_edit():
    try:
        @register("toy")
        class Toy(Distiller):
            def loss(self, batch):
                return (batch.student.logits - batch.teacher.logits).abs().mean()

        p, batch = vectors()
        terms = create("toy+kd", p, toy=dict(weight=3.0))(batch)
        assert list(terms) == ["ce", "toy", "kd"]
        gap = (batch.student.logits - batch.teacher.logits).abs().mean().item()
        close(terms["toy"].item(), 3 * gap, 1e-6)
    finally:
        del METHODS["toy"]


# Stages


def test_stages_by_name_and_index(images, teacher):
    p = probe(ConvNet((4, 6, 8)), teacher, images)
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
    assert distillers.map_shape((4, 3)) == (3, 2, 2)
    assert distillers.as_map(tokens)[0, :, 1, 0].equal(tokens[0, 2])  # row 1, column 0
    assert distillers.map_shape((5, 3)) is None and distillers.map_shape((7, 1, 1)) is None
    assert distillers.as_vector(tokens).equal(tokens.mean(1))


# Methods with state


def test_hint_in_units_of_the_first_batch():
    p, batch = vectors()
    big = batch._replace(teacher=batch.teacher._replace(
        features={"pool": 1000 * batch.teacher.features["pool"]}))
    torch.manual_seed(0)
    plain = create("hint", p, stage=-1, normalise=True)
    scaled = copy.deepcopy(plain)
    close(scaled(big)["hint"].item(), plain(batch)["hint"].item(), 1e-5)
    close(plain.scale.item(), batch.teacher.features["pool"].std().item(), 1e-6)
    before = plain.scale.clone()
    plain(big)
    assert plain.scale.equal(before), "the scale moved after the first batch"
    resumed = create("hint", p, stage=-1, normalise=True)
    resumed.load_state_dict(plain.state_dict())
    assert resumed(big)["hint"] == plain(big)["hint"]


def test_vid_trains_its_variance():
    torch.manual_seed(0)
    shapes = {"block": (3, 4, 4)}
    distiller = create("vid", Probe(shapes, shapes, LABELS, 10, 40))
    for parameter in distiller.variances[0]:
        close(F.softplus(parameter).item() + 1e-5, 5.0, 1e-6)
    x = torch.randn(6, 3, 4, 4)
    output = Outputs(torch.randn(6, 10), {"block": x})
    optimizer = torch.optim.SGD(distiller.parameters(), 0.5)
    for _ in range(200):
        loss = distiller(Batch(output, output, LABELS[:6], None, torch.arange(6), 1))["vid"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (F.softplus(distiller.variances[0]) < 3).all()


def test_dropping_the_bank_gives_info_nce():
    p, batch = vectors()
    torch.manual_seed(0)
    distiller = create("crd", p, bank=False)
    assert (distiller.temperature, distiller.student_head.out_features) == (0.1, 64)
    s, t = batch.student.features["pool"], batch.teacher.features["pool"]
    wanted = losses.info_nce(distiller.student_head(s), distiller.teacher_head(t), 0.1)
    close(distiller(batch)["crd"].item(), wanted.item(), 1e-6)


def reference_bank(case, x, m=bank, dtype=torch.float64):
    p = case["params"]
    memory = m.Bank(torch.arange(p["n_data"]), p["feat_dim"], num_negatives=p["nce_k"],
                    temperature=p["nce_t"], momentum=p["nce_m"]).to(dtype)
    memory.student, memory.teacher = x["memory_v1"].clone(), x["memory_v2"].clone()
    return memory


def check_bank_reference(m, case, precision="float64"):
    """The reference runs several steps on one batch; value and gradient are the last one's."""
    x = inputs(case, DTYPES[precision])
    memory, rtol = reference_bank(case, x, m, DTYPES[precision]), RTOL[precision]
    extra, arguments = case["expected"][precision]["extra"], (x["student_emb"], x["teacher_emb"],
                                                              x["index"], x["contrast_idx"][:, 1:])
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
@pytest.mark.parametrize("name", CRD_CASES)
def test_bank_reference(name, precision):
    check_bank_reference(bank, CRD_CASES[name], precision)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", FULL_CASES)
def test_crd_reference(name, precision, monkeypatch):
    """The whole method: projections, unit length, both directions."""
    case, dtype = FULL_CASES[name], DTYPES[precision]
    x, p = inputs(case, dtype), case["params"]
    student, teacher = x["student_feat"], x["teacher_feat"]
    shapes = [{"pool": tuple(f.shape[1:])} for f in (student, teacher)]
    distiller = create("crd", Probe(*shapes, torch.arange(p["n_data"]), 10, p["n_data"]),
                       num_negatives=p["nce_k"], dim=p["feat_dim"], weight=1.0).to(dtype)
    for head, side in ((distiller.student_head, "s"), (distiller.teacher_head, "t")):
        head.weight.data, head.bias.data = x["w" + side], x["b" + side]
    distiller.bank = reference_bank(case, x, dtype=dtype)
    monkeypatch.setattr(distiller.bank, "draw", lambda index: x["contrast_idx"][:, 1:])
    outputs = [Outputs(torch.zeros(len(f), 10), {"pool": f}) for f in (student, teacher)]
    loss = distiller.loss(Batch(*outputs, None, None, x["index"], 1))
    compare(case, precision, loss, x)
    assert teacher.grad is None
    for way, z in enumerate(("Z_v1", "Z_v2")):
        close(distiller.bank.log_z[way].exp().item(), case["expected"][precision]["extra"][z],
              RTOL[precision] * 10)


def embeddings(seed=0, n=6, dim=8):
    x = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=2)


def check_all_other_classes(m):
    """Without drawing, the negatives are all samples of other classes, each once."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 1, 0])
    memory = m.Bank(labels, 8, num_negatives=None, temperature=0.3).double()
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


def check_draw(m):
    """Never the own class, all others equally often, and the same for the same seed."""
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 1, 1, 1])
    memory = m.Bank(labels, 4, num_negatives=11)
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


def check_z_is_frozen(m):
    torch.manual_seed(0)
    memory = m.Bank(LABELS, 8, num_negatives=5).double()
    memory(*embeddings(), torch.arange(6))
    first = memory.log_z.clone()
    memory(*embeddings(1), torch.arange(6, 12))
    assert memory.log_z.equal(first) and first.isfinite().all()


BANK_CHECKS = [check_all_other_classes, check_draw, check_z_is_frozen]
BANK_CHECKS += [lambda m, case=case: check_bank_reference(m, case) for case in CRD_CASES.values()]


@pytest.mark.parametrize("check", BANK_CHECKS[:3])
def test_bank(check):
    check(bank)


BANK_MUTANTS = {
    "own class not excluded": ("[:, None] != self.labels", "[:, None] != self.labels + 99"),
    "own class drawn": ("place + size * (place >= start)", "place"),
    "own class drawn at times": ("(place >= start)", "(place > start)"),
    "one direction": ("((student, self.teacher), (teacher, self.student))",
                      "((student, self.teacher),)"),
    "own memory instead of the other's": ("((student, self.teacher), (teacher, self.student))",
                                          "((student, self.student), (teacher, self.teacher))"),
    "memories mixed up": ("self._moved(self.student, student", "self._moved(self.student, teacher"),
    "momentum the wrong way": ("self.momentum * memory[index] + (1 - self.momentum) * new",
                               "(1 - self.momentum) * memory[index] + self.momentum * new"),
    "memory not of unit length": ("F.normalize(mixed)", "mixed"),
    "memory never moves": ("if self.training:", "if not self.training:"),
    "Z of every batch": ("torch.where(self.log_z[way].isnan(), measured, self.log_z[way])",
                         "measured"),
    "Z without n": ("math.log(len(self.labels) / scores.numel())", "math.log(1 / scores.numel())"),
    "positive left out of Z": ("torch.cat([positive, negative], 1)", "negative"),
    "multiplied by T": ("@ memory.T / self", "@ memory.T * self"),
}


@pytest.mark.parametrize("what", BANK_MUTANTS)
def test_wrong_bank_is_noticed(what, tmp_path):
    wrong = mutant(Path(bank.__file__), *BANK_MUTANTS[what], tmp_path)
    assert killed(BANK_CHECKS, wrong), what


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
    evaluated = distiller.eval().bank.student.clone()
    distiller(batch)
    assert distiller.bank.student.equal(evaluated), "the memory moved in evaluation mode"


def test_bank_without_labels_contrasts_samples():
    p, batch = vectors()
    assert create("crd", p._replace(labels=None))(batch)["crd"].isfinite()


# Bad arguments

ERRORS = [
    ("kdd", {}, ValueError, "method 'kdd' is unknown; known: at, cc, ce, crd, dist, dkd, hint, kd"),
    ("kd+kdd", {}, ValueError, "method 'kdd' is unknown"),
    ("kd+kd", {}, ValueError, "names a part twice"),
    ("kd", {"temprature": 2.0}, TypeError, "has no option 'temprature'; it has temperature, alpha"),
    ("at", {"gamma": 1}, TypeError, "'at' has no option 'gamma'; it has stage, teacher_stage, "),
    ("cc", {"gama": 1}, TypeError, "weight, ce_weight, variant, gamma, order"),
    ("kd+crd", {"weight": 1}, TypeError, "go by part: kd=dict(...), crd=dict(...); got weight"),
    ("kd", {"alpha": 1.5}, ValueError, "alpha is 1.5; it must lie in 0 to 1"),
    ("dist", {"weight": -1.0}, ValueError, "weight is -1.0; it must be 0 or a positive number"),
    ("rkd", {"ce_weight": math.nan}, ValueError, "ce_weight is nan"),
    ("rkd", {"stage": "blocks.7"}, ValueError, "student: unknown stage 'blocks.7'; known"),
    ("rkd", {"teacher_stage": 9}, ValueError, "teacher: unknown stage 9; known"),
    ("at", {"teacher_stage": (0, 1)}, ValueError, "student has 3 (blocks.0, blocks.1, blocks.2) "
     "and the teacher 2 (blocks.0, blocks.1); choose equally many"),
    ("nst", {"stage": "pool"}, ValueError, "needs stages that are maps (C, H, W); the student has"),
    ("crd", {"stage": (0, 1)}, ValueError, "method 'crd' takes one stage, got blocks.0, blocks.1"),
    ("crd", {"temperature": 0.0}, ValueError, "temperature is 0.0; it must be a positive number"),
    ("crd", {"momentum": 1.0}, ValueError, "momentum is 1.0; it must be at least 0 and below 1"),
    ("crd", {"num_negatives": 0}, ValueError, "num_negatives is 0; it must be at least 1, or None"),
    ("vid", {"variance": 0.0}, ValueError, "variance is 0.0; it must be above 1e-5"),
]


@pytest.mark.parametrize("method, options, error, message", ERRORS)
def test_bad_argument(method, options, error, message, images, teacher):
    with pytest.raises(error) as caught:
        create(method, probe(ConvNet((4, 6, 8)), teacher, images), **options)
    assert message in str(caught.value)


def test_missing_parts(images, teacher):
    student = ConvNet((4, 6, 8))
    for method in ("kd", "kd+crd"):
        with pytest.raises(ValueError, match="teacher is missing: method 'kd' needs one"):
            create(method, probe(student, None, images))
    with pytest.raises(ValueError, match="labels are of one class"):
        create("crd", probe(student, teacher, images, torch.zeros(40, dtype=torch.int64)))
    with pytest.raises(ValueError, match="teacher declares no stages; set teacher.stages"):
        create("rkd", probe(student, teacher, images)._replace(teacher={}))
