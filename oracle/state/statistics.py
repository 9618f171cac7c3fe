"""What a run did, counted: the evidence that a workload exercised what it should."""

from __future__ import annotations

from typing import Any

import msgspec

from mmurace.oracle.state.live import Change, Frame, Op, State


class Statistics(msgspec.Struct, forbid_unknown_fields=True):
    """Counters of a run."""

    deliveries: int = 0
    operations: int = 0
    invalidated: dict[str, int] = {}
    """By cache: operations that invalidated a range of which that cache held a live entry."""
    frames_reused: int = 0
    """Frames that some cache had held, freed and then allocated again."""
    accesses: dict[str, int] = {}
    """By cache: accesses that went through it."""
    retries: dict[str, int] = {}
    """By the kernel's reason."""
    secondary_invalidations: dict[str, int] = {}
    """Commands to caches that are filled by a walk, by the kind of operation (measure P2)."""
    secondary_repeated: dict[str, int] = {}
    """Of these, those that repeat one of the same operation with no change between them."""
    secondary_pages: dict[str, int] = {}
    """Pages that these covered, as the unit was told, by the kind of operation (measure P1)."""
    secondary_whole: dict[str, int] = {}
    """Those among them that covered a whole mm, whose pages are not counted (measure P1)."""
    changed_pages: dict[str, int] = {}
    """Pages that operations with such an invalidation took something from (measure P1)."""
    discharged: dict[str, int] = {}
    """Invalidations that found something, by the cache and the call of the core that led there."""
    zapped: dict[str, int] = {}
    """Shadow entries zapped, by the event of the bracket (measure P3)."""
    walks_discarded: int = 0
    accesses_trapped: int = 0
    """Accesses that a latched value makes trap, and that did."""
    accesses_not_trapped: int = 0
    """Those that went to memory."""
    out_of_memory: int = 0
    """Allocations that found the pool empty."""
    oom_kills: int = 0
    """Processes that were killed because nothing was left to reclaim."""
    covered: dict[str, int] = {}
    """By coverage point."""
    violations: dict[str, int] = {}
    """By rule; also those beyond the number that is kept."""

    def as_dict(self) -> dict[str, Any]:
        """Builtins for JSON."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def bump(counts: dict[str, int], key: str) -> None:
    """One more of ``key``."""
    counts[key] = counts.get(key, 0) + 1


def change_held(state: State, change: Change) -> None:
    """A change took away what these caches hold at this moment."""
    for fill in state.held(change.page):
        change.op.caches.add(fill.cache)


def op_ended(statistics: Statistics, op: Op) -> None:
    """The operation returned: count the caches whose entries it invalidated."""
    statistics.operations += 1
    for cache in sorted(op.caches):
        bump(statistics.invalidated, cache)


def frame_freed(frame: Frame) -> None:
    """The frame goes back to the pool."""
    frame.held_before, frame.held = frame.held or frame.held_before, False


def frame_allocated(statistics: Statistics, frame: Frame) -> None:
    """The frame has a new owner."""
    statistics.frames_reused += frame.held_before
    frame.held_before = False
