"""MiniLLM: KL(q ‖ p) of whole answers by policy gradient, with the paper's three stabilisers.

`MiniLLM` is a module, batch -> named terms, as those of `objectives`; its batches are a `Rollout`.
`importance`, `advantages` and `surrogate` are its parts, `PRESETS` the options of paper and code.

q is the student, p the teacher, y_t a token of an answer y, r_t = log p(y_t)/q(y_t). The teacher
is no part of the module: it is neither trained nor stored.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.language.divergences import divergence
from kdlib.language.objectives import Tally, behind, joined, log_probs, nll, read, taught
from kdlib.language.sampling import LanguageModel, generate
from kdlib.language.tokenizers import PAD, Batch
from kdlib.stages import evaluating

WEIGHTS = ("token", "answer")
ADVANTAGES = ("return", "centred", "whitened", "padded")

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "own_reward": None,
        "gamma": 1.0,
        "reward_scale": 1.0,
        "reward_clip": None,
        "reward_temperature": None,
        "advantage": "return",
        "weighted_step": True,
        "weighted_clip": False,
        "lm": 1.0,
        "lm_kd": 0.0,
        "inner": 4,
    },
    "official": {
        "own_reward": True,
        "gamma": 0.95,
        "reward_scale": 0.5,
        "reward_clip": 100.0,
        "reward_temperature": 1.0,
        "advantage": "padded",
        "weighted_step": False,
        "weighted_clip": True,
        "lm": 1.0,
        "lm_kd": 0.5,
        "inner": 4,
    },
}  # of `MiniLLM`: what the paper says, and what its code does (LMOps 4f2a9de); the rest they share


class Rollout(NamedTuple):
    """Answers [B, T] to learn from in several updates, and what stays fixed meanwhile.

    The first four fields are those of a `Batch` and log q(y_t) of the student that was.
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor
    old: Tensor  # float [B, T]
    rewards: Tensor  # float [B, T], scaled and clipped, 0 where the mask is False
    weights: Tensor  # float [B, T]
    teacher_logits: Tensor  # [B, T, V]
    text: Batch | None = None  # for the language-modelling term


def importance(old: Tensor, teacher: Tensor, mask: Tensor, mix: float, weights: str) -> Tensor:
    """Importance weights [B, T] of tokens that were drawn from α p + (1 − α) q, α = mix.

    "token" (Gu et al. 2024, after equation 5): w_t = q(y_t) / (α p(y_t) + (1 − α) q(y_t)), at most
    1 / (1 − α). "answer": the product of all w_t of an answer, for each of its tokens. Only this
    makes means unbiased: a return depends on the tokens before *and* after its own. (The product
    of the first t, the paper's equation 5, corrects for those before.) Its variance grows
    exponentially with the length, and so MiniLLM takes "token".

    Args:
        old, teacher: log q(y_t) and log p(y_t), [B, T].
        mask: bool [B, T]; weights are 1 where it is False, with "token".
    """
    shares = old.new_tensor([mix, 1 - mix]).log()
    logs = (old - torch.logaddexp(shares[0] + teacher, shares[1] + old)).where(mask, 0.0)
    return (logs if weights == "token" else logs.sum(1, keepdim=True).expand_as(logs)).exp()


def advantages(
    rewards: Tensor,
    mask: Tensor,
    *,
    own: bool,
    gamma: float = 1.0,
    length_normalise: bool = True,
    form: str = "return",
) -> Tensor:
    """What the policy gradient multiplies ∇ log q(y_t) by, [B, T], 0 where the mask is False.

    R_t = Σ_{i ≥ t} γ^{i−t} r_i with `own`, else R_{t+1} = Σ_{i > t} γ^{i−t−1} r_i; divided by the
    number of rewards in the sum with `length_normalise` (Gu et al. 2024, equation 6).

    Args:
        rewards: [B, T].
        mask: bool [B, T], True for the tokens of an answer, which follow each other.
        form: "return": R; "centred": R minus its mean over the tokens; "whitened": divided by its
            standard deviation, too; "padded": whitened over the padding as well, as in the
            official code. The last token of an answer has no R_{t+1} to be normalised, and 0 takes
            its place, after centring.

    Returns:
        Without a gradient.
    """
    rewards = rewards.detach().where(mask, 0.0)
    place = torch.arange(mask.shape[1], device=mask.device)
    distance = place[:, None] - place - (0 if own else 1)
    discounts = (gamma ** distance.clamp(min=0)).to(rewards.dtype).where(distance >= 0, 0.0)
    found = rewards @ discounts
    counts = mask.to(rewards.dtype) @ (distance >= 0).to(rewards.dtype)
    if length_normalise:
        found = found / counts.clamp(min=1)
    if form != "return":
        used = mask & (counts > 0) if length_normalise else mask
        if form == "padded":
            used = mask.any(0).expand_as(mask)
        values = found[used]
        found = found - values.mean()
        if form != "centred" and len(values):
            found = found * (values.var(correction=0) + 1e-8).rsqrt()
        found = found.where(used, 0.0)  # also where nothing is used, and the mean is NaN
    return found.where(mask, 0.0)


def surrogate(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    weights: Tensor,
    *,
    clip_ratio: float | None = 0.2,
    weighted_clip: bool = False,
) -> Tensor:
    """−w_t min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = q/q_old of a token, [B, T].

    PPO's objective (Schulman et al. 2017, equation 7), whose gradient at ρ = 1 is that of
    −w_t A log q(y_t). With `weighted_clip`, as in the official code, w ρ takes the place of ρ and
    stands inside: a token with w below 1 − ε and a negative advantage is then never unlearnt.

    Args:
        new, old: log q(y_t) now and when it was drawn, [B, T]; the first carries the gradient.
        advantage, weights: [B, T].
        clip_ratio: ε in (0, 1); None: no clipping.
    """
    ratio = (new - old).exp()
    if weighted_clip:
        ratio, weights = ratio * weights, torch.ones_like(weights)
    gain = ratio * advantage
    if clip_ratio is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantage)
    return -weights * gain


class MiniLLM(nn.Module):
    """KL(q ‖ p) of whole answers, by policy gradient (Gu et al. 2024, equation 7).

        ∇ KL(q ‖ p) = E_{y ~ q} Σ_t [ ∇ KL(q(·|y_<t) ‖ p(·|y_<t))  −  R_{t+1} ∇ log q(y_t|y_<t) ]
                                      single-step part, exact          long part

    Terms: "single", the first, over the whole vocabulary at each token; "long", the second, as
    `surrogate` of the `advantages`; "lm", likelihood of the data's answers, against forgetting.
    Without the single-step part the long one has R_t, the token's own reward included (equation 2).

    The gradient of single + long is unbiased with teacher_mix 0 (or weights "answer"),
    length_normalise False, gamma 1, reward_scale 1, reward_clip None, advantage "return", inner 1
    and mean "answers". The rest trades bias for less variance or against a hack of the reward:

    - teacher_mix keeps the student from strings that only exploit the teacher's weak spots; weights
      "token" bound the variance (`importance`)
    - length_normalise: each token costs some KL, so the sum is best for short, even empty answers
    - "centred": the mean of the batch depends on the token; with length_normalise the last token of
      an answer is not told that ending was worth more than going on
    - reward_scale and whitening weigh long against single; gamma and reward_clip cut the return
    - own_reward=True beside the single-step part counts r_t twice, as the official code does
    - mean "tokens" divides by the number of tokens drawn, not of answers

    Args:
        student, teacher: `LanguageModel`s of one vocabulary. The student stays in evaluation mode:
            with dropout, q/q_old would not be 1 where nothing has changed.
        single_step: whether there is the single-step part.
        long_term: whether there is the long part.
        teacher_mix: α in [0, 1], the teacher's share of the distribution that is drawn from.
        length_normalise: divide returns by the number of tokens that they sum over.
        weights: "token" or "answer", see `importance`.
        weighted_step: w_t on the single-step part, too.
        own_reward: whether the return of a token has its own reward; None: where there is no
            single-step part.
        gamma: discount of later rewards, in [0, 1].
        reward_scale: rewards are divided by it, above 0.
        reward_clip: and then clipped to ± this; None: not.
        reward_temperature: of the teacher in the reward; None: `temperature`. The official code has
            the student's alone.
        advantage: "return", "centred", "whitened" or "padded", see `advantages`.
        clip_ratio, weighted_clip: see `surrogate`.
        lm: weight of the language-modelling term.
        lm_kd: in [0, 1], the share of word-level KD in it (the official code gives the
            cross-entropy with the teacher: the same gradient as KL(p ‖ q)).
        inner: updates on each roll-out (the source `sources.rollouts` reads it). Paper and code
            take 4 passes over 256 answers.
        mean: "tokens", as the official code, or "answers": the sums over their tokens (equation 7).
        temperature: of both networks.
        padding: the token that fills rows up.
        tally: takes the means of "reward", r_t before scale and clip, and "reverse_kl", over the
            tokens that were drawn.

    Defaults are the course's; PRESETS has those of the paper and of its code.

    Raises:
        ValueError, TypeError: an option out of range or of another type, nothing to minimise.
        FloatingPointError, when called: the student's logits became infinite or NaN.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        single_step: bool = True,
        long_term: bool = True,
        teacher_mix: float = 0.2,
        length_normalise: bool = True,
        weights: str = "token",
        weighted_step: bool = True,
        own_reward: bool | None = None,
        gamma: float = 1.0,
        reward_scale: float = 1.0,
        reward_clip: float | None = 10.0,
        reward_temperature: float | None = None,
        advantage: str = "centred",
        clip_ratio: float | None = 0.2,
        weighted_clip: bool = False,
        lm: float = 0.1,
        lm_kd: float = 0.0,
        inner: int = 2,
        mean: str = "tokens",
        temperature: float = 1.0,
        padding: int = PAD,
        tally: Tally | None = None,
    ) -> None:
        super().__init__()
        self.student, self._teacher = student, (teacher,)
        self.single_step = inputs.instance("single_step", single_step, bool)
        self.long_term = inputs.instance("long_term", long_term, bool)
        self.teacher_mix = inputs.number("teacher_mix", teacher_mix, low=0, high=1)
        self.length_normalise = inputs.instance("length_normalise", length_normalise, bool)
        self.weights = inputs.choice("weights", weights, WEIGHTS)
        self.weighted_step = inputs.instance("weighted_step", weighted_step, bool)
        inputs.instance("own_reward", own_reward, (bool, type(None)))
        self.own_reward = not single_step if own_reward is None else own_reward
        self.gamma = inputs.number("gamma", gamma, low=0, high=1)
        self.reward_scale = inputs.number("reward_scale", reward_scale, above=0)
        self.reward_clip = (
            math.inf if reward_clip is None else inputs.number("reward_clip", reward_clip, above=0)
        )
        self.temperature = inputs.number("temperature", temperature, low=1e-3, high=100)
        self.reward_temperature = (
            self.temperature
            if reward_temperature is None
            else inputs.number("reward_temperature", reward_temperature, low=1e-3, high=100)
        )
        self.advantage = inputs.choice("advantage", advantage, ADVANTAGES)
        self.clip_ratio = (
            None
            if clip_ratio is None
            else inputs.number("clip_ratio", clip_ratio, above=0, below=1)
        )
        self.weighted_clip = inputs.instance("weighted_clip", weighted_clip, bool)
        self.lm = inputs.number("lm", lm, low=0)
        self.lm_kd = inputs.number("lm_kd", lm_kd, low=0, high=1)
        self.inner = inputs.whole("inner", inner)
        self.mean = inputs.choice("mean", mean, ("tokens", "answers"))
        self.padding, self.tally = padding, tally
        if not (single_step or long_term or lm):
            raise ValueError("single_step, long_term or lm must be on, got none: nothing is learnt")

    def train(self, mode: bool = True) -> MiniLLM:
        super().train(mode)
        self.student.eval()
        return self

    def roll_out(
        self,
        prompts: Tensor,
        *,
        max_new_tokens: int,
        end: int | None,
        generator: torch.Generator | None = None,
        text: Batch | None = None,
    ) -> Rollout:
        """Draw answers to the prompts [B, P] as in `generate`, and judge them."""
        drawn = generate(
            cast(LanguageModel, self.student),
            prompts,
            max_new_tokens=max_new_tokens,
            end=end,
            pad=self.padding,
            temperature=self.temperature,
            teacher=cast(LanguageModel, self._teacher[0]) if self.teacher_mix else None,
            mix=self.teacher_mix,
            generator=generator,
        )
        old = behind(prompts, drawn.student_log_probs)
        return self.judge(joined(prompts, drawn.tokens, drawn.mask), old, text)

    @torch.no_grad()
    def judge(
        self, answers: Batch, old: Tensor | None = None, text: Batch | None = None
    ) -> Rollout:
        """Rewards and weights of answers that were drawn from the mixture.

        Args:
            old: log q(y_t) of the student at its temperature, [B, T]; None: as it is now.
            text: for the language-modelling term.

        Raises:
            ValueError: a reward is infinite or NaN; names the answer and the token.
        """
        tokens, targets, mask = answers
        if old is None:
            with evaluating(self.student):
                logits = read(self.student, tokens, self.padding)
            old = log_probs(logits, targets, self.temperature)
        teacher_logits = taught(self._teacher[0], tokens, self.padding)
        heat, own_heat = self.reward_temperature, self.temperature
        judged = log_probs(teacher_logits, targets, heat)
        rewards = (judged - old).where(mask, 0.0)
        _check_rewards(rewards, targets, mask)
        if self.tally is not None:
            self.tally.add("reward", rewards.sum(), mask.sum())
        teacher = judged if heat == own_heat else log_probs(teacher_logits, targets, own_heat)
        weights = importance(old, teacher, mask, self.teacher_mix, self.weights)
        rewards = (rewards / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        return Rollout(tokens, targets, mask, old, rewards, weights, teacher_logits, text)

    def forward(self, batch: Rollout) -> dict[str, Tensor]:
        logits, mask, terms = read(self.student, batch.tokens, self.padding), batch.mask, {}
        if self.single_step or self.tally is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.single_step):
                step = divergence(
                    logits, batch.teacher_logits, "reverse",
                    temperature=self.temperature, mask=mask, reduction="none",
                )  # fmt: skip
            if self.tally is not None:
                self.tally.add("reverse_kl", step.detach().sum(), mask.sum())
            if self.single_step:
                step = step * batch.weights if self.weighted_step else step
                terms["single"] = self._mean(step, mask)
        if self.long_term:
            new = log_probs(logits, batch.targets, self.temperature).where(mask, 0.0)
            advantage = advantages(
                batch.rewards, mask, own=self.own_reward, gamma=self.gamma,
                length_normalise=self.length_normalise, form=self.advantage,
            )  # fmt: skip
            value = surrogate(
                new, batch.old.where(mask, 0.0), advantage, batch.weights,
                clip_ratio=self.clip_ratio, weighted_clip=self.weighted_clip,
            )  # fmt: skip
            terms["long"] = self._mean(value, mask)
        if self.lm:
            terms["lm"] = self.lm * self._language_modelling(batch.text)
        return terms

    def _mean(self, values: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum().clamp(min=1) if self.mean == "tokens" else len(mask)
        return values.where(mask, 0.0).sum() / count

    def _language_modelling(self, text: Batch | None) -> Tensor:
        if text is None:
            raise ValueError("text must be given where lm is not 0, got None: pass it to roll_out")
        logits = read(self.student, text.tokens, self.padding)
        value = (1 - self.lm_kd) * nll(logits, text.targets, text.mask)
        if self.lm_kd:
            teacher = taught(self._teacher[0], text.tokens, self.padding)
            value = value + self.lm_kd * divergence(logits, teacher, "forward", mask=text.mask)
        return value


def _check_rewards(rewards: Tensor, targets: Tensor, mask: Tensor) -> None:
    wrong = (~rewards.isfinite()).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        token = int(mask[row, :place].sum())
        raise ValueError(
            f"rewards must be finite, got {rewards[row, place].item()} for token {token} of answer "
            f"{row} (both from 0), number {targets[row, place].item()}: check the logits of both "
            "networks there; a teacher must not rule a token out"
        )
