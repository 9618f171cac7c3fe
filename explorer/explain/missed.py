"""The invalidations that did come where one was owed: when, of which range, why in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmurace.explorer.explain.places import Spot, spot_of
from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import Moment
from mmurace.nodes.secondary import caches
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.processor import FlushTlbIpi, Tlbi

Why = Literal["other_mm", "not_covered", "leaves_only", "not_done", ""]


@dataclass(frozen=True, slots=True)
class Came:
    """An invalidation of the agent's cache."""

    spot: Spot
    start: int
    """Of the range, in bytes; -1: it has none."""
    end: int
    why: Why
    """Why it did not end the translation; empty: not known."""


@dataclass(frozen=True, slots=True)
class Missed:
    """The invalidations that did come, around the window in which one was owed."""

    kinds: tuple[str, ...]
    before_fill: tuple[Came, ...]
    """Too early: the translation was cached after them."""
    in_time: tuple[Came, ...]
    too_late: tuple[Came, ...]

    def spots(self) -> list[Spot]:
        """Those that an explanation speaks of."""
        return [
            *(came.spot for came in self.before_fill[-1:]),
            *(came.spot for came in self.in_time[:1]),
            *(came.spot for came in self.too_late[:1]),
        ]


def owes_invalidation(violation: Violation) -> bool:
    """Whether it is about an invalidation that somebody owed, and not about one too many."""
    return bool(violation.owed and violation.cache) and violation.rule not in ("L2", "P3", "P4")


def missed_by(case: Case, violation: Violation, moments: Sequence[Moment], last: int) -> Missed:
    """The invalidations of the agent's cache in a whole run, which broke the rule in ``last``."""
    kinds = _kinds(violation, case.spec.world)
    filled = violation.filled.n if violation.filled else 0
    changed = violation.changed.n if violation.changed else 0
    due = violation.deadline.n if violation.deadline else last
    done = _done(moments)
    found = [
        _came(moment, case, violation, done.get(moment.envelope.id, -1), due)
        for moment in moments
        if _invalidates(moment, kinds, violation)
    ]
    of = case.kinds().get(violation.changed.id.partition(".")[0], "") if violation.changed else ""
    return Missed(
        tuple(kind.__name__ for kind in kinds),
        tuple(c for c in found if c.spot.n < filled and c.spot.operation_kind == of),
        tuple(c for c in found if max(changed, filled) <= c.spot.n <= due),
        tuple(c for c in found if c.spot.n > due and c.why not in ("not_covered", "other_mm")),
    )


def _kinds(violation: Violation, world: World) -> tuple[type[Message], ...]:
    """Messages that end a translation in the agent's cache, in this world."""
    if violation.cache == "tlb":
        return (Tlbi,) if world.kernel.arch.broadcast_tlbi else (FlushTlbIpi,)
    cache, part = caches().get(violation.cache), world.part_of(violation.agent)
    if cache is None:
        return ()
    hears = part is not None and not part.told(world.kernel)
    return cache.dropped_by + (cache.heard if hears else ())


def _done(moments: Sequence[Moment]) -> dict[str, int]:
    """Request -> the delivery in which it was answered."""
    found: dict[str, int] = {}
    for moment in moments:
        for sent in moment.handled.messages:
            if sent.id.endswith(REPLY_MARK):
                found.setdefault(sent.id[:-1], moment.n)
    return found


def _invalidates(
    moment: Moment, kinds: tuple[type[Message], ...], violation: Violation
) -> bool:  # fmt: skip
    body, cache = moment.envelope.body, caches().get(violation.cache)
    told = isinstance(body, kinds) and (cache is None or cache.drops(body))
    return told and moment.envelope.dst == violation.agent


def _came(moment: Moment, case: Case, violation: Violation, done: int, due: int) -> Came:
    body: Any = moment.envelope.body
    start, end = getattr(body, "start", -1), getattr(body, "end", -1)
    if body.OWN_PAGE:
        start, end = _of_own_page(getattr(body, body.OWN_PAGE), case, violation)
    return Came(spot_of(moment, case), start, end, _why(body, start, end, violation, done, due))


def _of_own_page(number: int, case: Case, violation: Violation) -> tuple[int, int]:
    """The host page that a page of ``violation.agent``'s own stands for."""
    part = case.spec.world.part_of(violation.agent)
    page = part.host_page(number << PAGE_SHIFT) if part is not None else None
    return (page[1], page[1] + PAGE_SIZE) if page is not None else (-1, -1)


def _why(body: Any, start: int, end: int, violation: Violation, done: int, due: int) -> Why:
    mm = getattr(body, body.OF_MM, "")
    if mm and violation.mm and mm != violation.mm:
        return "other_mm"
    if start >= 0 and violation.address >= 0 and not start <= violation.address < end:
        return "not_covered"
    if violation.cache == "pwc" and getattr(body, "leaf", False):
        return "leaves_only"
    return "not_done" if done < 0 or done > due else ""
