"""Operations by what they do to entries, and whose turn it can be in a hunt.

There are many calls and few functions that change entries: two operations that end in the same one
race in the same way, mostly.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from mmurace.campaign.hunt.rows import calls_of, names_of_secondaries
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import named, secondaries
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation, operation_kinds

Pair = tuple[str, str]
"""Two groups (``group_of``)."""
Turn = tuple[Pair, tuple[str, ...]]
"""A pair, and the secondaries beside which it is."""


def kinds_on_cpus() -> list[type[Operation]]:
    """Operations that a processor can be asked for."""
    elsewhere = {kind for one in secondaries() for kind in one.accesses}
    return [kind for kind in operation_kinds() if kind not in elsewhere]


def group_of(kind: type[Operation]) -> str:
    """What an operation does to entries, as the kernel function that does it is called."""
    return kind.CHANGES or kind.FUNCTION or kind.__name__


SHARE: Final = 0.75
"""1: every operation has as many turns as any other; 0: every group."""
SELDOM: Final = (ops.Exit, ops.Execve, ops.Brk)
"""Within its group an operation is drawn seldom that needs much else, or ends a process."""


def of_files(group: str) -> bool:
    """Whether only operations on files do that."""
    kinds = [kind for kind in kinds_on_cpus() if group_of(kind) == group]
    return bool(kinds) and all("file" in kind.__struct_fields__ for kind in kinds)


def sizes_of_groups() -> Counter[str]:
    """Groups of what core mm does on processors, with their numbers of operations."""
    calls = {kind for one in secondaries() for kind in one.calls}
    return Counter(group_of(kind) for kind in kinds_on_cpus() if kind not in calls)


def turns_of(kernel: Kernel) -> dict[Turn, float]:
    """Whose turn it can be, with weights: the more operations a group has, the more turns.

    Every two groups of core mm, beside every secondary and without any; and what a driver does
    on processors beside each of them, where the driver is.
    """
    sizes = sizes_of_groups()
    names = names_of_secondaries(kernel)
    pairs = [(a, b) for at, a in enumerate(sizes) for b in list(sizes)[at:]]
    turns: dict[Turn, float] = {
        (pair, beside): (sizes[pair[0]] * sizes[pair[1]]) ** SHARE
        for pair in pairs
        for beside in ((), *((name,) for name in names))
    }
    for name in names:
        for call in calls_of(named(name), kernel):
            turns |= {((group_of(call), b), (name,)): sizes[b] ** SHARE for b in sizes}
    return turns
