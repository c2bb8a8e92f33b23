"""OFA-KD: branches on every kind of stage, the total against the official one, what is deployed."""

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, GOLDEN, compare, inputs
from torch import nn

from kdlib import losses, training
from kdlib.data import Split
from kdlib.distillers import Batch, Outputs, Setup, create
from kdlib.models import ConvNet, Mixer, ViT
from kdlib.stages import Tap, stage_shapes

TOTALS = {case["id"]: case for case in GOLDEN["cases"] if case["loss"] == "ofa_total"}
LABELS = torch.arange(40) % 10
NETWORKS = {
    "CNN": lambda: ConvNet((4, 6, 8, 8)),
    "ViT": lambda: ViT(16, 4, patch=7),
    "Mixer": lambda: Mixer(16, 4, patch=7),
    "ViT, odd grid": lambda: ViT(16, 4, patch=4),
}


def images(count=6):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def setup_of(student, labels=LABELS):
    return Setup(stage_shapes(student, images()), {"pool": (7,)}, labels, 10)


def batch_of(student, distiller):
    with Tap(student, distiller.student_stages) as tap:
        outputs = Outputs(*tap(images()))
    lesson = Outputs(torch.randn(6, 10, generator=torch.Generator().manual_seed(1)), {})
    return Batch(outputs, lesson, LABELS[:6], torch.arange(6), 1)


class Spoken(nn.Module):
    """Branches whose logits are given."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, batch):
        return self.answers


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", TOTALS)
def test_total_is_the_official_one(name, precision):
    case, p = TOTALS[name], TOTALS[name]["params"]
    x = inputs(case, DTYPES[precision])
    maps = {f"stage{i}": (2, 4, 4) for i in (1, 2, 3, 4)}
    setup = Setup(maps, {"pool": (3,)}, x["target"], x["student_logits"].shape[1])
    share = p["ofa_loss_weight"] / p["kd_loss_weight"]
    options = dict(gamma=p["eps_per_stage_then_logits"], branch_weight=share)
    distiller = create("ofa", setup, weight=p["kd_loss_weight"], **options)
    distiller.loss.branches = Spoken([x[f"{stage}_logits"] for stage in maps])
    lesson, index = Outputs(x["teacher_logits"], {}), torch.arange(len(x["target"]))
    batch = Batch(Outputs(x["student_logits"], {}), lesson, x["target"], index, 1)
    ce = p["gt_loss_weight"] * F.cross_entropy(x["student_logits"], x["target"])
    compare(case, precision, distiller(batch)["ofa"] + ce, x)
    assert x["teacher_logits"].grad is None


@pytest.mark.parametrize("name", NETWORKS)
def test_branches_speak_the_classes_and_reach_their_stages(name):
    torch.manual_seed(0)
    student = NETWORKS[name]()
    distiller = create("ofa", setup_of(student))
    assert distiller.student_stages == student.stages[:4] and distiller.teacher_stages == ()
    batch = batch_of(student, distiller)
    answers = distiller.loss.branches(batch)
    assert [tuple(one.shape) for one in answers] == [(6, 10)] * 4
    for stage, answer in enumerate(answers):
        student.zero_grad()
        answer.logsumexp(1).sum().backward(retain_graph=True)
        reached = [block.weight.grad is not None for block in weights(student)]
        assert reached == [i <= stage for i in range(4)], "a branch reads its own stage"


def weights(student):
    """A weight matrix of each block."""
    return [next(m for m in b.modules() if isinstance(m, nn.Conv2d | nn.Linear)) for b in
            student.blocks]  # fmt: skip


def test_patch_merging_joins_neighbours():
    """Each merged token sees its own four tokens, and no other."""
    torch.manual_seed(0)
    student = NETWORKS["ViT"]()
    branch = create("ofa", setup_of(student), stage=0).loss.branches.heads[0].eval()
    seen: list[torch.Tensor] = []
    branch.merge.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tokens = torch.arange(16.0)[None, :, None].expand(1, 16, 16)
    branch(tokens)
    quads = seen[0][0].unflatten(1, (4, 16))[..., 0]
    assert quads.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_temperature_keeps_the_weight_and_no_branch_leaves_the_logits():
    student = NETWORKS["CNN"]()
    distiller = create("ofa", setup_of(student), stage=(), temperature=3.0, gamma=1.4, weight=2.0)
    batch = batch_of(student, distiller)
    alone = losses.ofa(batch.student.logits, batch.teacher.logits, batch.target, 1.4, 3.0)
    assert distiller(batch)["ofa"].item() == pytest.approx(2 * 9 * alone.item(), rel=1e-6)
    assert not list(distiller.parameters())


def test_branches_alone_learn_from_labels():
    torch.manual_seed(0)
    student = NETWORKS["Mixer"]()
    distiller = create("branches", setup_of(student)._replace(teacher=None), weight=0.5)
    batch = batch_of(student, distiller)
    answers = distiller.loss.branches(batch)
    wanted = 0.5 * sum(F.cross_entropy(one, batch.target) for one in answers).item()
    assert distiller(batch)["branches"].item() == pytest.approx(wanted, rel=1e-6)
    same = create("ofa", setup_of(student))
    count = [sum(p.numel() for p in one.parameters()) for one in (distiller, same)]
    assert count[0] == count[1], "the control has the heads of the method"


def test_the_deployed_student_is_the_plain_one(tmp_path):
    train = Split(images(40), LABELS)
    student = training.build(NETWORKS["ViT"], 0)
    plain = {name: value.shape for name, value in student.state_dict().items()}
    fitted = training.fit(
        student, train, method="ofa", teacher=NETWORKS["CNN"](), epochs=1, batch_size=20,
        progress=False,
    )  # fmt: skip
    assert {name: value.shape for name, value in student.state_dict().items()} == plain
    state = tmp_path / "branches.pt"
    torch.save(fitted.distiller.state_dict(), state)
    again = create("ofa", setup_of(student))
    batch = batch_of(student, again)
    fitted.distiller.eval()
    assert again.eval()(batch)["ofa"] != fitted.distiller(batch)["ofa"]
    again.load_state_dict(torch.load(state, weights_only=True))
    assert again(batch)["ofa"] == fitted.distiller(batch)["ofa"]


CLASS_TOKEN = {"blocks.0": (17, 8), "blocks.1": (17, 8), "pool": (8,)}


@pytest.mark.parametrize("method", ["ofa", "branches"])
@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (CLASS_TOKEN, {}, r"tokens \(N, D\) of a square grid, but the student has blocks.0 \(17"),
        (CLASS_TOKEN, {"stage": "blocks.0"}, "of a square grid"),
        ({"blocks.0": (4, 7, 7)}, {"stage": "blocks.5"}, "student: unknown stage 'blocks.5'"),
        ({"pool": (8,)}, {"stage": "pool"}, "stages must be maps"),
        ({}, {}, "student names no stages"),
        ({"blocks.0": (4, 7, 7)}, {"width": 0}, "width must be a whole number"),
    ],
)
def test_stages_without_a_branch_are_refused(method, shapes, options, message):
    with pytest.raises(ValueError, match=message):
        create(method, Setup(shapes, {"pool": (3,)}, LABELS, 10), **options)


def test_bad_options():
    setup = setup_of(NETWORKS["CNN"]())
    with pytest.raises(ValueError, match="4 for the branches and one for the final logits, got 2"):
        create("ofa", setup, gamma=(1.0, 1.5))
    with pytest.raises(ValueError, match="gamma must be a finite number above 0"):
        create("ofa", setup, gamma=(1.0, 1.0, 0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="stage must name at least one stage"):
        create("branches", setup, stage=())
    with pytest.raises(TypeError, match="has no option 'teacher_stage'"):
        create("ofa", setup, teacher_stage=0)
