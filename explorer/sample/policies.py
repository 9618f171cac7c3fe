"""Policies: which strategy the n-th schedule of an exploration follows, and with which seed."""

from __future__ import annotations

from typing import Final

from mmurace.broker.schedules import RandomWalk, Schedule
from mmurace.explorer.sample.strategies import CountedWalk, Paces, Pct, Pos, Stall, Surw
from mmurace.nodes.driver import draw
from mmurace.protocol.errors import UserError

CALIBRATION_RUNS: Final = 20
"""Random walks from whose mean SURW takes its counts."""
DEPTHS: Final = (2, 3, 4)
"""Depths that PCT is run with, in turn."""

CYCLES: Final[dict[str, tuple[str, ...]]] = {
    "random": ("random",),
    "pos": ("pos",),
    "pct": tuple(f"pct{depth}" for depth in DEPTHS),
    "surw": ("surw",),
    "paces": ("paces",),
    "stall": ("stall",),
    # Each of stall, PCT and POS finds what the others do not.
    "portfolio": (
        "random", "stall", "pos", "pct2", "stall", "pos",
        "stall", "pct3", "pos", "stall", "pos", "stall",
    ),
}  # fmt: skip
"""Strategy -> the policies that its schedules follow in turn."""

ENGINES: Final = ("dpor", "stateful")
"""Exhaustive searches (``exhaustion.py``), which are no policies but are chosen as one is."""

STRATEGIES: Final = (*CYCLES, *ENGINES)
"""What ``explore --strategy`` can be."""

CALIBRATION: Final = {"pct": 1, "surw": CALIBRATION_RUNS}
"""Random walks that a strategy begins with, because it must know how long runs are."""


class Policies:
    """Hands out the schedules of one exploration, in order."""

    def __init__(self, strategy: str, seed: int) -> None:
        """Raises ``UserError`` for an unknown strategy."""
        if strategy not in CYCLES:
            raise UserError("--strategy", f"is {strategy!r}", f"one of {', '.join(CYCLES)}")
        self.strategy, self.seed = strategy, seed
        self.cycle = CYCLES[strategy]
        self.contested = 1
        """The most steps with a choice that a run had so far."""
        self.chains = 1
        """The most chains that a run under PCT had so far."""
        self._walks = 0
        self._interesting: dict[str, int] = {}

    def policy(self, index: int) -> str:
        """The policy of schedule ``index``, from 0."""
        calibration = CALIBRATION.get(self.strategy, 0)
        if index < calibration:
            return "random"
        return self.cycle[(index - calibration) % len(self.cycle)]

    def node_seed(self, index: int) -> int:
        """What the hardware's choices of schedule ``index`` are drawn with; fits in TOML."""
        return draw(self.seed, f"explore/nodes/{index}") >> 1

    def schedule(self, index: int) -> Schedule:
        """Schedule ``index``.  It depends on the seed and on the schedules before it."""
        policy = self.policy(index)
        seed = draw(self.seed, f"explore/{policy}/{index}")
        if policy == "pos":
            return Pos(seed)
        if policy == "paces":
            return Paces(seed)
        if policy == "stall":
            return Stall(seed)
        if policy == "surw":
            walks = max(1, self._walks)
            return Surw(seed, {name: n / walks for name, n in self._interesting.items()})
        if policy.startswith("pct"):
            return Pct(seed, int(policy[3:]), self.contested)
        return CountedWalk(seed) if self._walks < CALIBRATION_RUNS else RandomWalk(seed)

    def finished(self, schedule: Schedule) -> None:
        """Learn from a schedule that ran to its end."""
        if isinstance(schedule, CountedWalk):
            self._walks += 1
            for name, count in schedule.interesting.items():
                self._interesting[name] = self._interesting.get(name, 0) + count
        if isinstance(schedule, CountedWalk | Pct):
            self.contested = max(self.contested, schedule.contested)
        if isinstance(schedule, Pct):
            self.chains = max(self.chains, schedule.chains)
