"""What a benchmark found: rows, as JSON and as a Markdown table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdlib.benchmarks.clock import Ratio


@dataclass
class Row:
    """One comparison, or the reason why there is none.

    Attributes:
        benchmark: the name under which `--only` finds it.
        what: what was compared, "A / B".
        unit: what the ratio is of: "time", "speed", "memory".
        ratio, low, high: median of the rounds, and their quartiles.
        rounds: how many there were.
        goal: such as "<= 1.05"; empty: none.
        values: figures behind the ratio, such as images a second.
        device, threads: where it was measured.
        unmeasured: why there is no ratio.
        details: whatever else was found, for the JSON file.
    """

    benchmark: str
    what: str
    unit: str = "time"
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    goal: str = ""
    values: dict[str, float] = field(default_factory=dict)
    device: str = ""
    threads: int = 1
    unmeasured: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the goal; None without one."""
        found = re.fullmatch(r"(<=|>=) ([\d.]+)", self.goal)
        if found is None or self.ratio is None:
            return None
        least = float(found[2])
        return self.ratio <= least if found[1] == "<=" else self.ratio >= least

    @classmethod
    def measured(cls, benchmark: str, what: str, ratio: Ratio, **more: Any) -> Row:
        """From a ratio of times."""
        row = cls(benchmark, what, **more)
        row.take(ratio)
        return row

    def take(self, ratio: Ratio) -> None:
        """Fill in what was measured."""
        self.ratio, self.low, self.high, self.rounds = *ratio[:3], ratio.rounds


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as JSON values."""
    return [dataclasses.asdict(row) for row in rows]


def from_json(found: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows of a file that `as_json` made."""
    return [Row(**one) for one in found]


def markdown(rows: Sequence[Row]) -> str:
    """A table, one row a comparison; what was not measured says so."""
    head = ["compared", "of", "ratio", "middle half", "goal", "figures", "device", "threads"]
    lines = [head, ["---", "---", "--:", "--:", "---", "---", "---", "--:"]]
    lines += [_cells(row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(row: Row) -> list[str]:
    if row.ratio is None:
        spread, ratio = "", f"unmeasured: {row.unmeasured or 'no reason was given'}"
        if not row.unmeasured and row.values:
            ratio = ""  # figures without anything to divide them by
    else:
        ratio = f"{row.ratio:.2f}"
        spread = "" if row.low is None else f"{row.low:.2f} to {row.high:.2f}"
    goal = row.goal and row.goal + {None: "", True: ", met", False: ", missed"}[row.met]
    figures = "; ".join(f"{name} {_short(value)}" for name, value in row.values.items())
    cells = [row.what, row.unit, ratio, spread, goal, figures, row.device, str(row.threads)]
    return [" ".join(cell.replace("|", "\\|").split()) for cell in cells]


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def apart(rows: Sequence[Row], before: Sequence[Row], room: float = 0.1) -> list[str]:
    """A line for each ratio that differs from an earlier run's by more than `room` of it."""
    known = {(row.benchmark, row.what, row.device): row.ratio for row in before}
    lines = []
    for row in rows:
        earlier = known.get((row.benchmark, row.what, row.device))
        if row.ratio is None or earlier is None:
            continue
        if abs(row.ratio / earlier - 1) > room:
            lines.append(f"{row.benchmark}: {row.what}: {row.ratio:.2f}, before {earlier:.2f}")
    return lines
