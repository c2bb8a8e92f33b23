"""Measures of language models: against reference values, by hand, and against enumeration."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlib import analysis
from kdlib.language import corpus, metrics
from kdlib.language.metrics import exact_kl, excess_error, rouge_l, sampled_kl

FILE = Path(__file__).parents[1] / "golden" / "language_metrics.json"
GOLDEN = {case["id"]: case for case in json.loads(FILE.read_text("utf-8"))["cases"]}


def refused(error, message, function, *arguments, **options):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def made(recipe):
    rng = np.random.default_rng(recipe["seed"])
    array = (rng.standard_normal(recipe["shape"]) * recipe["scale"]).astype(np.float32)
    return torch.from_numpy(array).double()


def test_official_rouge_is_that_of_the_package():
    pytest.importorskip("rouge_score", reason="rouge-score is not installed")
    case, scores = GOLDEN["minillm/rougeL"], []
    for row in case["rows"]:
        text, references = row["prediction"], row["references"]
        scores.append(rouge_l(text, references, form="official"))
        assert scores[-1] == pytest.approx(row["rougeL_f"], abs=1e-7)
        for reference, wanted in zip(references, row["per_reference"], strict=True):
            assert rouge_l(text, reference, form="official") == pytest.approx(wanted, abs=1e-7)
    assert 100 * sum(scores) / len(scores) == pytest.approx(case["corpus"], abs=1e-4)


def test_unicode_rouge_agrees_where_stems_and_scripts_do_not_matter():
    differ = {"Running runners ran quickly!": 0.0, "café naïve résumé": 0.0, "你好 世界": 1.0}
    for row in GOLDEN["minillm/rougeL"]["rows"]:
        wanted = differ.get(row["prediction"], row["rougeL_f"])
        assert rouge_l(row["prediction"], row["references"]) == pytest.approx(wanted, abs=1e-7)


def test_unicode_rouge_by_hand():
    assert rouge_l("Лиса рыжая.", "рыжая лиса") == 0.5
    assert rouge_l("ЛИСА, рыжая — да", ["Лиса рыжая"]) == pytest.approx(2 * 2 / (3 + 2))
    assert rouge_l("Straße", "STRASSE") == 1 and rouge_l("a b", "c") == 0
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("...", "...") == 0
    mine, references = "a b c", ["a b c d", "x", "c b a"]
    scores = [rouge_l(mine, reference) for reference in references]
    assert scores == pytest.approx([6 / 7, 0, 2 / 6])
    assert rouge_l(mine, references) == max(scores)
    assert rouge_l(mine, references, best=False) == pytest.approx(sum(scores) / 3)


def test_common_words_against_the_usual_table():
    rng = random.Random(0)
    for _ in range(300):
        one, other = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        row = [0] * (len(other) + 1)
        for word in one:
            last, row = row, [0]
            for n, match in enumerate(other):
                row.append(last[n] + 1 if word == match else max(last[n + 1], row[n]))
        assert metrics.common_words(one, other) == row[-1]


def test_bad_arguments_of_rouge(monkeypatch):
    refused(ValueError, "references must hold at least one text, got none", rouge_l, "a", [])
    refused(TypeError, r"references\[1\] must be a str, got int 3", rouge_l, "a", ["a", 3])
    refused(TypeError, "references must be a list of texts, got int 3", rouge_l, "a", 3)
    refused(TypeError, "prediction must be a str, got NoneType", rouge_l, None, "a")
    refused(ValueError, "form must be one of unicode, official", rouge_l, "a", "a", form="google")
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    message = "needs the package rouge-score: `pip install rouge-score`"
    refused(ModuleNotFoundError, message, rouge_l, "a", "a", form="official")


def test_validity():
    pairs = corpus.examples("test", 40, seed=1)
    prompts, responses = [pair.prompt for pair in pairs], [pair.response for pair in pairs]
    assert metrics.validity(prompts, responses) == 100
    assert metrics.validity(prompts, [*responses[:30], *[""] * 10]) == 75
    assert metrics.validity(["a", "b"], ["b", "b"], lambda prompt, text: prompt == text) == 50
    message = "responses must be one for each prompt, got 39 for 40"
    refused(ValueError, message, metrics.validity, prompts, responses[1:])
    refused(TypeError, "prompts must be a list of texts, got str", metrics.validity, "a", ["a"])


def test_distinct():
    assert metrics.distinct(["a b c d e", "a b c d", "x"]) == pytest.approx(100 * 2 / 3)
    assert metrics.distinct(["a a a a"], n=1) == 25
    assert metrics.distinct(["a b.", "b."], 2) == pytest.approx(200 / 3)
    refused(ValueError, "texts must hold one of at least n = 4", metrics.distinct, ["a b c"])
    refused(ValueError, "n must be a whole number of at least 1", metrics.distinct, ["a"], 0)


def test_calibration_is_that_of_the_counted_tokens():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 9, 11, generator=rng)
    targets = torch.randint(11, (7, 9), generator=rng)
    mask = torch.rand(7, 9, generator=rng) < 0.6
    logits[~mask] = torch.nan  # what is not counted is not looked at
    ece = metrics.calibration_error(logits, targets, mask, 7)
    assert ece == analysis.expected_calibration_error(logits[mask], targets[mask], 7)
    table = metrics.reliability(logits, targets, mask, 7)
    assert sum(one.size for one in table) == mask.sum() and len(table) == 7
    gaps = [one.size * abs(one.accuracy - one.confidence) for one in table if one.size]
    assert ece == pytest.approx(sum(gaps) / mask.sum().item())
    assert all(one.low < one.confidence <= one.high for one in table if one.size)
    table = metrics.reliability(
        torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), mask[:1, :2].long(), bins=4
    )
    assert [one.size for one in table] == [0, 1, 0, 1] and math.isnan(table[0].accuracy)
    assert [(one.low, one.high) for one in table[1:3]] == [(0.25, 0.5), (0.5, 0.75)]


def test_bad_predictions_of_tokens():
    logits, targets = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for arguments, error, message in (
        ((logits[0], targets), ValueError, r"logits must be \[B, T, V\]"),
        ((logits, targets[:, :2]), ValueError, r"for targets \[B, T\] = \[2, 2\], got \[2, 3, 5\]"),
        ((logits, targets + 5), ValueError, "must lie in 0..4, got 5 to 5"),
        ((logits, targets, nothing), ValueError, "mask must hold at least one True, got none"),
        ((logits, targets, nothing.int()), TypeError, "mask must be a bool tensor"),
        ((logits, targets, nothing[:1]), ValueError, r"mask must be \[2, 3\], got \[1, 3\]"),
        ((logits * torch.nan, targets), ValueError, "logits must be finite"),
        ((logits, targets, None, 0), ValueError, "bins must be a whole number of at least 1"),
    ):
        refused(error, message, metrics.calibration_error, *arguments)
        refused(error, message, metrics.reliability, *arguments)


def test_excess_error_is_that_of_the_official_code():
    case = GOLDEN["minillm/exposure_bias"]
    given = case["inputs"]
    log_q, log_p = (made(given[f"{name}_table"]).log_softmax(1) for name in ("student", "teacher"))
    kl = (log_p.exp() * (log_p - log_q)).sum(1)  # given the token before
    answers = [torch.tensor(given[f"{name}_response_ids"]) for name in ("student", "teacher")]
    masks = [tokens != given["pad_id"] for tokens in answers]
    errors = [kl[tokens] / 1.001 for tokens in answers]  # one place too late, as there
    for one, mask, wanted in zip(errors, masks, ("mean_R", "mean_eps")):
        sums = (one * mask).mean(0).cumsum(0)
        assert sums.tolist() == pytest.approx(case["expected"][wanted], rel=1e-5)
    found = excess_error(*errors, *masks)
    assert found.tolist() == pytest.approx(case["expected"]["ex_acc_err"], rel=1e-4)


def test_excess_error_by_hand():
    student = torch.tensor([[1.0, 4.0, 9.0], [1.0, 2.0, torch.nan]])
    ended = torch.tensor([[True, True, True], [True, True, False]])
    teacher = torch.tensor([[1.0, 1.0, 2.0, 5.0]] * 3)
    found = excess_error(student, teacher, ended)
    # sums of means: 1, 4, 4 + 9/2 against 1, 2, 4
    assert found.tolist() == pytest.approx([0, 100, 112.5]) and found.dtype == torch.float64
    found = excess_error(student, teacher, ended, ended="skip")
    assert found.tolist() == pytest.approx([0, 100, 100 * (13 / 4 - 1)])
    ended[:, 2] = False
    assert len(excess_error(student, teacher, ended, ended="skip")) == 2
    assert excess_error(teacher, teacher).tolist() == [0, 0, 0, 0]
    assert excess_error(teacher, 0 * teacher)[0] == math.inf


def test_bad_errors():
    good, holes = torch.ones(2, 3), torch.tensor([[True, False, True], [True, True, True]])
    for arguments, error, message in (
        ((good, -good), ValueError, "on_teacher must lie in"),
        ((good * torch.nan, good), ValueError, "on_student must be finite"),
        ((good.tolist(), good), TypeError, "on_student must be a tensor"),
        ((good, good, holes), ValueError, "student_mask must be True from the first token"),
        ((good, good, None, holes.flip(1).logical_not()), ValueError, "teacher_mask must be True"),
    ):
        refused(error, message, excess_error, *arguments)
    refused(ValueError, "ended must be one of zero, skip", excess_error, good, good, ended="stop")


def chain(seed):
    """Log-probabilities [3 + 1, 3] of the next of three words given the last, and at the start."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).double().log_softmax(1)


WORDS = torch.tensor(list(itertools.product(range(3), repeat=4)))  # all answers of four words
P, Q = chain(1), chain(2)


def rows(table, answers):
    """Log-probabilities [B, T, 3] at each place of the answers."""
    before = torch.cat([torch.full((len(answers), 1), 3), answers[:, :-1]], 1)
    return table[before]


def spoken(table, answers):
    return rows(table, answers).gather(2, answers[..., None])[..., 0]


def test_exact_kl_by_the_chain_rule():
    p, q = (spoken(table, WORDS).sum(1) for table in (P, Q))
    steps = (P.exp() * (P - Q)).sum(1)  # of the next word, given the last
    state, wanted = torch.tensor([0.0, 0.0, 0.0, 1.0]).double(), 0.0
    for _ in range(4):
        wanted += (state @ steps).item()
        state = torch.cat([state @ P.exp(), torch.zeros(1).double()])
    assert exact_kl(p, q) == pytest.approx(wanted) and exact_kl(q, p) != pytest.approx(wanted)
    assert exact_kl(p, p) == 0
    never = torch.tensor([0.5, 0.5, 0.0]).log()
    other = torch.tensor([0.25, 0.5, 0.25]).log()
    assert exact_kl(never, other) == pytest.approx(0.5 * math.log(2))
    assert exact_kl(other, never) == math.inf


@pytest.mark.parametrize("estimator", ["k1", "k3", "full"])
def test_estimators_are_unbiased_and_know_their_error(estimator):
    p, q = (spoken(table, WORDS).sum(1) for table in (P, Q))
    read = rows if estimator == "full" else spoken
    for source, other, weights in ((P, Q, p), (Q, P, q)):
        wanted = exact_kl(weights, q if weights is p else p)
        rng, inside = torch.Generator().manual_seed(3), 0
        # exactly: the mean over all answers, each as often as it is drawn
        pairs = [(read(source, w.expand(2, 4)), read(other, w.expand(2, 4))) for w in WORDS]
        each = [sampled_kl(*pair, estimator=estimator).value for pair in pairs]
        values = torch.tensor(each).double()
        assert (weights.exp() @ values).item() == pytest.approx(wanted)
        spread = (weights.exp() @ (values - wanted) ** 2).sqrt().item()
        for _ in range(50):
            drawn = WORDS[torch.multinomial(weights.exp(), 400, True, generator=rng)]
            found = sampled_kl(read(source, drawn), read(other, drawn), estimator=estimator)
            inside += abs(found.value - wanted) < 2 * found.error
            assert found.draws == 400 and found.error == pytest.approx(spread / 20, rel=0.5)
        assert inside >= 43  # of 50, where 47.7 are expected


def test_the_estimator_k3_is_that_of_the_official_code():
    case = GOLDEN["minillm/get_rev_kl_k3"]
    p, q = (-made(case["inputs"][name]).abs() for name in ("log_p", "log_q"))
    mask = torch.tensor(case["inputs"]["mask"]).bool()
    wanted = torch.tensor(case["expected"]["rev_kl"]).double().sum(1)
    found = sampled_kl(q, p, mask, estimator="k3")
    assert found.value == pytest.approx(wanted.mean().item(), rel=1e-6)
    assert found.error == pytest.approx(wanted.std().item() / 2**0.5, rel=1e-6)


def test_what_lies_behind_an_answer_does_not_count():
    p, q = spoken(P, WORDS), spoken(Q, WORDS)
    mask = torch.ones_like(p, dtype=torch.bool)
    mask[::2, 2:] = False
    for estimator, x, y in (("k1", p, q), ("k3", p, q), ("full", rows(P, WORDS), rows(Q, WORDS))):
        found = sampled_kl(x, y, mask, estimator=estimator)
        x, y = x.clone(), y.clone()
        x[~mask], y[~mask] = -math.inf, -5.0
        assert sampled_kl(x, y, mask, estimator=estimator) == found
    impossible = q.clone()
    impossible[0, 0] = -math.inf
    assert sampled_kl(p, impossible).value == math.inf


def test_bad_log_probabilities():
    p = torch.full((3, 4), -1.0)
    for arguments, message in (
        ((p + 3, p), r"source must be log-probabilities, at most 0, got 2: take log_softmax"),
        ((p, p * torch.nan), "other must be log-probabilities, got NaN"),
        ((p, p[:, :3]), r"other must be of the shape of source, \[3, 4\], got \[3, 3\]"),
        ((p[:1], p[:1]), "source must hold at least 2 answers, got 1"),
        ((p - math.inf, p), "source must be finite for the tokens that it drew"),
    ):
        refused(ValueError, message, sampled_kl, *arguments)
    refused(ValueError, r"source must be \[B, T, V\]", sampled_kl, p, p, estimator="full")
    refused(ValueError, "estimator must be one of k1, k3, full", sampled_kl, p, p, estimator="k2")
    refused(ValueError, "got sums of 1.472 and 1.472: list every answer", exact_kl, p[0], p[0])
    assert exact_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.1]).log()) > 0
