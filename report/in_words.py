"""The last sentence of an explanation: what went wrong, in words."""

from __future__ import annotations

import re
from typing import Final

from mmurace.explorer.explain.missed import owes_invalidation
from mmurace.explorer.explain.why import Explanation
from mmurace.nodes.secondary import caches
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.told import limit
from mmurace.report import formats
from mmurace.report.interval_notifiers import to_change
from mmurace.report.labels import range_text
from mmurace.report.steps import operation_text

MEANS: Final = {
    "S8": "what is in the frame by now is taken for entries",
    "S10": "page faults cannot tell any more whether an invalidation is under way",
    "S11": "what may sleep is called where nobody may",
    "S12": "one process reaches what belongs to another",
    "S13": "it works on what its owner may have freed, before the removal has returned",
    "S14": "what the unit holds of the page stays",
    "S16": "the page can be dropped or replaced without what was stored",
    "L1": "the access is refused for ever",
    "L2": "the call does not come back in the time that its range explains",
    "L3": "nobody can ever go on",
    "L4": "whoever waits for it waits for ever",
    "L5": "whoever holds it may wait for the memory that is not freed meanwhile",
    "L6": "the access is refused for ever, though it is allowed",
    "P3": "the next access faults for nothing",
    "P4": "the queue is flooded by one call",
}
"""Rule -> why what is broken matters, for rules that are not about one late invalidation."""


def closing(explanation: Explanation) -> str:
    """One sentence."""
    violation = explanation.violation
    if violation.rule == "S8" and violation.cache == "pwc":
        return f"In words: {_walked(explanation)}."
    if owes_invalidation(violation) and violation.rule not in MEANS and violation.cache:
        harm = _harm(violation, detail_of(violation))
        change = to_change(explanation)
        change = f"; {change}" if change else ""
        return f"In words: {_taken(explanation)}; {_late(explanation)}{harm}{change}."
    detail = detail_of(violation).replace(
        "this page", formats.place(violation.mm, violation.address) or "this page"
    )
    means = MEANS.get(violation.rule, "")
    who = "" if violation.agent and violation.agent in detail else f"{violation.agent}: "
    return f"In words: {who}{detail}{f', so {means}' if means else ''}."


def _walked(explanation: Explanation) -> str:
    """An upper entry that was kept."""
    violation = explanation.violation
    late = _late(explanation).replace("ended that", "made it forget that")
    return (
        f"{violation.agent} kept an upper entry that leads to the table in frame "
        f"{violation.frame:#x}; {late}, and it went through it when the table was free"
    )


def detail_of(violation: Violation) -> str:
    """What the oracle says, without who owed what, and with ~0 as kernel people write it."""
    return OWED.sub("", violation.detail).replace(f"{ULONG_MAX:#x}", "~0")


OWED: Final = re.compile(r"; [^;]* owed its invalidation$")


def _taken(explanation: Explanation) -> str:
    """Who did what to the page, and how who held it had got it."""
    violation = explanation.violation
    kind, *_, node = violation.owed.split()
    page = formats.place(violation.mm, violation.address)
    did = f"{node}'s {operation_text(kind)} {_did(violation.change, page)}"
    holds = _holds(violation.cache)
    if _cached_after(violation):
        return f"{did} after {violation.agent} had read it and before {holds} had it"
    return f"{did} while {violation.agent} had it in {holds}"


def _holds(name: str) -> str:
    """Where its holder has a translation."""
    cache = caches().get(name)
    if cache is None:
        return f"its {name.upper()}"
    return cache.held_in or f"its {name}"


def _cached_after(violation: Violation) -> bool:
    """Whether the entry was read before the change and cached after it."""
    filled, changed = violation.filled, violation.changed
    return filled is not None and changed is not None and filled.n > changed.n


def _did(change: str, page: str) -> str:
    """``took mm0:0x10000 away`` for ``frame 0x3 RW AD -> none``."""
    old, _, new = change.partition(" -> ")
    if " RW" in old and " RO" in new and old.split(" RW")[0] == new.split(" RO")[0]:
        return f"write-protected {page}"
    if " RO" in old and " RW" in new and old.split(" RO")[0] == new.split(" RW")[0]:
        return f"gave more rights to {page}"
    return f"replaced {page}" if new.startswith("frame") else f"took {page} away"


def deadline_text(explanation: Explanation) -> str:
    """By when the invalidation was owed, as a clause; empty if by no moment."""
    due = explanation.violation.deadline
    if due is None:
        return ""
    if due.what == "operation ended":
        kind = explanation.case.kinds().get(operation_of(due.id), "")
        return f"{due.node}'s {operation_text(kind)} had returned" if kind else "it had returned"
    said = PASSIVE.sub(r"\1 was \2", due.what)
    said = re.sub(r"(?<!invalidate_)range_end", "invalidate_range_end", said)
    return said.replace("new entry", "the new entry")


PASSIVE: Final = re.compile(r"^((?:frame |new )?\S+) (freed|done|written|copied|published)")


def _late(explanation: Explanation) -> str:
    """What became of the invalidation."""
    missed, due = explanation.missed, deadline_text(explanation)
    when = f"when {due}" if due else "in time"
    if missed.in_time:
        came = missed.in_time[0]
        of = f", {range_text(came).strip()}," if came.start >= 0 else ""
        return {
            "other_mm": "the invalidation that came was for another mm",
            "not_covered": f"the invalidation that came{of} did not cover it",
            "leaves_only": f"the invalidation that came{of} reached leaf entries only",
            "not_done": f"its invalidation was sent, but not complete {when}",
            "": f"the invalidation that came{of} had not ended it {when}",
        }[came.why]
    if _cached_after(explanation.violation):
        changed = explanation.violation.changed
        between = changed is not None and any(c.spot.n > changed.n for c in missed.before_fill)
        early = "its invalidation came in between, and " if between else ""
        return f"{early}nothing made it look again"
    if missed.too_late:
        return f"its invalidation came only after {due or 'that'}"
    if missed.before_fill:
        return f"the only invalidation came before it was cached, none until {due or 'then'}"
    called = _calls(explanation)
    return f"nothing ended that until {due}{called}" if due else f"nothing ended that{called}"


def _calls(explanation: Explanation) -> str:
    """The callback that was made in time and ended nothing; empty if there was none."""
    violation = explanation.violation
    cache = caches().get(violation.cache)
    if cache is None or cache.table != "shared" or cache.source:
        return ""  # others are told by somebody else, or at other times
    first = violation.changed or violation.filled
    due = violation.deadline.n if violation.deadline else explanation.deliveries
    for row in explanation.rows:
        v = row.values
        if row.kind != "NotifierCall" or v["phase"] != "begin" or v["callback"] not in FLUSHES:
            continue
        if first is None or not first.n <= row.n <= due:
            continue
        covers = v["mm"] == violation.mm and v["start"] <= violation.address < v["end"]
        came = "made no command for it" if covers else "did not cover it"
        return f" ({v['callback']} of [{limit(v['start'])}, {limit(v['end'])}) {came})"
    return ""


FLUSHES: Final = ("invalidate_range", "arch_invalidate_secondary_tlbs")
"""Callbacks that end translations of who shares the page table."""


def _harm(violation: Violation, detail: str) -> str:
    """What came of it."""
    rule, agent = violation.rule, violation.agent
    frame = f"frame {violation.frame:#x}"
    if rule == "S1":
        did = "wrote to" if "written" in detail else "read" if "read" in detail else "ran with"
        return f", and {agent} {did} {frame}, which was free by then"
    if rule == "S3":
        did = "wrote" if detail.startswith("write") else "read"
        return f", and {agent} {did} through it all the same"
    if rule in ("O", "S2", "S4") and detail.startswith("still held"):
        return ", so it could still be used"
    if rule == "S4":
        return f", and {agent} installed what was gone"
    return f", and {agent} {detail}"
