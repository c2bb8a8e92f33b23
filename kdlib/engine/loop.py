"""The training loop that everything shares: an objective, its batches, its optimizers.

An objective is a module that turns one batch into named loss terms. Image distillation is one.
Batches are drawn one by one, so they may be sampled from the student that is being trained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdlib import inputs, recipes
from kdlib.engine import ranks
from kdlib.engine.checkpoints import Checkpoint, History, Stateful
from kdlib.engine.progress import bar

Batches = Callable[[int, torch.Generator], Iterable[Any]]  # (epoch from 1, its random numbers)
Schedule = Callable[[float], float]  # share of the training that is over -> share of the peak rate


class NotFinite(FloatingPointError):
    """What became infinite or NaN, and in which step of the epoch (0: the current one)."""

    def __init__(self, what: str, step: int = 0):
        super().__init__(what)
        self.what, self.step = what, step


@recipes.safe
def warmup_cosine(progress: float) -> float:
    """Linear warm-up over the first tenth, then half a cosine down to 0."""
    if progress < 0.1:
        return progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


@recipes.safe
def published_steps(progress: float) -> float:
    """A tenth of the rate after 150, 180 and 210 of 240 epochs: the recipe of RepDistiller."""
    return 0.1 ** sum(progress >= mark / 240 for mark in (150, 180, 210))


def optimise(
    objective: nn.Module,
    batches: Batches,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    epochs: int,
    steps: int,
    schedule: Schedule = warmup_cosine,
    precision: str | None = None,
    clip: float | None = None,
    seed: int = 0,
    stop_after: int | None = None,
    after_epoch: Callable[[int], Mapping[str, float]] | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    progress: bool = True,
) -> History:
    """Minimise the sum of the objective's terms over `epochs` times `steps` batches, in place.

    Each epoch seeds all random numbers anew from `seed` and its number, so an interrupted training
    that goes on from its checkpoint ends with the bits of an uninterrupted one. Under `torchrun`
    gradients are averaged over the processes.

    Args:
        objective: a module, batch -> {name of a term: scalar}.
        batches: batches(epoch, generator) gives at least `steps` batches. If it has a
            `state_dict`, that is kept in the checkpoint too.
        optimizer: one or several; each parameter group's rate is its peak.
        schedule: a function of the training's progress in (0, 1), taken in the middle of a step.
        precision: None, or "bf16" to run the objective under autocast.
        clip: largest norm of the gradient, over all parameters.
        stop_after: epochs after which to stop, the schedule being that of `epochs`.
        after_epoch: called with the epoch's number; what it returns joins the history.
        checkpoint: written after every epoch; if the file exists, training goes on from it.
        progress: show a bar with the time left.

    Returns:
        One dictionary an epoch: "epoch", "loss", the mean of each term, `after_epoch`'s values.

    Raises:
        FloatingPointError: a term became infinite or NaN; names the term, the epoch and the step.
            The objective is left as it was after the last finished epoch.
        ValueError: an argument is out of range, or `batches` ended early.
    """
    inputs.whole("epochs", epochs)
    inputs.whole("steps", steps)
    inputs.choice("precision", precision, (None, "bf16"))
    last = (
        epochs if stop_after is None else inputs.whole("stop_after", stop_after, low=0, high=epochs)
    )
    if clip is not None:
        inputs.number("clip", clip, above=0)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    parts = _parts(objective, optimizers, batches)
    if checkpoint is not None:
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(Path(checkpoint), {})
        own = {"loop": [epochs, steps, seed, clip, precision], "optimizers": _hyper(optimizers)}
        checkpoint = checkpoint._replace(settings={**checkpoint.settings, **own})
    history = [] if checkpoint is None else checkpoint.resume(parts)
    if len(history) > last:
        raise ValueError(f"stop_after must be at least {len(history)}, as the checkpoint holds")
    if checkpoint is not None and history:
        checkpoint = checkpoint._replace(begun=checkpoint.read()["weights"][0])
    ranks.agree("the number of epochs in the checkpoint", len(history))
    groups = [group for one in optimizers for group in one.param_groups]  # after the resume
    peaks = [group["lr"] for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    device = parameters[0].device
    rank, _ = ranks.join()
    module = ranks.wrap(objective)
    half = torch.autocast(device.type, torch.bfloat16) if precision else nullcontext()

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        ranks.joined(objective),
        ranks.lost_peers(),
        bar(last, "epochs", enabled=progress and rank == 0) as ticker,
    ):
        ticker.update(len(history))
        for epoch in range(len(history) + 1, last + 1):
            good = {name: value.clone() for name, value in objective.state_dict().items()}
            objective.train()
            seen: dict[str, list[Tensor]] = {}
            step = 0
            try:
                with _seeded((1_000_003 * seed + epoch) % 2**63, device) as generator:
                    for step, batch in _counted(batches(epoch, generator), steps, epoch):
                        done = ((epoch - 1) * steps + step - 0.5) / (epochs * steps)
                        for group, peak in zip(groups, peaks):
                            group["lr"] = peak * schedule(done)
                        with half:
                            terms = module(batch)
                        for name, value in terms.items():
                            seen.setdefault(name, []).append(value.detach())
                        loss = sum(terms.values())
                        if device.type == "cpu" and not math.isfinite(loss.item()):
                            break  # on an accelerator this look would cost a wait
                        for one in optimizers:
                            one.zero_grad(set_to_none=True)
                        loss.backward()
                        if clip is not None:
                            nn.utils.clip_grad_norm_(parameters, clip)
                        for one in optimizers:
                            one.step()
                means = _means(seen)
                if step < steps:
                    raise NotFinite("the sum of the terms became infinite")
                if not all(bool(value.isfinite().all()) for value in parameters):
                    raise NotFinite("a weight became infinite or NaN", steps)
            except NotFinite as error:
                objective.load_state_dict(good)
                raise FloatingPointError(
                    f"{error.what} in epoch {epoch}, step {error.step or step}: lower lr or the "
                    "weight of a loss term, or set clip. The networks are as they were after "
                    f"epoch {epoch - 1}"
                ) from None
            except BaseException:  # an interrupted epoch leaves no half-trained network
                objective.load_state_dict(good)
                raise
            history.append({"epoch": epoch, "loss": sum(means.values())} | means)
            watched = {} if after_epoch is None else after_epoch(epoch)
            history[-1] |= watched
            for group, peak in zip(groups, peaks):
                group["lr"] = peak  # so that a checkpoint holds the peaks
            if checkpoint is not None and rank == 0:
                checkpoint.save(history, parts)
            shown = {"loss": f"{history[-1]['loss']:.3f}"}
            shown |= {name: f"{value:.3g}" for name, value in watched.items()}
            ticker.set_postfix(shown, refresh=False)
            ticker.update()
    return history


def _hyper(optimizers: list[Optimizer]) -> list[list[str]]:
    """The settings of the optimizers' groups, in words that JSON holds."""
    return [
        [str({k: v for k, v in group.items() if k != "params"}) for group in one.param_groups]
        for one in optimizers
    ]


def _parts(
    objective: nn.Module, optimizers: list[Optimizer], batches: Batches
) -> dict[str, Stateful]:
    """What a checkpoint holds."""
    parts: dict[str, Any] = {"objective": objective}
    parts |= {f"optimizer {number}": one for number, one in enumerate(optimizers)}
    return parts | ({"batches": batches} if hasattr(batches, "state_dict") else {})


def _counted(batches: Iterable[Any], steps: int, epoch: int) -> Iterator[tuple[int, Any]]:
    """(number from 1, batch) of `steps` batches, or a ValueError if there are fewer."""
    step = 0
    for step, batch in zip(range(1, steps + 1), batches):
        yield step, batch
    if step < steps:
        raise ValueError(f"batches must give {steps} batches, got {step} in epoch {epoch}")


def _means(seen: dict[str, list[Tensor]]) -> dict[str, float]:
    """Mean of each term over the steps."""
    means = {}
    for name, values in seen.items():
        found = torch.stack(values).cpu().double()
        wrong = (~found.isfinite()).nonzero()
        if len(wrong):
            step = int(wrong[0])
            raise NotFinite(f"term {name!r} became {found[step].item()}", step + 1)
        means[name] = found.mean().item()
    return means


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator with this seed; the states of torch, numpy and random too, until the end."""
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])
