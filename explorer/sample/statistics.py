"""The statistics of sampling: intervals, what was not seen, what a run without a bug proves.

Sources: Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, JASA 1927
(interval); Good, *The Population Frequencies of Species*, Biometrika 1953 (unseen mass); Hanley
and Lippman-Hand, *If Nothing Goes Wrong, Is Everything All Right?*, JAMA 1983 (rule of three).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, log1p, sqrt
from typing import Final

Z_95: Final = 1.959963984540054
"""The two-sided 95 % point of the normal distribution."""
RULE_OF_THREE: Final = 3.0
"""-ln(0.05), rounded up as is usual."""


def wilson(hits: int, runs: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson interval of a probability: (lower, upper); (0, 1) if nothing was run."""
    if runs == 0:
        return 0.0, 1.0
    rate, square = hits / runs, z * z
    centre = rate + square / (2 * runs)
    spread = z * sqrt(rate * (1 - rate) / runs + square / (4 * runs * runs))
    scale = 1 + square / runs
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def at_most(runs: int) -> float:
    """What a probability is at most (95 %) that showed itself in none of so many runs."""
    return min(1.0, RULE_OF_THREE / runs) if runs else 1.0


def unseen_mass(once: int, runs: int) -> float:
    """Good-Turing: the probability that the next run shows what none has shown.

    ``once``: how many different things were seen exactly once.
    """
    return once / runs if runs else 1.0


def pct_bound(chains: int, steps: int, depth: int) -> float:
    """What PCT finds a bug of this depth with, at least, in one run.

    1 / (chains * steps^(depth - 1)), of Burckhardt et al., *A Randomized Scheduler with
    Probabilistic Guarantees of Finding Bugs*, ASPLOS 2010, with chains of messages for threads
    (Ozkan et al., *Randomized Testing of Distributed Systems with Probabilistic Guarantees*,
    OOPSLA 2018).
    """
    bound: float = 1 / (max(1, chains) * max(1, steps) ** (depth - 1))
    return bound


def missed_by(bound: float, runs: int) -> float:
    """The probability that so many runs all miss what each finds with at least ``bound``."""
    return 0.0 if bound >= 1 and runs else 1 + expm1(runs * log1p(-min(bound, 1 - 1e-16)))


def median(values: Sequence[float]) -> float:
    """The middle value, of an even number the lower one of the two; values must not be empty."""
    return sorted(values)[(len(values) - 1) // 2]
