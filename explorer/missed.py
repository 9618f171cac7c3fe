"""The invalidations that did come where one was owed: when, of which range, why in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from explorer.case import Case
from explorer.lenient import Moment
from explorer.spots import Spot, spot_of
from nodes.kernel.variant import Kernel
from oracle.violation import Violation
from protocol.envelope import REPLY_MARK
from protocol.limits import PAGE_SHIFT, PAGE_SIZE
from protocol.messages.base import Message

Why = Literal["other_mm", "not_covered", "leaves_only", "not_done", ""]
INVALIDATES: Final[Mapping[str, tuple[str, ...]]] = {
    "tlb": ("FlushTlbIpi", "Tlbi"),
    "iotlb": ("IotlbInvalidate", "Tlbi"),
    "xsl": ("AtsdLaunch", "Tlbie"),
    "pwc": ("IotlbInvalidate", "Tlbi"),
    "atc": ("InvalidateRequest",),
    "spte": ("SpteClear",),
    "gtlb": ("KvmRequest",),
    "vmcs": ("KvmRequest",),
}
"""Cache -> messages that end a translation in it."""


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
    kinds = _kinds(violation.cache, case.spec.world.kernel)
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
        kinds,
        tuple(c for c in found if c.spot.n < filled and c.spot.operation_kind == of),
        tuple(c for c in found if max(changed, filled) <= c.spot.n <= due),
        tuple(c for c in found if c.spot.n > due and c.why not in ("not_covered", "other_mm")),
    )


def _kinds(cache: str, kernel: Kernel) -> tuple[str, ...]:
    """What there is on this kernel."""
    absent = {
        "FlushTlbIpi": kernel.broadcast_tlbi,
        "Tlbi": not (kernel.broadcast_tlbi and (cache == "tlb" or kernel.btm)),
        "AtsdLaunch": kernel.ocxl_link != "atsd",
        "Tlbie": kernel.ocxl_link != "snoops_tlbie",
    }
    return tuple(kind for kind in INVALIDATES.get(cache, ()) if not absent.get(kind, False))


def _done(moments: Sequence[Moment]) -> dict[str, int]:
    """Request -> the delivery in which it was answered."""
    found: dict[str, int] = {}
    for moment in moments:
        for sent in moment.handled.messages:
            if sent.id.endswith(REPLY_MARK):
                found.setdefault(sent.id[:-1], moment.n)
    return found


def _invalidates(moment: Moment, kinds: Sequence[str], violation: Violation) -> bool:
    e = moment.envelope
    if e.kind not in kinds or not isinstance(e.body, Message):
        return False
    request = getattr(e.body, "request", "")
    if request and (request == "TLB_FLUSH") != (violation.cache == "gtlb"):
        return False
    return e.dst == violation.agent


def _came(moment: Moment, case: Case, violation: Violation, done: int, due: int) -> Came:
    body: Any = moment.envelope.body
    start, end = getattr(body, "start", -1), getattr(body, "end", -1)
    if hasattr(body, "gfn"):
        start, end = _of_gfn(body.gfn, case, violation)
    return Came(spot_of(moment, case), start, end, _why(body, start, end, violation, done, due))


def _of_gfn(gfn: int, case: Case, violation: Violation) -> tuple[int, int]:
    """The host page of a guest frame of the VM that ``violation.agent`` is."""
    for vm in case.spec.world.vms:
        for slot in vm.slots:
            if vm.name == violation.agent and slot.gfn <= gfn < slot.gfn + slot.pages:
                start = slot.hva + (gfn - slot.gfn << PAGE_SHIFT)
                return start, start + PAGE_SIZE
    return -1, -1


def _why(body: Any, start: int, end: int, violation: Violation, done: int, due: int) -> Why:
    mm = getattr(body, "mm", "") or getattr(body, "pasid", "")
    if mm and violation.mm and mm != violation.mm:
        return "other_mm"
    if start >= 0 and violation.address >= 0 and not start <= violation.address < end:
        return "not_covered"
    if violation.cache == "pwc" and getattr(body, "leaf", False):
        return "leaves_only"
    return "not_done" if done < 0 or done > due else ""
