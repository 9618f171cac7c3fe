"""Every rule of the oracle: one row each, from which reports, ``show S8``, ``list --rules`` and the
pages are made.

``room`` is the file beside this one in which the rule is judged; rules without one are in the
catalogue and not judged yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.errors import EmulatorError, UserError
from mmurace.protocol.records import Record

if TYPE_CHECKING:
    from mmurace.nodes.world import World
    from mmurace.oracle.state.live import Op, State

Kind = Literal["owed", "harm", "cost"]
"""Somebody has not done what they owe, and nobody need be hurt yet; somebody was hurt; it is right
and needlessly expensive."""


class Judge(Protocol):
    """A rule that a plug-in adds: it sees every record of a run, in order."""

    def record(self, record: Record, op: Op, event: Event) -> None:
        """``op`` is the operation that the record belongs to, ``event`` where it was made."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    id: str
    kind: Kind
    name: str
    """What KCSAN would call the kind of bug."""
    sentence: str
    look_at: str
    """What a kernel developer looks at first."""
    rooms: tuple[str, ...] = ()
    judge: Callable[[World, State, list[Violation]], Judge] | None = None
    """For a rule of a plug-in: makes what judges it in one run."""


_TABLE: Final[dict[str, Rule]] = {}


def add_rule(rule: Rule) -> Rule:
    """Make a rule known.  Raises ``EmulatorError`` if its id is taken."""
    if rule.id in _TABLE:
        raise EmulatorError(f"rule {rule.id!r} is there twice")
    _TABLE[rule.id] = rule
    return rule


def rules() -> tuple[Rule, ...]:
    """All of them, in the order of the table."""
    return tuple(_TABLE.values())


def rule_of(name: str) -> Rule | None:
    """The rule of that id, whatever the case."""
    return _TABLE.get(name) or _TABLE.get(name.upper())


def chosen_rules(names: frozenset[str], where: str = "rules") -> frozenset[str]:
    """The same names.  Raises ``UserError`` if one of them is no rule."""
    unknown = sorted(names - set(_TABLE))
    if unknown:
        raise UserError(where, f"no rule {unknown[0]!r}", f"one of {', '.join(sorted(_TABLE))}")
    return names


def _row(id_: str, kind: Kind, name: str, sentence: str, look_at: str, *rooms: str) -> None:
    add_rule(Rule(id_, kind, name, sentence, look_at, rooms))


_row(
    "O", "owed", "missed-invalidation",
    "Whoever may hold an older copy of an entry that took something away has lost it by the "
    "deadline: the frame is freed or copied, the operation returns, a new frame is mapped.",
    "the flush (or notifier call) between the change of the entry and that deadline",
    "o_s4_deadlines", "o_inherited", "o_s2_moves", "o_s8_page_tables", "s12_tags",
)  # fmt: skip
_row(
    "S1", "harm", "use-after-free",
    "No access reaches a frame through a translation that was made before the frame was freed.",
    "who freed the frame, and which flush should have come before that",
    "s1_s3_accesses",
)  # fmt: skip
_row(
    "S2", "owed", "secondary-flushed-late",
    "When the lock over a moved entry is released, secondary TLBs are as clean as the CPUs'.",
    "the place of the secondary flush relative to the CPU flush and the unlock",
    "o_s2_moves",
)  # fmt: skip
_row(
    "S3", "harm", "access-after-revocation",
    "Once an operation that takes rights away has returned, no access goes through what it took.",
    "the flush before the return of that system call, and what hides the entry from it",
    "s1_s3_accesses",
)  # fmt: skip
_row(
    "S4", "owed", "stale-shadow",
    "A shadow MMU that was told of a range holds nothing older of it when the bracket ends.",
    "the retry check between the look-up and the install, and the bracket around the change",
    "o_s4_deadlines",
)  # fmt: skip
_row(
    "S5", "owed", "excess-rights",
    "A copy grants no more than what it was made from, and no more than the entry once nobody "
    "owes its removal.",
    "how the rights of the copy were computed, and a drop that was not waited for",
    "s5_rights",
)  # fmt: skip
_row(
    "S6", "harm", "write-seen-by-child",
    "After fork has returned, nobody sees what others write to a private page.",
    "the write-protection of fork and its flush, and the reuse of a page on a write fault",
    "s6_fork", "s6_private_pages",
)  # fmt: skip
_row(
    "S7", "harm", "stores-seen-out-of-order",
    "Nobody who has seen a later store misses an earlier one.",
    "the flush between taking the old frame out and publishing the new one",
    "s7_store_order",
)  # fmt: skip
_row(
    "S8", "harm", "walk-through-freed-table",
    "No walk goes through a page-table page that was freed, and what a walk finds is the entry "
    "of that page.",
    "the flush of upper entries before the table is freed, and who waits for lockless walkers",
    "s8_walks", "o_s8_page_tables", "q4_bad_page",
)  # fmt: skip
_row(
    "S9", "harm", "lost-store",
    "A store that was accepted is in whatever takes the place of the page: a copy, the swap, the "
    "file.",
    "the flush before the copy or the write, and who may still store to the old page",
    "s9_stores", "s9_successors", "s9_discards", "s9_s16_files", "content",
)  # fmt: skip
_row(
    "S10", "owed", "unpaired-invalidation",
    "A subscriber's ends pair with its starts, its count is never negative, and the sequence has "
    "moved before the count falls.",
    "what can change between start and end: registration, its own ranges, an early return",
    "s10_brackets",
)  # fmt: skip
_row(
    "S11", "owed", "sleep-in-atomic-context",
    "Nobody sleeps under a spinlock or in a callback that must not sleep.",
    "the request named, and the lock or callback around it",
    "s11_might_sleep",
)  # fmt: skip
_row(
    "S12", "harm", "wrong-address-space",
    "A tagged translation is used only while the tag belongs to the mm that it was made for.",
    "the order in which a tag is taken back: stop, invalidate, free the number",
    "s12_tags",
)  # fmt: skip
_row(
    "S13", "harm", "call-after-unregister",
    "No callback of a subscriber runs once its unregistration has returned, and nobody removes a "
    "subscription that is not there.",
    "the wait for callbacks in unregistration (SRCU, mmu_interval_notifier_remove) before the free",
    "s13_unregister",
)  # fmt: skip
_row(
    "S14", "owed", "wrong-target",
    "When a flush of a secondary returns, its unit was told of every page of the range that the "
    "operation changed.",
    "how the driver reads the range, and which mm the caller names",
    "s14_p4_l2_commands",
)  # fmt: skip
_row(
    "S15",
    "harm",
    "shared-while-exclusive",
    "While somebody has exclusive access to a page, no other agent's access to it succeeds.",
    "the revocation of the exclusive entry: whose event the callback passes over, the page lock",
    "s15_exclusive",
)
_row(
    "S16", "harm", "lost-dirty-bit",
    "That a page is dirty is never forgotten, and aging adds no right.",
    "a load and a plain store of an entry that hardware may change in between",
    "s16_dirty", "s9_s16_files", "content",
)  # fmt: skip
_row(
    "L1", "harm", "no-progress",
    "A fault on an entry that permits the access ends within a bounded number of retries.",
    "what the retry depends on, and whether that can change",
    "l1_l3_progress",
)  # fmt: skip
_row(
    "L2", "harm", "endless-invalidation",
    "An invalidation ends within a bounded number of its own steps, whoever faults beside it.",
    "loops in the callback: over pages, and over what faults bring back",
    "l2_q1_callbacks", "s14_p4_l2_commands",
)  # fmt: skip
_row(
    "L3",
    "harm",
    "deadlock",
    "Nothing waits for ever.",
    "the locks in the cycle that the report prints",
    "l1_l3_progress",
)
_row(
    "L4",
    "harm",
    "unfinished-invalidation",
    "An invalidation that has begun is completed, and so is a request that was posted.",
    "what its completion waits for",
    "l4_completion",
)
_row(
    "L5",
    "harm",
    "reaper-waits",
    "The OOM reaper never waits for a subscriber's lock.",
    "the trylock in a callback that must not block (mmu_notifier_range_blockable)",
    "l5_reaper",
)
_row(
    "L6", "harm", "stale-denial",
    "A cached entry that grants less than the page table does not deny for ever.",
    "whether adding a right flushes units that do not walk again on a permission fault",
    "l6_denials",
)  # fmt: skip
_row(
    "L7",
    "harm",
    "refault-loop",
    "A device does not fault on one page again and again without getting anywhere.",
    "what undoes the fault: migration back, an invalidation for each fault",
)
_row(
    "Q1", "owed", "left-open",
    "At the end every bracket is closed and every lock is free.",
    "the early return between the two",
    "l2_q1_callbacks", "s11_might_sleep",
)  # fmt: skip
_row(
    "Q2",
    "owed",
    "stale-at-rest",
    "When everything has come to rest, what is still cached is right.",
    "the last change of the page named, and its flush",
    "q2_at_rest",
)
_row(
    "Q3", "harm", "wrong-content",
    "What is in memory is what was stored, nothing else.",
    "who wrote the word before, and through which translation",
    "q3_content", "content",
)  # fmt: skip
_row(
    "Q4", "harm", "bad-page",
    "mm's own checks find no bad page: map, state or cache.",
    "who stored the entry, and whose the reference or the mapping was that is missing",
    "q4_bad_page",
)  # fmt: skip
_row(
    "P1",
    "cost",
    "pages-told",
    "Pages that secondaries are told to drop, against pages that changed.",
    "the range that the flush passes on",
    "p1_p2_p3_costs",
)
_row(
    "P2",
    "cost",
    "told-again",
    "Invalidations that say what the same operation has said already.",
    "notifier calls beside one another",
    "p1_p2_p3_costs",
)
_row(
    "P3",
    "cost",
    "needless-zap",
    "A shadow MMU zaps nothing for an event that takes nothing away.",
    "the event, and whether a shadow MMU need hear of it",
    "p1_p2_p3_costs",
)
_row(
    "P4", "cost", "unbounded-callback",
    "A callback, which may run under a spinlock, queues a bounded number of commands.",
    "the loop over pages, and the range or whole-mm command in its place",
    "s14_p4_l2_commands",
)  # fmt: skip

_BUILT_IN: Final = frozenset(_TABLE)


def added_rules() -> tuple[Rule, ...]:
    """Those of plug-ins."""
    return tuple(_TABLE.values())[len(_BUILT_IN) :]


def forget(rule_id: str) -> None:
    """Take a plug-in's rule out again.  Raises ``KeyError`` if there is none."""
    if rule_id in _BUILT_IN:
        raise KeyError(rule_id)
    del _TABLE[rule_id]


def ids_of(kind: Kind) -> frozenset[str]:
    """The rules of one kind."""
    return frozenset(rule.id for rule in _TABLE.values() if rule.kind == kind)


def kind_of(rule_id: str) -> Kind | None:
    """The kind of a rule; None if nobody knows it."""
    rule = _TABLE.get(rule_id)
    return rule.kind if rule else None
