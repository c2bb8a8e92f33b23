"""Networks by name, for a command line: `by_name("resnet20", in_channels=3, num_classes=100)`."""

from __future__ import annotations

import difflib
import functools

from kdlib import inputs
from kdlib.models import foreign
from kdlib.models.plain import MLP, VGG, ConvNet
from kdlib.models.residual import MobileNetV2, ResNet, WideResNet
from kdlib.models.tokens import Mixer, ViT

_KIT: dict[str, tuple[functools.partial, str]] = {
    "mlp-s": (functools.partial(MLP, (32, 32)), "two hidden layers of 32"),
    "mlp-m": (functools.partial(MLP, (128, 128)), "two hidden layers of 128"),
    "mlp-l": (functools.partial(MLP, (400, 400)), "two hidden layers of 400"),
    "convnet-s": (functools.partial(ConvNet, (8, 16, 32)), "three convolutions, 8 to 32 channels"),
    "convnet-m": (functools.partial(ConvNet, (16, 32, 64)), "the same, 16 to 64 channels"),
    "convnet-l": (functools.partial(ConvNet, (32, 64, 128)), "the same, 32 to 128 channels"),
    "vit-tiny": (functools.partial(ViT, 96, 6), "vision transformer, 6 blocks of 96 channels"),
    "mixer-tiny": (functools.partial(Mixer, 96, 6), "MLP-Mixer, 6 blocks of 96 channels"),
    **{
        f"resnet{depth}": (
            functools.partial(ResNet, depth),
            f"residual network of {depth} layers, 16 to 64 channels (He et al. 2016)",
        )
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}x4": (
            functools.partial(ResNet, depth, width=64, stem=32, shortcut="projected"),
            f"residual network of {depth} layers, 64 to 256 channels (RepDistiller)",
        )
        for depth in (8, 32)
    },
    **{
        f"wrn-{depth}-{widen}": (
            functools.partial(WideResNet, depth, widen),
            f"wide residual network of {depth} layers, {16 * widen} to {64 * widen} channels "
            "(Zagoruyko and Komodakis 2016)",
        )
        for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2))
    },
    "vgg8": (
        functools.partial(VGG, (1, 1, 1, 1, 1)),
        "five 3x3 convolutions, 64 to 512 channels (RepDistiller)",
    ),
    "vgg13": (
        functools.partial(VGG, (2, 2, 2, 2, 2)),
        "ten 3x3 convolutions, 64 to 512 channels (Simonyan and Zisserman 2015)",
    ),
    "mobilenetv2-half": (
        functools.partial(MobileNetV2, 0.5),
        "MobileNetV2 of half the width (Sandler et al. 2018; RepDistiller's mobile_half)",
    ),
}
NAMES: dict[str, str] = {name: line for name, (_, line) in _KIT.items()}


def by_name(
    name: str,
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 28,
    pretrained: bool = False,
) -> functools.partial:
    """A constructor without arguments, as `training.build` and `experiments.compare` take it.

    It is a `functools.partial` of something that can be imported, so that runs with it can be
    repeated from their records.

    Args:
        name: one of `NAMES`, or any classifier that torchvision lists ("resnet18"); where both
            know a name ("vgg13"), it is the kit's. Capitals do not matter.
        in_channels: of the images [n, in_channels, image_size, image_size].
        num_classes: of the logits [n, num_classes].
        image_size: pixels a side; convolutional networks read other sizes, too.
        pretrained: torchvision's default weights; see `foreign.network`, whose errors are those of
            the constructor. The kit has none for its own networks.

    Raises:
        ValueError: an unknown name (the message has the nearest ones), sizes out of range, weights
            that do not exist.
        TypeError: an argument of another type.
    """
    name = inputs.instance("name", name, str).lower()
    in_channels, num_classes, image_size = inputs.wholes(
        in_channels=in_channels, num_classes=num_classes, image_size=image_size
    )
    inputs.instance("pretrained", pretrained, bool)
    sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
    if name in _KIT:
        if pretrained:
            raise ValueError(
                f"pretrained must be False for {name!r}, a network of the kit: weights exist for "
                "torchvision's, such as 'resnet18'"
            )
        return _sized(_KIT[name][0], **sizes)
    if name in foreign.names():
        return functools.partial(foreign.network, name, **sizes, pretrained=pretrained)
    near = difflib.get_close_matches(name, [*_KIT, *foreign.names()], n=4)
    raise ValueError(
        f"name must be one of models.NAMES or a classifier of torchvision, got {name!r}: "
        + (f"the nearest: {', '.join(near)}" if near else f"the kit has {', '.join(_KIT)}")
    )


def _sized(
    constructor: functools.partial, in_channels: int, num_classes: int, image_size: int
) -> functools.partial:
    """The constructor with the sizes that its class asks for."""
    if constructor.func is MLP:
        values = in_channels * image_size**2
        return functools.partial(constructor, in_features=values, num_classes=num_classes)
    if constructor.func in (ViT, Mixer):
        constructor = functools.partial(constructor, image_size=image_size)
    return functools.partial(constructor, in_channels=in_channels, num_classes=num_classes)
