"""Reading a network: its stages by forward hooks, its answers in evaluation mode.

A network lists its stages in `model.stages`: dotted module names, shallow to deep, the last one the
embedding [n, d] in front of the classifier. Any `torch.nn.Module` will do once it has such a
tuple::

    net = torchvision.models.resnet18()
    net.stages = ("layer1", "layer2", "layer3", "layer4", "avgpool")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from kdlib import inputs

BATCH = 250  # images a pass; larger ones leave the processor's cache and are no faster


def stage_names(model: nn.Module) -> tuple[str, ...]:
    """The stages that `model` declares; a clear error where it does not declare any."""
    stages = getattr(model, "stages", None)
    if not isinstance(stages, (tuple, list)) or not all(isinstance(s, str) for s in stages):
        raise ValueError(
            f"{type(model).__name__} does not say where its features are: set model.stages to a "
            f"tuple of module names, shallow to deep, the embedding last. Its modules: "
            f"{', '.join(_module_names(model)) or 'none'}"
        )
    return tuple(stages)


def _module_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def resolve_stage(model_or_names: nn.Module | Sequence[str], stage: str | int) -> str:
    """The name of a stage given by name or by index: 0 the first block, -2 the last, -1 the
    embedding. With a model, the name of any of its modules will do. ValueError for an unknown
    stage, listing the known ones."""
    if isinstance(model_or_names, nn.Module):
        modules = _module_names(model_or_names)
        if stage in modules:
            return stage
        declared = isinstance(stage, int) or hasattr(model_or_names, "stages")
        known = stage_names(model_or_names) if declared else tuple(modules)
    else:
        known = tuple(model_or_names)
    if stage in known:
        return stage
    if isinstance(stage, int) and -len(known) <= stage < len(known):
        return known[stage]
    raise ValueError(
        f"unknown stage {stage!r}; known, shallow to deep: {', '.join(known) or 'none'}"
    )


class Tap:
    """Read the outputs of named stages by forward hooks, without changing the model.

    ::

        with Tap(model, ["blocks.1", "pool"]) as tap:
            logits, features = tap(images)      # features["pool"]: [n, d]

    Stages may be any dotted module names whose module returns one tensor. `features` holds the
    tensors of the latest forward pass, with their graph where one was built; one that the model
    changes in place later, as `ReLU(inplace=True)` does, is seen changed. `close()`, or the end of
    the `with` block, removes the hooks; until then the model cannot be pickled.
    """

    def __init__(self, model: nn.Module, stages: Sequence[str]):
        self.model, self.features = model, {}
        if isinstance(stages, str):
            raise TypeError(f"stages must be a sequence of names, got the string {stages!r}")
        self.stages = tuple(resolve_stage(model, stage) for stage in stages)
        self._handles = [
            model.get_submodule(stage).register_forward_hook(self._reader(stage))
            for stage in self.stages
        ]

    def _reader(self, stage: str):
        def read(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"stage {stage!r} returns {type(output).__name__}, not a tensor; "
                    f"tap a module whose output is one tensor"
                )
            self.features[stage] = output

        return read

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass: the model's output, and {stage: output of the stage}."""
        self.features.clear()
        logits = self.model(images)
        for stage in self.stages:
            if stage not in self.features:
                reason = "the tap is closed" if not self._handles else "forward did not run it"
                raise RuntimeError(f"stage {stage!r} gave no output: {reason}")
        return logits, dict(self.features)

    def close(self) -> None:
        """Remove the hooks; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside the block; afterwards every module has its own former mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def stage_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every declared stage, {"blocks.0": (16, 14, 14), ...}.

    A dry run of two images [n, ...] in evaluation mode without gradients: batch-norm statistics,
    the model's mode and the random state stay as they are.
    """
    inputs.lengths(images=images)
    with evaluating(model), torch.no_grad(), Tap(model, stage_names(model)) as tap:
        _, features = tap(images[:2])
    return {stage: tuple(features[stage].shape[1:]) for stage in tap.stages}


def logits_of(model: nn.Module, images: Tensor, role: str = "model") -> Tensor:
    """One forward pass [n, classes]; a clear error where the network returns something else."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise TypeError(
            f"{role} must return logits [n, classes] for images [n, ...], got "
            f"{inputs.describe(logits)}: wrap it in a module that returns the logits alone"
        )
    return logits


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [n, classes] of `images` [n, ...] in evaluation mode, batch by batch.

    Every module has its own mode back afterwards, and no graph is built.
    """
    inputs.lengths(images=images)
    with evaluating(model):
        return torch.cat([logits_of(model, batch) for batch in images.split(BATCH)])
