"""A digit drawn by hand, read by several networks at once, in the browser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import inputs, show
from kdlib.stages import predict
from kdlib.widgets.moving import Moving, floats, grey

ALT = (
    "A handwritten digit, and beside it the probabilities that each of several networks gives to "
    "the ten classes."
)
SIDE = 28  # pixels of an image of MNIST
NEAR = 1e-3  # how far a copy's logits may be from the network's: float32 in another order
# They do nothing to an image when evaluated; a Sequential that counts as a leaf is empty.
PASSED = (nn.Flatten, nn.Dropout, nn.Identity, nn.Sequential)


def draw(networks: Mapping[str, nn.Module], images: Tensor) -> Moving:
    """A field to draw a digit in, and the answers of fully connected networks to it.

    The browser computes the answers from the networks' weights. A drawing is scaled into 20 x 20
    pixels and moved until its centre of mass lies in the middle of 28 x 28, as the digits of MNIST
    were (LeCun, Bottou, Bengio and Haffner 1998, section III.A).

    Args:
        networks: {name: network [n, 1, 28, 28] -> logits [n, classes]} of linear layers with ReLU
            between them, all with as many classes; dropout is left out, as in evaluation.
        images: [n, 1, 28, 28], values in [0, 1], examples to choose from; the first one is shown.

    Raises:
        TypeError, ValueError: a network is built otherwise; an argument of the wrong kind.
    """
    inputs.images("images", images, channels=(1,), unit=True)
    if images.shape[2:] != (SIDE, SIDE):
        raise ValueError(
            f"images must be [n, 1, {SIDE}, {SIDE}], got {list(images.shape)}: a drawing is made "
            "for digits of MNIST at full size"
        )
    if not isinstance(networks, Mapping) or not networks:
        raise TypeError(
            f"networks must be a dictionary {{name: network}}, got {inputs.describe(networks)}"
        )
    copies, answers = {}, {}
    for name, network in networks.items():
        copies[str(name)] = layers(f"networks[{name!r}]", network, images)
        answers[str(name)] = F.softmax(predict(network, images[:1])[0].double(), 0).cpu()
    sizes = {name: len(found) for name, found in answers.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"networks must have as many classes as each other, got {sizes}")
    still, axes = show.figure(1, 1 + len(answers), height=2.2, squeeze=False)
    axes[0, 0].imshow(images[0, 0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set(xticks=[], yticks=[], title="the digit")
    for axis, (name, answer) in zip(axes[0, 1:], answers.items()):
        colours = [show.BLUE if one == answer.max() else show.GREY for one in answer]
        axis.bar(range(len(answer)), answer.numpy(), color=colours)
        axis.set(title=name, xlabel="class", xticks=range(len(answer)), ylim=(0, 1))
        axis.title.set_fontsize(9)
    data = {
        "examples": [grey(image) for image in images],
        "networks": [{"name": name, "layers": copy} for name, copy in copies.items()],
    }
    return Moving("drawing", still, ALT, data)


def layers(name: str, network: Any, images: Tensor) -> list[dict[str, Any]]:
    """The linear layers of a network as bytes: {"inputs", "outputs", "weight", "bias"} each.

    Raises:
        TypeError: it is no network of linear layers with ReLU between, or adds something to them.
    """
    inputs.instance(name, network, nn.Module)
    leaves = [one for one in network.modules() if not list(one.children())]
    kept = [one for one in leaves if not isinstance(one, PASSED)]
    rhythm = [nn.Linear if place % 2 == 0 else nn.ReLU for place in range(len(kept))]
    advice = "a browser computes linear layers with ReLU between them only: take such a network"
    if len(kept) % 2 == 0 or [type(one) for one in kept] != rhythm:
        listed = ", ".join(type(one).__name__ for one in kept) or "nothing"
        raise TypeError(f"{name} is built of {listed}: {advice}")
    signal, found = images.flatten(1), []
    for layer in kept[::2]:
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        size = {"inputs": layer.in_features, "outputs": layer.out_features}
        found.append({**size, "weight": floats(layer.weight), "bias": floats(bias)})
    with torch.no_grad():
        for layer in kept[:-1]:
            signal = layer(signal)
        copy = kept[-1](signal)
    gap = float((copy - predict(network, images)).abs().max())
    if not gap < NEAR:
        raise TypeError(f"{name} answers otherwise than its layers alone, by {gap:.3g}: {advice}")
    return found
