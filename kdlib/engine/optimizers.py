"""Optimizers by name, or made by a function of your own.

A maker takes named parameters, the peak learning rate and the weight decay, and returns one
optimizer or several. Each parameter group keeps its own peak rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from kdlib import inputs, recipes

Named = Sequence[tuple[str, nn.Parameter]]
Maker = Callable[..., "Optimizer | Sequence[Optimizer]"]

BLOCKS = ("blocks", "layers", "h")  # names under which networks keep their repeated blocks


@recipes.safe
def adamw(named: Named, lr: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019) with PyTorch's betas, fused where that exists."""
    parameters = [parameter for _, parameter in named]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


@recipes.safe
def sgd(named: Named, lr: float, weight_decay: float, *, momentum: float = 0.9) -> Optimizer:
    """Stochastic gradient descent with momentum: the published recipe for CIFAR."""
    parameters = [parameter for _, parameter in named]
    return SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum)


@recipes.safe
def muon(
    named: Named,
    lr: float,
    weight_decay: float,
    *,
    matrix_lr: float = 0.02,
    momentum: float = 0.95,
) -> list[Optimizer]:
    """Muon (Jordan 2024) for the matrices inside of blocks, AdamW with `lr` for the rest.

    A matrix counts if a part of its dotted name is "blocks", "layers" or "h". Embeddings,
    classifiers, convolutions, vectors and a method's own heads are left to AdamW.
    """
    inputs.number("matrix_lr", matrix_lr, above=0)
    matrices = [p for name, p in named if p.ndim == 2 and set(name.split(".")) & set(BLOCKS)]
    if not matrices:
        raise ValueError(
            f"optimizer 'muon' must find matrices in modules named {', '.join(BLOCKS)}, got "
            "none: use 'adamw'"
        )
    chosen = set(map(id, matrices))
    rest = [(name, parameter) for name, parameter in named if id(parameter) not in chosen]
    first = torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, momentum=momentum)
    return [first, adamw(rest, lr, weight_decay)] if rest else [first]


OPTIMIZERS: dict[str, Maker] = {"adamw": adamw, "sgd": sgd, "muon": muon}


def create(
    optimizer: str | Maker,
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
) -> list[Optimizer]:
    """The optimizers of a training, for those of the parameters that ask for a gradient.

    Raises:
        ValueError: an unknown name, no parameter to train, or a rate out of range.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trained:
        raise ValueError("the objective must have parameters with requires_grad=True, got none")
    inputs.number("lr", lr, above=0)
    inputs.number("weight_decay", weight_decay, low=0)
    if isinstance(optimizer, str):
        optimizer = OPTIMIZERS[inputs.choice("optimizer", optimizer, tuple(OPTIMIZERS))]
    made = optimizer(trained, lr=lr, weight_decay=weight_decay)
    return [made] if isinstance(made, Optimizer) else list(made)
