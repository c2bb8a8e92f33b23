"""Training language students: the methods, and `fit`, which joins all parts."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from kdlib import inputs, recipes
from kdlib.engine import loop, optimizers
from kdlib.engine.checkpoints import Checkpoint, History
from kdlib.engine.placement import SMALL
from kdlib.identity import digest, identity
from kdlib.language import tokenizers
from kdlib.language.minillm import PRESETS, MiniLLM
from kdlib.language.objectives import Distillation, Supervised, Tally, nll
from kdlib.language.sampling import LanguageModel
from kdlib.language.sources import ROWS, answered_once, from_data, from_model, mixed, rollouts
from kdlib.language.tokenizers import Batch
from kdlib.stages import evaluating

TEACHERS = 10_000  # added to a seed for its teacher, as in `kdlib.training`

Pairs = Sequence[Sequence[str]]


# Methods: objective and source, from what `fit` was given


class Setup(NamedTuple):
    """What a method builds its objective and its source of batches from."""

    student: nn.Module
    teacher: nn.Module | None
    data: Batch
    prompts: Tensor  # int64 [n, P], padded on the left
    batch_size: int
    room: int  # tokens that the contexts leave for an answer to the longest prompt
    end: int
    pad: int
    seed: int
    tally: Tally  # its means join the history

    def limit(self, max_new_tokens: int | None) -> dict[str, Any]:
        """How answers end, for the functions that draw some."""
        limit = self.room if max_new_tokens is None else max_new_tokens
        limit = inputs.whole("max_new_tokens", limit, high=self.room)
        return {"max_new_tokens": limit, "end": self.end}


Made = tuple[nn.Module, loop.Batches]


def sft(setup: Setup) -> Made:
    """Supervised fine-tuning on the pairs."""
    objective = Supervised(setup.student, padding=setup.pad)
    return objective, from_data(setup.data, setup.batch_size)


def seqkd(setup: Setup, *, max_new_tokens: int | None = None) -> Made:
    """Sequence-level KD (Kim, Rush 2016): SFT on answers of the teacher, drawn once.

    Pure: MiniLLM's scripts of that name mix in word-level KD.
    """
    assert setup.teacher is not None
    limit = setup.limit(max_new_tokens)
    data = answered_once(setup.teacher, setup.prompts, pad=setup.pad, seed=setup.seed, **limit)
    return sft(setup._replace(data=data))


def kd(
    setup: Setup,
    *,
    kind: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    nll: float = 0.0,
    prefixes: str = "data",
    max_new_tokens: int | None = None,
) -> Made:
    """Word-level KD: a divergence at prefixes from the "data", or fresh ones from the "teacher".

    kind, beta, temperature, nll: see `Distillation`.
    """
    inputs.choice("prefixes", prefixes, ("data", "teacher"))
    student, teacher, padding = setup.student, cast(nn.Module, setup.teacher), setup.pad
    objective = Distillation(
        student, teacher, kind=kind, beta=beta, temperature=temperature, nll=nll, padding=padding
    )
    if prefixes == "data":
        return objective, from_data(setup.data, setup.batch_size)
    limit = setup.limit(max_new_tokens)
    return objective, from_model(teacher, setup.prompts, setup.batch_size, pad=setup.pad, **limit)


def gkd(
    setup: Setup,
    *,
    kind: str = "reverse",
    beta: float = 0.5,
    temperature: float = 1.0,
    nll: float = 0.0,
    lam: float = 1.0,
    inner: int = 1,
    max_new_tokens: int | None = None,
) -> Made:
    """GKD (Agarwal et al. 2024): a divergence at prefixes from the student, on-policy distillation.

    kind, beta, temperature, nll: see `Distillation`; "jsd" is the generalised JSD of the paper.
    lam: share of on-policy batches in [0, 1], the others are data (TRL has 0.5). inner: updates on
    each batch of answers.
    """
    lam, inner = inputs.number("lam", lam, low=0, high=1), inputs.whole("inner", inner)
    objective = Distillation(
        setup.student, cast(nn.Module, setup.teacher), kind=kind, beta=beta,
        temperature=temperature, nll=nll, padding=setup.pad, tally=setup.tally,
    )  # fmt: skip
    own = from_model(
        setup.student, setup.prompts, setup.batch_size, pad=setup.pad, inner=inner,
        tally=setup.tally, **setup.limit(max_new_tokens),
    )  # fmt: skip
    data = from_data(setup.data, setup.batch_size)
    return objective, own if lam == 1 else mixed(own, data, lam)


def minillm(
    setup: Setup, *, preset: str | None = None, max_new_tokens: int | None = None, **options: Any
) -> Made:
    """MiniLLM (Gu et al. 2024). options: of `MiniLLM`; preset: those of `minillm.PRESETS` first.

    Each update reads as many rows of the pairs again, for the language-modelling term.
    """
    given = {} if preset is None else PRESETS[inputs.choice("preset", preset, tuple(PRESETS))]
    objective = MiniLLM(
        setup.student, cast(nn.Module, setup.teacher), padding=setup.pad, tally=setup.tally,
        **(given | options),
    )  # fmt: skip
    return objective, rollouts(
        objective, setup.prompts, setup.batch_size, text=setup.data, tally=setup.tally,
        **setup.limit(max_new_tokens),
    )  # fmt: skip


METHODS: dict[str, Callable[..., Made]] = {
    "sft": sft,
    "kd": kd,
    "seqkd": seqkd,
    "gkd": gkd,
    "minillm": minillm,
}


def options_of(method: str) -> tuple[str, ...]:
    """The names of a method's options.

    Raises:
        ValueError: there is no such method.
    """
    function = METHODS[inputs.choice("method", method, tuple(METHODS))]
    names = [*inspect.signature(function).parameters][1:]
    if "options" in names:
        own = [*inspect.signature(MiniLLM).parameters]
        names = [n for n in [*names, *own[2:]] if n not in ("options", "padding", "tally")]
    return tuple(names)


# Training


class Layout(Protocol):
    """What `fit` asks of a tokenizer that is none of `kdlib.language.tokenizers`."""

    pad: int
    end: int
    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, examples: Pairs, context: int) -> Batch: ...

    def prompt_tokens(self, prompts: Sequence[str], context: int | None = None) -> Tensor: ...


class Fitted(NamedTuple):
    """What `fit` leaves behind besides the trained student."""

    history: History  # a dictionary an epoch: loss, its terms, the means of what was watched
    sequences: int  # that the student was trained on in all: updates times batch size


@torch.inference_mode(False)
def fit(
    student: nn.Module,
    pairs: Pairs,
    tokenizer: tokenizers.Tokenizer | Layout,
    *,
    method: str = "sft",
    teacher: nn.Module | None = None,
    validation: Pairs | None = None,
    steps: int = 500,
    epochs: int | None = None,
    batch_size: int = 32,
    lr: float = 5e-3,
    weight_decay: float = 0.01,
    optimizer: str | optimizers.Maker = "muon",
    schedule: loop.Schedule = loop.warmup_cosine,
    clip: float | None = 1.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    stop_after: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Train `student` in place on pairs of a prompt and an answer, alone or with a teacher.

    Equal `steps` and `batch_size` are equal budgets: every method makes as many updates on as many
    sequences. "sft" on pairs of `load_pairs` is training on a black box: answers of a teacher that
    is known by its texts alone. MiniLLM's student starts from one that was fine-tuned with "sft";
    `validation` tells when that was best.

    The result is bit-identical on repeat on a CPU at a fixed number of threads; small networks use
    one. Where the student itself writes ("gkd", "minillm"), the history holds means of an epoch
    over these answers (in MiniLLM the teacher has a share): "reward" (log p − log q of a token),
    "reverse_kl" (KL(q ‖ p) of a token), "length" (tokens, the end token included) and
    "tokens_per_second" (of drawing).

    Args:
        student: a `LanguageModel`, such as `GPT`; it trains on its own device, and is left in
            evaluation mode.
        pairs: such as `corpus.examples`; methods that draw answers take their prompts.
        tokenizer: with the vocabulary of student and teacher.
        method: "sft", "kd", "seqkd", "gkd" or "minillm" (see the functions of these names).
        teacher: a `LanguageModel` of the same vocabulary, moved to the student's device; every
            method but "sft" needs one.
        validation: pairs whose mean "validation_nll" is measured after every epoch.
        steps: updates in all.
        epochs: equal parts of them, each with an entry in the history and a checkpoint; None: as
            many of 10 as divide steps.
        lr: the peak learning rate; `schedule` shapes it.
        optimizer: "muon", "adamw", "sgd", or a maker (see `engine.optimizers`).
        clip: largest norm of the gradient; None: any.
        seed: of the order of the pairs and of all sampling.
        checkpoint: file written after every epoch. If it exists, training goes on from it, and
            ends with the weights of an uninterrupted run.
        stop_after: epochs after which to stop early, on the schedule of all `epochs`; 0 checks the
            arguments and trains nothing.
        options: of the method, e.g. `kind="jsd"`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, a text is empty,
            unknown to the tokenizer or too long, the vocabularies differ, a reward is infinite,
            the checkpoint belongs to another run or is damaged.
        FloatingPointError: the loss became infinite or NaN; names the term, the epoch and the
            step. The student is left as it was after the epoch before.
    """
    settings = {name: value for name, value in locals().items() if name not in _NO_SETTINGS}
    _check_networks(student, teacher, method)
    known = options_of(method)
    for option in options:
        if option not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            raise TypeError(f"method {method!r} has no option {option!r}: {listed}")
    batch_size, steps = inputs.wholes(batch_size=batch_size, steps=steps)
    epochs = math.gcd(steps, 10) if epochs is None else inputs.whole("epochs", epochs, high=steps)
    if steps % epochs:
        raise ValueError(f"steps must be a multiple of epochs, got {steps} in {epochs} epochs")
    if not callable(schedule):
        raise TypeError(f"schedule must be a function, got {inputs.describe(schedule)}")
    networks = [student] if teacher is None else [student, teacher]
    context = min(cast(LanguageModel, network).context for network in networks)
    layout = _layout(tokenizer)
    data = layout.batch(pairs, context)
    prompts = layout.prompt_tokens([prompt for prompt, _ in pairs], context)
    held = None if validation is None else layout.batch(validation, context)
    device = next(student.parameters()).device
    if teacher is not None:
        teacher.to(device)
    _check_vocabularies(networks, len(tokenizer), prompts[:1].to(device))
    kept = None
    if checkpoint is not None:
        weights = functools.partial(recipes.weights_digest, student)
        kept = Checkpoint(Path(checkpoint), _fixed(student, settings), weights(), weights)
    with ExitStack() as stack:
        stack.callback(student.eval)
        stack.enter_context(_threads(student, batch_size * data.tokens.shape[1]))
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        setup = Setup(
            student, teacher, _moved(data, device), prompts.to(device), batch_size,
            context - prompts.shape[1], layout.end, layout.pad, inputs.seed("seed", seed), Tally(),
        )  # fmt: skip
        objective, batches = METHODS[method](setup, **options)

        def watched(epoch: int) -> dict[str, float]:
            found = setup.tally.means()
            if held is not None:
                found["validation_nll"] = likelihood(student, _moved(held, device), layout.pad)
            return found

        history = loop.optimise(
            objective,
            batches,
            optimizers.create(
                optimizer, objective.named_parameters(), lr=lr, weight_decay=weight_decay
            ),
            epochs=epochs,
            steps=steps // epochs,
            schedule=schedule,
            clip=clip,
            seed=seed,
            stop_after=stop_after,
            after_epoch=watched,
            checkpoint=kept,
            progress=progress,
        )
    return Fitted(history, len(history) * (steps // epochs) * batch_size)


# Not of the settings that a resumed training must share, or looked at by itself.
_NO_SETTINGS = {"checkpoint", "progress", "stop_after"}


@torch.no_grad()
def likelihood(model: nn.Module, data: Batch, pad: int = tokenizers.PAD) -> float:
    """Mean negative log-likelihood of the data's answers in nats a token."""
    total = 0.0
    with evaluating(model):
        for start in range(0, len(data.tokens), ROWS):
            part = data.take(slice(start, start + ROWS))
            logits = model(part.tokens, padding=pad)
            total += float(nll(logits, part.targets, part.mask) * part.mask.sum())
    return total / int(data.mask.sum())


@recipes.safe
def trained(student: nn.Module, pairs: Pairs, tokenizer: Any, **options: Any) -> nn.Module:
    """The student, after `fit(student, pairs, tokenizer, **options)`."""
    fit(student, pairs, tokenizer, progress=False, **options)
    return student


def fresh(
    constructor: Callable[[], nn.Module], pairs: Pairs, tokenizer: Any, **options: Any
) -> functools.partial:
    """A teacher that is built and trained anew for every seed; call it with a seed.

    With one teacher for all seeds, intervals speak of other students of *this* teacher only.

    Args:
        constructor: builds the network.
        pairs, tokenizer, options: of `fit`.
    """
    plain = tuple((prompt, response) for prompt, response in pairs)  # identified at once
    return functools.partial(drawn, constructor, plain, tokenizer, **options)


@recipes.safe
def drawn(
    constructor: Callable[[], nn.Module], pairs: Pairs, tokenizer: Any, seed: int, **options: Any
) -> nn.Module:
    """The teacher of one seed that `fresh` describes."""
    own = inputs.seed("seed", seed) + TEACHERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        network = constructor()
    return trained(network, pairs, tokenizer, seed=own, **options)


class _Kit(NamedTuple):
    """The `Layout` of the kit's tokenizers."""

    tokenizer: tokenizers.Tokenizer
    pad: int = tokenizers.PAD
    end: int = tokenizers.END

    def batch(self, examples: Pairs, context: int) -> Batch:
        return tokenizers.batch(examples, self.tokenizer, context)

    def prompt_tokens(self, prompts: Sequence[str], context: int | None = None) -> Tensor:
        return tokenizers.prompt_tokens(prompts, self.tokenizer, context)


def _layout(tokenizer: Any) -> Any:
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return _Kit(tokenizer)
    asked = ("pad", "end", "fingerprint", "batch", "prompt_tokens")
    if all(hasattr(tokenizer, name) for name in asked):
        return tokenizer
    raise TypeError(
        f"tokenizer must be a Tokenizer of the kit or of language.hf, got "
        f"{inputs.describe(tokenizer)}"
    )


def _moved(data: Batch, device: torch.device) -> Batch:
    return Batch(*(part.to(device) for part in data))


@contextmanager
def _threads(student: nn.Module, tokens: int) -> Iterator[None]:
    """One thread while a small network trains: two would wait for each other."""
    before = torch.get_num_threads()
    if 2 * tokens * sum(parameter.numel() for parameter in student.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fixed(student: nn.Module, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a training that goes on from a checkpoint must share: the identity of each setting."""
    bare = copy.deepcopy(student)
    with torch.no_grad():
        for value in (*bare.parameters(), *bare.buffers()):
            value.zero_()  # the weights are looked at by themselves
    trained = [name for name, value in student.named_parameters() if value.requires_grad]
    fixed = {**settings, "student": (bare, trained), "method": METHODS[settings["method"]]}
    fixed["tokenizer"] = settings["tokenizer"].fingerprint
    for name in ("pairs", "validation"):
        texts = settings[name] or ()
        fixed[name] = digest(*(text for pair in texts for text in pair))
    return {name: identity(value, name) for name, value in fixed.items()}


def _check_networks(student: nn.Module, teacher: nn.Module | None, method: str) -> None:
    """Language models that share no weights, and a teacher where the method takes one."""
    options_of(method)
    for name, network in {"student": student, "teacher": teacher}.items():
        if network is not None or name == "student":
            inputs.instance(name, network, nn.Module)
            hint = "give it a context and new_cache, as GPT has"
            inputs.instance(name, network, LanguageModel, hint)
    if teacher is None:
        if method != "sft":
            raise ValueError(f"teacher must be a network for method {method!r}, got None")
        return
    if method == "sft":
        raise ValueError("teacher must be None for method 'sft', which takes none")
    own = set(map(id, student.parameters()))
    if own & set(map(id, teacher.parameters())):
        raise ValueError(
            "teacher must be another network, got the student or a part of it: use copy.deepcopy"
        )


@torch.no_grad()
def _check_vocabularies(networks: list[nn.Module], least: int, prompt: Tensor) -> None:
    sizes = []
    for name, network in zip(("student", "teacher"), networks):
        with evaluating(network):
            logits = network(prompt[:, -1:], padding=None)
        if logits.isnan().any():
            raise ValueError(f"{name} must give numbers as logits, got NaN: check its training")
        sizes.append(logits.shape[-1])
    if sizes[0] < least:
        raise ValueError(
            f"student must have the tokenizer's vocabulary of {least} tokens, got {sizes[0]}"
        )
    if len(set(sizes)) > 1:
        raise ValueError(
            f"teacher must have the student's vocabulary of {sizes[0]} tokens, got {sizes[1]}: "
            "train both with one tokenizer"
        )
