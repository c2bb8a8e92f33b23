"""What a measurement is told: the device, and how thorough it shall be."""

from __future__ import annotations

from typing import NamedTuple

import torch

from kdlib import inputs

SCALES = ("full", "quick", "smoke")


class Plan(NamedTuple):
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        scale: "full"; "quick", with fewer rounds; "smoke", which runs everything once on tiny
            sizes, finds errors, and measures nothing.
        peer: folder of a published repository, or of another version of the kit.
    """

    device: str = "cpu"
    scale: str = "full"
    peer: str | None = None

    @property
    def smoke(self) -> bool:
        return self.scale == "smoke"

    @property
    def where(self) -> torch.device:
        return torch.device(self.device)

    def rounds(self, full: int, quick: int = 3) -> int:
        """Rounds of a comparison at this scale."""
        return {"full": full, "quick": quick, "smoke": 1}[
            inputs.choice("scale", self.scale, SCALES)
        ]

    def sized(self, whole: int, tiny: int) -> int:
        """A size: the whole one, or the tiny one in a smoke test."""
        return tiny if self.smoke else whole


def machine(device: str) -> str:
    """The device's name, for a row."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return "CPU"
