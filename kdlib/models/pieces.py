"""What several networks share: the check of their images, the mean as a layer, initial weights."""

from __future__ import annotations

from torch import Tensor, nn

from kdlib import inputs


def check_images(model: nn.Module, images: Tensor, channels: int, smallest: int) -> None:
    """Reject what would otherwise fail deep inside a layer, with a message about the images."""
    name = type(model).__name__
    hint = "set in_channels when building the network, or reshape the images"
    inputs.images(f"images for {name}", images, channels=(channels,), finite=False, hint=hint)
    if min(images.shape[2:]) < smallest:
        raise ValueError(
            f"images for {name} must have at least {smallest} x {smallest} pixels, got "
            f"{images.shape[2]} x {images.shape[3]}: use fewer stages or larger images"
        )


def scale_for_relu(model: nn.Module) -> None:
    """Draw the weights of all convolutions anew, and set their biases to 0 (He et al. 2015).

    PyTorch's default is too small for a deep ReLU network.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Mean(nn.Module):
    """Mean over the given dimensions: global average pooling as a module that can be tapped."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)
