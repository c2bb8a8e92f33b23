"""Objectives against reference values of the authors' code and against exact enumeration."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path

import bad
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import close
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.testing import assert_close

from kdlib.language import GPT, divergence, generate, minillm, objectives
from kdlib.language.minillm import MiniLLM, advantages
from kdlib.language.objectives import Distillation, Tally, joined, log_probs
from kdlib.language.tokenizers import Batch
from kdlib.training import build

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/objectives.json").read_text("utf-8"))
RTOL = 2e-5  # the reference values were computed in float32


class Table(nn.Module):
    """The smallest language model: the logits of a token depend on the one before, [V, V]."""

    context = 99

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def new_cache(self, batch: int, room: int) -> None:
        return None

    def forward(self, tokens: Tensor, *, cache: None = None, padding: int | None = 0) -> Tensor:
        self.read = self.logits[tokens]
        if self.read.requires_grad:
            self.read.retain_grad()
        return self.read


def made(recipe: dict) -> Tensor:
    rng = np.random.default_rng(recipe["seed"])
    array = (rng.standard_normal(recipe["shape"]) * recipe["scale"]).astype(np.float32)
    return torch.from_numpy(array).double() + recipe.get("shift", 0)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def near(found: Tensor, wanted: list, mask: Tensor | bool = True) -> None:
    wanted = torch.tensor(wanted, dtype=torch.float64)
    mask = torch.as_tensor(mask).expand_as(wanted)
    assert_close(found.detach().double()[mask], wanted[mask], rtol=RTOL, atol=1e-6)


# Reference values


def official(case: dict, **options) -> tuple[MiniLLM, Table, objectives.Answers]:
    """The objective of a case, its student, and the answers, without padding behind the first."""
    inputs, params = GOLDEN["rollout"], case["params"]
    prompts, answers = (torch.tensor(inputs[n]) for n in ("query_ids", "mixed_response_ids"))
    mask = torch.tensor(case["out"]["mask"]).bool()
    student = Table(made(inputs["student_table"]))
    given = {
        "teacher_mix": params["alpha"], "gamma": params["gamma"], "lm": 0.0,
        "temperature": params["temperature"], "single_step": params["single_step_reg"],
    }  # fmt: skip
    teacher = Table(made(inputs["teacher_table"]))
    objective = MiniLLM(student, teacher, **(minillm.PRESETS["official"] | given | options))
    assert objective.clip_ratio == params["cliprange"] or "clip_ratio" in options
    return objective, student, joined(prompts, answers, mask)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_the_official_preset_is_the_official_code(case: dict):
    objective, student, answers = official(case)
    rollout, wanted, mask = objective.judge(answers), case["out"], answers.mask[:, 3:]
    near(rollout.old[:, 3:], wanted["old_logprobs"], mask)
    near(rollout.rewards[:, 3:], wanted["rewards"])
    near(rollout.weights[:, 3:], wanted["w"])
    options = {"own": True, "gamma": case["params"]["gamma"], "form": "padded"}
    near(
        advantages(rollout.rewards, answers.mask, **options)[:, 3:],
        wanted["advantages"],
        mask,
    )
    student.logits.data += made(GOLDEN["rollout"]["student_delta"])
    terms = objective(rollout)
    sum(terms.values()).backward()
    close(terms["long"].item(), wanted["pg_loss"], RTOL)
    assert ("single" in terms) == case["params"]["single_step_reg"]
    if "single" in terms:
        close(terms["single"].item(), wanted["reg_loss"], RTOL)
    close(sum(terms.values()).item(), wanted["loss"], RTOL)
    close(student.read.grad.norm().item(), wanted["grad_norm_wrt_logits"], RTOL)


CHANGED = (  # reward_scale does not show: whitening undoes it
    {"own_reward": False}, {"gamma": 0.5}, {"weighted_step": True},
    {"weighted_clip": False}, {"advantage": "whitened"}, {"length_normalise": False},
    {"clip_ratio": None}, {"teacher_mix": 0.5}, {"mean": "answers"}, {"reward_clip": 2.0},
    {"long_term": False}, {"single_step": False}, {"weights": "answer"}, {"temperature": 2.0},
)  # fmt: skip


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_every_flag_of_the_official_preset_shows_in_the_loss(changed: dict):
    case = GOLDEN["cases"][0]
    objective, student, answers = official(case, **changed)
    rollout = objective.judge(answers)
    student.logits.data += made(GOLDEN["rollout"]["student_delta"])
    with pytest.raises(AssertionError, match="instead of"):
        close(sum(objective(rollout).values()).item(), case["out"]["loss"], RTOL)


def test_the_text_term_is_the_official_one_less_the_entropy_of_the_teacher():
    case = GOLDEN["text"]
    student, teacher = (Table(made(case["inputs"][f"{n}_table"])) for n in ("student", "teacher"))
    tokens, label = (torch.tensor(case["inputs"][name]) for name in ("input_ids", "label"))
    text = Batch(tokens, label.clamp(min=0), label != -100)
    share = case["params"]["kd_ratio"]
    objective = MiniLLM(student, teacher, single_step=False, long_term=False, lm=1, lm_kd=share)
    value = objective(objective.judge(text, text=text))["lm"]
    value.backward()
    p = Categorical(logits=teacher.logits[tokens][text.mask])
    close(value.item() + share * p.entropy().mean().item(), case["out"]["loss"], RTOL)
    close(student.read.grad.norm().item(), case["out"]["grad_norm"], 2e-4)


def test_a_share_of_likelihood_is_the_official_baseline():
    case = GOLDEN["distillation"]
    logits = {name: made(case["inputs"][name]) for name in ("student", "teacher")}
    label = torch.tensor(case["inputs"]["label"])
    # a table that is read at its own rows gives exactly these logits
    student, teacher = (Table(x.flatten(0, 1)) for x in logits.values())
    batch = Batch(torch.arange(12).view(2, 6), label.clamp(min=0), label != -100)
    terms = Distillation(student, teacher, nll=0.5)(batch)
    sum(terms.values()).backward()
    close(terms["nll"].item(), 0.5 * case["out"]["lm_loss"], RTOL)
    wanted = 0.5 * (case["out"]["distil_loss"] - case["teacher_entropy"])
    close(terms["divergence"].item(), wanted, RTOL)
    close(student.read.grad.norm().item(), case["out"]["grad_norm"], 2e-4)


def test_returns_are_those_of_the_official_code_and_of_trl():
    case = GOLDEN["returns"]
    mask = torch.tensor(case["inputs"]["mask"]).bool()
    rewards, given = made(case["inputs"]["rewards"]), {"own": True, "gamma": 0.95}
    near(advantages(rewards, mask, **given), case["out"]["R_norm"])
    wanted = case["out"]["whitened_population_var"]
    near(advantages(rewards, mask, form="padded", **given), wanted, mask)
    case = GOLDEN["trl_returns"]
    mask = torch.tensor(case["inputs"]["mask"]).bool()
    p, q = (-made(case["inputs"][f"{n}_logp"]).abs() for n in ("teacher", "student"))
    near(
        advantages(p - q, mask, own=True, length_normalise=False),
        case["out"]["advantage"],
    )


def test_the_surrogate_is_the_official_one():
    case = GOLDEN["surrogate"]
    x = {name: made(recipe) for name, recipe in case["inputs"].items() if name != "mask"}
    mask = torch.tensor(case["inputs"]["mask"]).bool()
    new = x["logprobs"].requires_grad_()
    weights = x["w"].exp().clamp(max=1.25)
    values = minillm.surrogate(new, x["old_logprobs"], x["advantages"], weights, weighted_clip=True)
    loss = values[mask].sum() / mask.sum()
    loss.backward()
    close(loss.item(), case["out"]["loss"], RTOL)
    near(new.grad, case["out"]["grad"])


# The gradient, over all answers of a small language

SIZE, LENGTH, END = 4, 3, 1
PURE = {"length_normalise": False, "reward_clip": None, "advantage": "return", "lm": 0}
PURE |= {"mean": "answers"}


def everything() -> list[Batch]:
    """A batch for every answer to the prompt [2] that can be drawn, cut at LENGTH."""
    found = set()
    for answer in itertools.product(range(SIZE), repeat=LENGTH):
        found.add(answer[: answer.index(END) + 1] if END in answer else answer)
    assert len(found) == 1 + 3 + 9 * 4
    answers = map(torch.tensor, sorted(found))
    return [joined(torch.tensor([[2]]), y[None], torch.ones(1, len(y)).bool()) for y in answers]


EVERYTHING = everything()


def tables() -> tuple[Table, Table]:
    return Table(randn(SIZE, SIZE)), Table(1.5 * randn(SIZE, SIZE, seed=1))


def exact_gradient() -> Tensor:
    """∇ Σ_y q(y) (log q(y) − log p(y))."""
    kl, networks = torch.zeros((), dtype=torch.float64), tables()
    for batch in EVERYTHING:
        log_q, log_p = (log_probs(one(batch.tokens), batch.targets).sum() for one in networks)
        kl = kl + log_q.exp() * (log_q - log_p)
    return torch.autograd.grad(kl, networks[0].logits)[0]


def expected_gradient(mix: float, **options) -> Tensor:
    """The estimator's gradient for every answer, weighted by the answer's probability."""
    student, teacher = tables()
    objective = MiniLLM(student, teacher, teacher_mix=mix, **(PURE | options))
    total, mass = torch.zeros_like(student.logits), 0.0
    for batch in EVERYTHING:
        q, p = (one.logits.detach()[batch.tokens].softmax(-1) for one in (student, teacher))
        drawn = ((1 - mix) * q + mix * p).gather(-1, batch.targets[..., None]).prod().item()
        loss = sum(objective(objective.judge(batch)).values())
        total += drawn * torch.autograd.grad(loss, student.logits)[0]
        mass += drawn
    assert mass == pytest.approx(1)
    return total


UNBIASED = [
    (0.0, {}), (0.0, {"single_step": False}), (0.0, {"clip_ratio": None}),
    (0.3, {"weights": "answer"}), (0.3, {"weights": "answer", "single_step": False}),
    (1.0, {"weights": "answer"}), (0.0, {"single_step": False, "weighted_step": False}),
]  # fmt: skip


@pytest.mark.parametrize("mix, options", UNBIASED, ids=str)
def test_the_expected_gradient_is_that_of_the_divergence_of_answers(mix: float, options: dict):
    assert_close(expected_gradient(mix, **options), exact_gradient(), rtol=1e-9, atol=1e-12)


BIASED = [
    (0.3, {}), (0.3, {"weights": "answer", "weighted_step": False}), (0.0, {"own_reward": True}),
    (0.0, {"single_step": False, "own_reward": False}), (0.0, {"long_term": False}),
    (0.0, {"length_normalise": True}), (0.0, {"gamma": 0.9}), (0.0, {"reward_scale": 0.5}),
    (0.0, {"reward_clip": 0.5}), (0.0, {"mean": "tokens"}), (0.0, {"temperature": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize("mix, options", BIASED, ids=str)
def test_what_the_docstring_calls_biased_is(mix: float, options: dict):
    found, exact = expected_gradient(mix, **options), exact_gradient()
    assert (found - exact).norm() > 0.01 * exact.norm()


# Parts of MiniLLM


def test_returns_by_hand():
    rewards, mask = torch.tensor([[9.0, 1, 2, 4, 9]]), torch.tensor([[0, 1, 1, 1, 0]]).bool()
    find = functools.partial(advantages, rewards, mask)
    plain = find(own=True, gamma=0.5, length_normalise=False)
    assert plain.tolist() == [[0, 1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4, 0]]
    assert find(own=False, length_normalise=False).tolist() == [[0, 6, 4, 0, 0]]
    assert find(own=False).tolist() == [[0, 3, 4, 0, 0]]
    assert find(own=False, form="centred").tolist() == [[0, -0.5, 0.5, 0, 0]]
    centred = find(own=False, form="centred", length_normalise=False)
    assert_close(centred, torch.tensor([[0, 6, 4, 0, 0]]) - 10 / 3 * mask)
    assert_close(find(own=False, form="whitened"), torch.tensor([[0.0, -1, 1, 0, 0]]))
    assert find(own=True, gamma=0.0, length_normalise=False).tolist() == [[0, 1, 2, 4, 0]]
    single = advantages(rewards[:, :1], ~mask[:, :1], own=False, form="whitened")
    assert single.tolist() == [[0]]


def test_importance_weights():
    q, p = torch.tensor([[0.5, 0.2], [0.1, 0.4]]), torch.tensor([[0.1, 0.6], [0.8, 0.0]])
    mask, ratio = torch.tensor([[True, True], [True, False]]), q / (0.2 * p + 0.8 * q)
    assert_close(minillm.importance(q.log(), p.log(), mask, 0.2, "token"), ratio.where(mask, 1.0))
    whole = torch.stack((ratio[0].prod(), ratio[1, 0]))[:, None].expand(2, 2)
    assert_close(minillm.importance(q.log(), p.log(), mask, 0.2, "answer"), whole)
    assert (minillm.importance(q.log(), p.log(), mask, 0.0, "token") == 1).all()
    assert_close(minillm.importance(q.log(), p.log(), mask, 1.0, "token"), (q / p).where(mask, 1.0))
    far = minillm.importance(q.log() - 500, p.log(), mask, 0.2, "token")
    assert far.isfinite().all() and far[0].max() < 1e-30


def drawn_from(student: nn.Module, prompts: Tensor, seed: int = 0, **options) -> objectives.Answers:
    found = generate(
        student, prompts, max_new_tokens=6, end=END,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    return joined(prompts, found.tokens, found.mask)


def small(seed: int) -> GPT:
    return build(lambda: GPT(9, 16, dim=8, depth=1, heads=2), seed)


PROMPTS = torch.tensor([[0, 0, 5, 2], [7, 8, 3, 2], [0, 4, 4, 2]])


def test_a_roll_out_holds_what_was_drawn_from_the_mixture():
    student, teacher, tally = small(0), small(1), Tally()
    objective = MiniLLM(student, teacher, tally=tally, lm=0, reward_clip=0.1, temperature=0.5)
    given, prompts = {"max_new_tokens": 6, "end": END}, PROMPTS.repeat(30, 1)
    found = objective.roll_out(prompts, generator=torch.Generator().manual_seed(3), **given)
    wanted = drawn_from(student, prompts, 3, teacher=teacher, mix=0.2, temperature=0.5)
    assert all(map(torch.equal, found, wanted))
    assert_close(found.old, objective.judge(wanted).old.where(found.mask, 0.0))
    raw = log_probs(found.teacher_logits, found.targets, 0.5) - found.old
    assert_close(found.rewards, raw.clamp(-0.1, 0.1).where(found.mask, 0.0))
    assert found.rewards.abs().max() == pytest.approx(0.1)
    assert set(objective(found)) == {"single", "long"}
    options = {"temperature": 0.5, "mask": found.mask}
    kl = divergence(student(found.tokens), found.teacher_logits, "reverse", **options)
    means = {"reward": raw[found.mask].mean().item(), "reverse_kl": kl.item()}
    assert tally.means() == pytest.approx(means, rel=1e-4) and tally.means() == {}


def test_inner_updates_see_the_old_student():
    """Rewards and q_old stay; the ratio moves, and gradients reach nothing but the student."""
    student, teacher = small(0), small(1)
    given = {"lm": 0, "single_step": False, "advantage": "return", "clip_ratio": None}
    objective = MiniLLM(student, teacher, **given)
    rollout = objective.judge(drawn_from(student, PROMPTS))
    gain = advantages(rollout.rewards, rollout.mask, own=True)
    with torch.no_grad():
        student.head.weight.add_(0.1 * torch.randn_like(student.head.weight))
    ratio = (log_probs(student(rollout.tokens), rollout.targets) - rollout.old).exp()
    wanted = -(rollout.weights * ratio * gain)[rollout.mask].sum() / rollout.mask.sum()
    assert_close(value := objective(rollout)["long"], wanted)
    value.backward()
    assert student.head.weight.grad.norm() > 0
    assert all(one.grad is None for one in teacher.parameters())
    assert {name.split(".")[0] for name in objective.state_dict()} == {"student"}


def test_dropout_rests_in_minillm_and_in_the_teacher():
    class Noisy(Table):
        def forward(self, tokens: Tensor, **options) -> Tensor:
            return F.dropout(super().forward(tokens), 0.5, self.training)

    student, teacher = (Noisy(randn(9, 9, seed=s)).train() for s in (0, 1))
    batch = drawn_from(student, PROMPTS)
    objective = MiniLLM(student, teacher, lm=0, clip_ratio=None, teacher_mix=0.0).train()
    rollout = objective.judge(batch)
    assert not student.training and teacher.training and objective.training
    assert torch.equal(rollout.teacher_logits, teacher.logits[batch.tokens])
    gain = advantages(rollout.rewards, batch.mask, own=False, form="centred")
    assert_close(objective(rollout)["long"], -gain[batch.mask].sum() / batch.mask.sum())
    kd = Distillation(small(0), teacher)(batch)["divergence"]
    assert_close(kd, Distillation(small(0), teacher.eval())(batch)["divergence"])


def test_infinite_rewards_are_refused_by_name():
    student, teacher = tables()
    teacher.logits.data[3, 0] = -math.inf
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = joined(torch.tensor([[2], [2]]), torch.tensor([[2, 1, 0], [2, 3, 0]]), mask)
    objective = MiniLLM(student, teacher)
    message = r"rewards must be finite, got -inf for token 2 of answer 1 \(both from 0\), number 0"
    with pytest.raises(ValueError, match=message):
        objective.judge(batch)
    with pytest.raises(ValueError, match=r"must be finite, got nan for token 0 of answer 0"):
        objective.judge(batch, torch.full((2, 3), math.nan))


def test_text_is_needed_for_its_term_only():
    student, teacher = tables()
    objective = MiniLLM(student, teacher, lm=0.1)
    rollout = objective.judge(EVERYTHING[5])
    with pytest.raises(ValueError, match="text must be given where lm is not 0, got None"):
        objective(rollout)
    wanted = 0.1 * objectives.Supervised(student)(EVERYTHING[7])["nll"]
    assert_close(objective(rollout._replace(text=EVERYTHING[7]))["lm"], wanted)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_padding_on_the_left_changes_nothing(kind: str):
    student, teacher = small(0), small(1)
    objective = Distillation(student, teacher, kind=kind, beta=0.3, temperature=2.0)
    batch = drawn_from(student, PROMPTS)
    total = 0.0
    for row, skipped in enumerate((2, 0, 1)):
        alone = Batch(*(part[row : row + 1, skipped:] for part in batch))
        logits = [model(alone.tokens, padding=None) for model in (student, teacher)]
        options = {"beta": 0.3, "temperature": 2.0, "mask": alone.mask, "reduction": "none"}
        total = total + divergence(*logits, kind, **options).sum()
    assert_close(objective(batch), {"divergence": total / batch.mask.sum()})
    assert objective(batch._replace(mask=~batch.mask & batch.mask))["divergence"] == 0


def test_own_answers_are_watched_and_data_are_not():
    student, teacher, tally = small(0), small(1), Tally()
    objective = Distillation(student, teacher, kind="jsd", tally=tally)
    batch = drawn_from(student, PROMPTS)
    objective(Batch(*batch))
    assert tally.means() == {}
    objective(batch)
    found = tally.means()
    p, q = (log_probs(model(batch.tokens), batch.targets) for model in (teacher, student))
    kl = Distillation(student, teacher, kind="reverse")(batch)["divergence"]
    wanted = {"reward": (p - q)[batch.mask].mean().item(), "reverse_kl": kl.item()}
    assert found == pytest.approx(wanted, rel=1e-4)
    for name, total, count in (("a", 6.0, 3), ("a", torch.tensor(2.0), 1), ("b", 0.0, 0)):
        tally.add(name, total, count)
    assert tally.means() == {"a": 2.0}


def test_broken_logits_stop_the_training():
    student, teacher = tables()
    student.logits.data[2, 0] = math.nan
    for objective in (objectives.Supervised(student), Distillation(student, teacher)):
        with pytest.raises(FloatingPointError, match="student's logits became infinite or NaN"):
            objective(EVERYTHING[0])


NETWORKS = {"student": Table(randn(4, 4)), "teacher": Table(randn(4, 4, seed=1))}
UNIT = (*bad.NUMBERS, -0.1, 1.1)
RATE = (*bad.NUMBERS, 0, -1)
MINILLM = {
    **dict.fromkeys(("single_step", "long_term", "length_normalise"), bad.SWITCHES),
    **dict.fromkeys(("weighted_step", "weighted_clip"), bad.SWITCHES),
    **dict.fromkeys(("teacher_mix", "gamma", "lm_kd"), UNIT),
    **dict.fromkeys(("reward_scale", "temperature"), RATE),
    **dict.fromkeys(("reward_clip", "reward_temperature"), ("1", bad.NAN, 0, -1)),
    **dict.fromkeys(("weights", "advantage", "mean"), ("all", None, 1)),
    "own_reward": ("no", 1), "clip_ratio": ("1", 0, 1, -1, bad.NAN), "inner": bad.SIZES,
    "lm": (*bad.NUMBERS, -1),
}  # fmt: skip
DISTILLATION = {"kind": ("kl", None), "beta": UNIT, "temperature": RATE, "nll": (*UNIT, 1)}
TABLE: bad.Table = {"MiniLLM": (NETWORKS, MINILLM), "Distillation": (NETWORKS, DISTILLATION)}


@pytest.mark.parametrize("name, parameter", bad.checks(TABLE))
def test_bad_arguments_are_refused_by_name(name: str, parameter: str):
    module = minillm if name == "MiniLLM" else objectives
    bad.refuses(module, TABLE, name, parameter)


def test_an_objective_has_something_to_learn():
    with pytest.raises(ValueError, match="single_step, long_term or lm must be on"):
        MiniLLM(**NETWORKS, single_step=False, long_term=False, lm=0)
    assert minillm.PRESETS["paper"].keys() == minillm.PRESETS["official"].keys()
    for options in minillm.PRESETS.values():
        MiniLLM(**NETWORKS, **options)
