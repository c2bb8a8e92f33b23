"""Whether anything of a team's runs, how, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass

NOT_RUN = "nothing was run (--no-run)"
LEAST = 10.0  # seconds that are worth a start


@dataclass
class Clock:
    """How things are run, and how long that may still take.

    Attributes:
        run: whether anything is.
        trust: without a sandbox.
        seconds: for all of it.
        seed: of the sample.
    """

    run: bool
    trust: bool
    seconds: float
    seed: int

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())

    def share(self, percent: int) -> float:
        """Seconds that are kept for what comes later."""
        return self.seconds * percent / 100
