"""Rule S11: nobody sleeps where they may not (the kernel's ``might_sleep``).

    a thread
    spin_lock(ptl), or another spinlock
    a request that may sleep            [Required: not before the unlock]
    unlock

A page-table lock is a spinlock, and so are some that drivers have (``Lock.spins``).
``invalidate_range``, ``arch_invalidate_secondary_tlbs``, ``change_pte`` and the young callbacks are
called under them, so they never sleep, whoever holds what; ``invalidate_range_start`` and ``_end``
may sleep, so they are not called under a spinlock.  A request that may sleep is a breach even if it
did not have to.

Rule Q1, here: an operation that has returned holds none of these locks.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.state.live import Op, State
from mmurace.oracle.state.locks import lock_kinds
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.records import NONBLOCK, NotifierCall

ATOMIC: Final = frozenset({
    "invalidate_range", "arch_invalidate_secondary_tlbs", "change_pte", "clear_flush_young",
    "clear_young", "test_young", NONBLOCK,
})  # fmt: skip
"""Callbacks that never sleep."""
_SLEEPS: Final = frozenset(
    (callback, "begin")
    for callback in ("invalidate_range_start", "invalidate_range_end", "invalidate", "release")
)
"""Callbacks that may are not called where nobody may."""


_NO_LOCK: Final = ("", False)


class _Thread:
    """What the threads of one operation hold, and what they are in."""

    __slots__ = ("atomic", "held", "reported", "seen")

    def __init__(self) -> None:
        self.held: list[tuple[str, str]] = []
        """(spinlock, the message that granted it)."""
        self.atomic: list[tuple[str, str]] = []
        """(callback in progress that never sleeps, the message in whose handling it began)."""
        self.seen: set[str] = set()
        """Grants and releases so far: whatever comes again is a repetition."""
        self.reported: set[tuple[str, str]] = set()

    def release(self, lock: str, message: str) -> None:
        """A coroutine gives back the lock of that kind that it took last."""
        coroutine = _coroutine(message)
        for at in range(len(self.held) - 1, -1, -1):
            kind, grant = self.held[at]
            if kind == lock and _coroutine(grant) == coroutine:
                del self.held[at]
                return

    def ends(self, callback: str) -> None:
        """The newest callback of that name is over."""
        for at in range(len(self.atomic) - 1, -1, -1):
            if self.atomic[at][0] == callback:
                del self.atomic[at]
                return


class Context:
    """S11 from the deliveries of locks and of requests that may sleep."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found
        locks = lock_kinds()
        self._moved = locks.spun
        self.watched = locks.in_context
        """Kinds of deliveries that this rule looks at."""
        self.threads: dict[str, _Thread] = {}
        """By operation in flight; those that have come to no lock and no callback are not here."""
        self.nonblock: set[str] = set()
        """Operations in a callback that must not block, though others of its name may."""

    def delivered(self, kind: str, message: str, op: Op, n: int, dst: str) -> None:
        """A delivery of a kind in ``watched`` for an operation in flight."""
        thread = self.threads.get(op.id)
        lock, taken = self._moved.get(kind, _NO_LOCK)
        if taken:
            if thread is None:
                thread = self.threads[op.id] = _Thread()
            if message not in thread.seen:
                thread.seen.add(message)
                thread.held.append((lock, message))
        elif thread is None:
            return
        elif lock:
            if message not in thread.seen:
                thread.seen.add(message)
                thread.release(lock, message)
        elif thread.held or thread.atomic:
            self._sleeps(thread, op, Event(kind, n, dst, message))

    def _sleeps(self, thread: _Thread, op: Op, event: Event) -> None:
        """A request that may sleep arrived: was it sent under a lock of its coroutine?"""
        kind, sent = event.what, _index(event.id)
        here = [
            (lock, grant)
            for lock, grant in thread.held
            if _coroutine(grant) == _coroutine(event.id) and _index(grant) < sent
        ]
        if here:
            held = _names(here)
            self._report(thread, op, f"{kind} may sleep, and {held} is held", kind, event)
        for callback, began in thread.atomic:
            coroutine, before = _place(began)
            # What was sent before the callback began may be repeated while it runs.
            if coroutine == _coroutine(event.id) and before < sent:
                never = "which must not block: try, or give up" if callback == NONBLOCK else ""
                why = f"{kind} may sleep, in {callback}, {never or 'which never does'}"
                self._report(thread, op, why, kind, event)

    def notifier_call(self, record: NotifierCall, op: Op, event: Event) -> None:
        """A callback begins or ends."""
        thread = self.threads.get(op.id)
        called = NONBLOCK if record.within == NONBLOCK else record.callback
        if called in ATOMIC:
            if record.phase == "begin":
                if thread is None:
                    thread = self.threads[op.id] = _Thread()
                thread.atomic.append((called, event.id))
            elif thread is not None:
                thread.ends(called)
            if called == NONBLOCK:
                (self.nonblock.add if record.phase == "begin" else self.nonblock.discard)(op.id)
        elif thread is not None and thread.held and (record.callback, record.phase) in _SLEEPS:
            why = f"{record.callback} may sleep, and {_names(thread.held)} is held"
            self._report(thread, op, why, record.callback, event)

    def _report(self, thread: _Thread, op: Op, why: str, what: str, event: Event) -> None:
        if (what, why) not in thread.reported:
            thread.reported.add((what, why))
            self.found.append(
                Violation("S11", op.node, why, mm=op.tag, owed=op.text(), racing=(event,))
            )

    def ended(self, op: Op, event: Event) -> None:
        """The operation returned."""
        thread = self.threads.pop(op.id)
        if thread.held:
            why = f"it returned holding {_names(thread.held)}"
            self.found.append(Violation("Q1", op.node, why, owed=op.text(), racing=(event,)))


def _names(held: list[tuple[str, str]]) -> str:
    return ", ".join(dict.fromkeys(lock for lock, _ in held))


def _coroutine(message: str) -> str:
    """Who sent a request, or was answered."""
    return message[: message.rfind(".")]


def _place(handled: str) -> tuple[str, int]:
    """The coroutine that went on when this was handled, and its last request until then."""
    if handled.endswith(REPLY_MARK):
        return _coroutine(handled), _index(handled)
    return handled, -1


def _index(message: str) -> int:
    """The how-manieth request of its coroutine it is."""
    return int(message.rstrip(REPLY_MARK).rpartition(".")[2])
