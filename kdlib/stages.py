"""Reading a network: its stages by forward hooks, its answers in evaluation mode.

A network lists its stages in `model.stages`: dotted module names, shallow to deep, the last one the
embedding [n, d] in front of the classifier. Any `torch.nn.Module` will do once it has such a
tuple::

    net = torchvision.models.resnet18()
    net.stages = ("layer1", "layer2", "layer3", "layer4", "avgpool")
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdlib import inputs

BATCH = 250  # images a pass; larger ones leave the processor's cache and are no faster


def stage_names(model: nn.Module) -> tuple[str, ...]:
    """The stages that `model` declares, shallow to deep.

    Raises:
        ValueError: it declares none, or it is a compiled network.
        TypeError: `model` is not a network.
    """
    _plain(model)
    stages = getattr(model, "stages", None)
    if not isinstance(stages, (tuple, list)) or not all(isinstance(s, str) for s in stages):
        raise ValueError(
            f"{type(model).__name__} does not say where its features are: set model.stages to a "
            f"tuple of module names, shallow to deep, the embedding last. Its modules: "
            f"{', '.join(_module_names(model)) or 'none'}"
        )
    return tuple(stages)


def resolve_stage(model_or_names: nn.Module | Sequence[str], stage: str | int) -> str:
    """The name of a stage given by name or by index: 0 the first block, -2 the last, -1 the
    embedding. With a model, the name of any of its modules will do.

    Raises:
        ValueError: an unknown stage (the message lists the known ones), or a compiled network.
        TypeError: neither a network nor a sequence of names.
    """
    if isinstance(model_or_names, nn.Module):
        modules = _module_names(_plain(model_or_names))
        if isinstance(stage, str) and stage in modules:
            return stage
        declared = not isinstance(stage, str) or hasattr(model_or_names, "stages")
        known = stage_names(model_or_names) if declared else tuple(modules)
    else:
        known = tuple(inputs.instance("model_or_names", model_or_names, (list, tuple)))
    if isinstance(stage, str) and stage in known:
        return stage
    whole = isinstance(stage, numbers.Integral) and not isinstance(stage, bool)
    if whole and -len(known) <= int(stage) < len(known):
        return known[int(stage)]
    raise ValueError(
        f"unknown stage {stage!r}; known, shallow to deep: {', '.join(known) or 'none'}"
    )


def _module_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _plain(model: nn.Module) -> nn.Module:
    """The model, if hooks on its modules can be trusted."""
    if hasattr(inputs.instance("model", model, nn.Module), "_orig_mod"):
        raise ValueError(
            "the stages of a compiled network cannot be read: tap the plain network, the one that "
            "torch.compile was given (both share their weights)"
        )
    return model


class Tap:
    """Read the outputs of named stages by forward hooks, without changing the model.

    ::

        with Tap(model, ["blocks.1", "pool"]) as tap:
            logits, features = tap(images)      # features["pool"]: [n, d]

    Stages may be any dotted module names whose module returns one tensor. `features` holds the
    tensors of the latest forward pass, with their graph where one was built; one that the model
    changes in place later, as `ReLU(inplace=True)` does, is seen changed. Of a module that runs
    several times in one pass, the last output is kept. `close()`, or the end of the `with` block,
    removes the hooks; until then the model cannot be pickled.

    Raises:
        ValueError: an unknown stage, or a compiled network.
        TypeError: `stages` is one string, or a stage returns something else than one tensor.
        RuntimeError: a pass did not run a stage, or the tap is closed.
    """

    def __init__(self, model: nn.Module, stages: Sequence[str | int]) -> None:
        if isinstance(stages, str):
            raise TypeError(f"stages must be a sequence of names, got the string {stages!r}")
        self.model = _plain(model) if stages else model
        self.features: dict[str, Tensor] = {}
        self.stages = tuple(resolve_stage(model, stage) for stage in stages)
        self._handles: list[RemovableHandle] = [
            model.get_submodule(stage).register_forward_hook(self._reader(stage))
            for stage in self.stages
        ]

    def _reader(self, stage: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, arguments: Any, output: Any) -> None:
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
        logits = _run(self.model, images, "model")
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside the block; afterwards every module has its own former mode back."""
    inputs.instance("model", model, nn.Module, "wrap a function in a module")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def stage_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every declared stage, {"blocks.0": (16, 14, 14), ...}.

    A dry run of two images [n, ...], n >= 1, in evaluation mode without gradients: batch-norm
    statistics, the model's mode and the random state stay as they are. Errors as in `Tap`.
    """
    inputs.lengths(images=images)
    with evaluating(model), torch.no_grad(), Tap(model, stage_names(model)) as tap:
        _, features = tap(images[:2])
    return {stage: tuple(features[stage].shape[1:]) for stage in tap.stages}


def logits_of(model: nn.Module, images: Tensor, role: str = "model") -> Tensor:
    """One forward pass in the model's own mode: logits [n, classes] for images [n, ...].

    Raises:
        TypeError: the network (called `role` in the message) returns something else than logits, or
            has another floating-point type than the images.
        ValueError: it lives on another device than the images.
    """
    return inputs.logits(role, _run(model, images, role), len(images))


def _run(model: nn.Module, images: Tensor, role: str) -> Any:
    """A forward pass that names the two usual reasons why a network cannot read its images."""
    try:
        return model(images)
    except RuntimeError as error:
        weights = next(itertools.chain(model.parameters(), model.buffers()), images)
        if weights.device != images.device:
            raise ValueError(
                f"images must be where the {role} is, on {weights.device}, got {images.device}: "
                f"move one of them with .to(...)"
            ) from error
        if weights.dtype != images.dtype and weights.is_floating_point():
            raise TypeError(
                f"images must be {weights.dtype} as the {role}, got {images.dtype}: convert one "
                f"of them with .to(...)"
            ) from error
        raise


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [n, classes] of finite, floating-point `images` [n, ...], batch by batch.

    The model is evaluated: no dropout, batch-norm statistics as they are. Every module has its own
    mode back afterwards, and no graph is built. Errors as in `logits_of`; ValueError for no images
    or for NaN in them.
    """
    inputs.tensor("images", images)
    with evaluating(model):
        return torch.cat([logits_of(model, batch) for batch in images.split(BATCH)])
