"""Our networks. A record names them by this module, so that anybody can repeat its run."""

from __future__ import annotations

from torch import Tensor, nn


class Small(nn.Module):
    """A student of our own: two convolutions, then the mean over the image.

    Images [n, 1, 28, 28] -> logits [n, classes]. `stages` names what feature methods may read.
    """

    stages = ("first", "second")

    def __init__(self, width: int = 8, *, num_classes: int = 10) -> None:
        super().__init__()
        self.first = self._block(1, width)
        self.second = self._block(width, 2 * width)
        self.classifier = nn.Linear(2 * width, num_classes)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(images)).mean((2, 3)))
