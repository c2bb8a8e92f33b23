"""The classifiers of torchvision, built so that the kit can train, tap and repeat them."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import inputs, recipes


@functools.cache
def names() -> tuple[str, ...]:
    """What torchvision's own `list_models` calls its classifiers; it is imported only here."""
    from torchvision import models

    return tuple(models.list_models(module=models))


@recipes.safe
def network(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    image_size: int = 224,
    pretrained: bool = False,
) -> nn.Module:
    """A classifier of torchvision, with `stages` where this module knows sensible ones.

    These are all its ResNets, ResNeXts, Swin and vision transformers, and mobilenet_v2; any other
    network is left without, and `network.stages = (...)` names them. What shows features to a tap
    is put in without parameters: names of weights stay torchvision's. Auxiliary classifiers are
    taken out.

    Args:
        name: one of `names()`.
        in_channels: 3, or 1: a gray image is read as three equal channels.
        num_classes: at least 1.
        image_size: pixels a side; only vision transformers and maxvit_t depend on it.
        pretrained: load torchvision's default weights, trained on ImageNet, with a new classifier
            unless num_classes is 1000. They expect normalised images (`weights.transforms()` says
            how); further training gets used to images in [0, 1].

    Raises:
        ValueError: an unknown name, a size or number of channels that the network cannot read.
        FileNotFoundError: the weights are neither on disk nor to be had.
    """
    inputs.choice("name", name, names())
    inputs.choice("in_channels", inputs.whole("in_channels", in_channels), (1, 3))
    num_classes, image_size = inputs.wholes(num_classes=num_classes, image_size=image_size)
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if not inputs.instance("pretrained", pretrained, bool):
        options["num_classes"] = num_classes
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True  # their default, which they warn about
    found = _built(name, options, pretrained, image_size)
    for part in ("aux1", "aux2", "AuxLogits"):
        if hasattr(found, part):
            setattr(found, part, None)
            found.aux_logits = False
    if pretrained and num_classes != 1000:
        _replace_classifier(found, num_classes)
    if in_channels == 1:
        _read_gray(found)
    stages = _stages(name, found)
    if stages:
        found.stages = stages
    return found


def _built(name: str, options: dict[str, Any], pretrained: bool, size: int) -> Any:
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT if pretrained else None
    try:
        return models.get_model(name, weights=weights, progress=False, **options)
    except OSError as error:  # urllib's errors are of this kind
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise FileNotFoundError(
            f"the weights of {name!r} are not on this machine and could not be downloaded "
            f"({error}). Connect once, or download {weights.url} elsewhere and copy it into "
            f"{folder}. pretrained=False needs no network."
        ) from error
    except (ValueError, AssertionError) as error:  # of those that depend on the size of the image
        reason = str(error).partition("\n")[0]
        raise ValueError(f"image_size must suit {name}, got {size}: {reason}") from error


def _replace_classifier(found: nn.Module, num_classes: int) -> None:
    """A new layer in place of the last one, which all of them end with."""
    layers = [(n, m) for n, m in found.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    name, last = layers[-1]
    if isinstance(last, nn.Conv2d):
        new: nn.Module = nn.Conv2d(last.in_channels, num_classes, 1)
    else:
        new = nn.Linear(last.in_features, num_classes)
    found.set_submodule(name, new)


def _read_gray(found: nn.Module) -> None:
    """One channel gives what three equal ones would: the weights of a pixel are added."""
    if getattr(found, "transform_input", False):
        raise ValueError("in_channels must be 3 where the network normalises its images, got 1")
    first = next(module for module in found.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1


class ChannelsFirst(nn.Module):
    """Hands maps [n, h, w, d] on, and shows them as [n, d, h, w] to a tap of `maps`."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _stages(name: str, found: Any) -> tuple[str, ...]:
    """Names of the stages, shallow to deep, the embedding last; () where none are known."""
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        return ("layer1", "layer2", "layer3", "layer4", "avgpool")
    if name == "mobilenet_v2":  # the last block of each resolution
        return (*(f"features.{i}" for i in (3, 6, 13, 17)), "classifier.0")
    if name.startswith("swin_"):
        for place in (1, 3, 5, 7):
            found.features[place].append(ChannelsFirst())
        ends = (f"features.{i}.{len(found.features[i]) - 1}.maps" for i in (1, 3, 5, 7))
        return (*ends, "flatten")
    if name.startswith("vit_"):  # no module of it gives the embedding alone
        parts = [("embedding", nn.Identity()), *found.heads.named_children()]
        found.heads = nn.Sequential(OrderedDict(parts))
        depth = len(found.encoder.layers)
        layers = (f"encoder.layers.encoder_layer_{depth * i // 4 - 1}" for i in (1, 2, 3, 4))
        return (*layers, "heads.embedding")
    return ()
