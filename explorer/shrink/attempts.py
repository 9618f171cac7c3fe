"""Ways to go on: what is tried before something counts as necessary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import Hold, How, Played, play
from mmurace.protocol.errors import EmulatorError

COMPLETIONS: Final = 8
"""Ways to go on that are tried before an order or a death counts as necessary."""


def completions(
    case: Case, target: Target, after: str, hold: Hold | None = None
) -> Iterator[Played]:
    """Runs of a case: as ordered, eagerly, then drawn from the delivery ``after`` on."""
    plans = [How(target, hold=hold), How(target, hold=hold, eager=True)]
    plans += [How(target, hold=hold, seed=seed) for seed in range(COMPLETIONS - len(plans))]
    for how in plans:
        cut = case if how.seed is None else replace(case, order=_until(case.order, after))
        try:
            yield play(cut, how)
        except EmulatorError:
            continue


def _until(order: Sequence[str], name: str) -> tuple[str, ...]:
    """The order up to a name (empty: nothing of it); what follows is free."""
    if not name:
        return ()
    return tuple(order[: order.index(name) + 1]) if name in order else tuple(order)
