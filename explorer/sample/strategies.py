"""Strategies: schedules that search, each with its own idea of where bugs are.

========== =====================================================================================
``random``  each deliverable message is equally likely; the baseline of every table
``pos``     partial order sampling (Yuan, Yang, Gu, *Partial Order Aware Concurrency Sampling*,
            CAV 2018): a priority for each message, drawn again after it lost a race
``pct2``..  PCT on chains of messages (Burckhardt et al., ASPLOS 2010; Ozkan et al., *PCTCP*,
            OOPSLA 2018): a priority for each chain and depth - 1 random drops
``surw``    selectively uniform random walk (Zhao et al., *Selectively Uniform Concurrency
            Testing*, ASPLOS 2025): uniform over the interleavings of interesting messages
``paces``   what processes do: each node handles its messages at a pace of its own
``stall``   a walk in which programs now and then stand still until nobody else can go on, as in
            the chaos mode of rr (O'Callahan, *Introducing rr Chaos Mode*, 2016)
========== =====================================================================================

Each is determined by its seed and by what it is shown.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from mmurace.broker.programs import operation_program
from mmurace.broker.schedules import RandomWalk
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Message

_LABELS: Final = frozenset(
    {"ptl", "mmap_lock", "folio_lock", "anon_vma", "mmu_lock", "mmu_invalidate", "requests"}
)
"""Objects whose messages are interesting: locks, sequence counts, requests."""


_KNOWN: dict[type, bool] = {}
"""Answers of ``interesting``, which is asked about every message."""


def interesting(envelope: Envelope) -> bool:
    """Whether SURW counts a message: locks, entries of page tables, sequence counts, requests."""
    kind = type(envelope.body)
    known = _KNOWN.get(kind)
    if known is None:
        label, *key = getattr(kind, "OBJECT", None) or ("",)
        known = _KNOWN[kind] = label in _LABELS or (label == "word" and "table" in key)
    return known


class Pos:
    """Partial order sampling: the highest priority; those that it raced with draw again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._priority: dict[str, float] = {}
        """Of each head, by id: a repetition that is on its way beside the first shares it."""

    def pick(self, heads: list[Envelope]) -> int:
        """The head of the highest priority."""
        priority = self._priority
        best, chosen = -1.0, 0
        for index, envelope in enumerate(heads):
            mine = priority.get(envelope.id)
            if mine is None:
                mine = priority[envelope.id] = self._random()
            if mine > best:
                best, chosen = mine, index
        winner = heads[chosen]
        del priority[winner.id]
        for envelope in heads:
            if envelope.dst == winner.dst and envelope is not winner and races(envelope, winner):
                priority[envelope.id] = self._random()
        return chosen


def races(a: Envelope, b: Envelope) -> bool:
    """Whether the order of two messages to one node may matter, by what they declare.

    A reply resumes a coroutine, which may touch anything.
    """
    left, right = a.body, b.body
    if not (isinstance(left, Message) and isinstance(right, Message)):
        return True
    if a.is_reply or b.is_reply:
        return True
    if left.ACCESS == right.ACCESS == "read":
        return False
    one, other = left.object_key(), right.object_key()
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


class Pct:
    """PCT on chains of messages: the deliverable message of the highest chain is next.

    A message joins the chain that ends at the delivery which sent it, else it opens a new chain
    at a random place.  At ``depth - 1`` random ones of the first ``length`` steps that had a
    choice, the chain that was next drops to the bottom.
    """

    def __init__(self, seed: int, depth: int, length: int) -> None:
        draws = random.Random(seed)
        self._random = draws.random
        steps = draws.sample(range(1, max(length, depth - 1) + 1), depth - 1)
        self._drops = {step: float(-place) for place, step in enumerate(steps, start=1)}
        self._chain: dict[str, int] = {}
        """The chain of each head, by id."""
        self._ends: dict[int, int] = {}
        """Delivery -> the chain that ends there."""
        self._rank: list[float] = []
        """The priority of each chain."""
        self._number = 0
        self.contested = 0
        """Steps at which more than one message was deliverable."""

    @property
    def chains(self) -> int:
        """How many chains there were."""
        return len(self._rank)

    def pick(self, heads: list[Envelope]) -> int:
        """The head of the highest chain, after the drop that is due."""
        chosen = self._highest(heads)
        if len(heads) > 1:
            self.contested += 1
            drop = self._drops.get(self.contested)
            if drop is not None:
                self._rank[self._chain[heads[chosen].id]] = drop
                chosen = self._highest(heads)
        self._number += 1
        self._ends[self._number] = self._chain.pop(heads[chosen].id)
        return chosen

    def _highest(self, heads: list[Envelope]) -> int:
        best, chosen = float("-inf"), 0
        for index, envelope in enumerate(heads):
            chain = self._chain.get(envelope.id)
            if chain is None:
                chain = self._join(envelope)
            rank = self._rank[chain]
            if rank > best:
                best, chosen = rank, index
        return chosen

    def _join(self, envelope: Envelope) -> int:
        """The chain of a message that has just become deliverable."""
        for cause in envelope.causes:
            chain = self._ends.pop(cause, None)
            if chain is not None:
                break
        else:
            chain = len(self._rank)
            self._rank.append(self._random())
        self._chain[envelope.id] = chain
        return chain


class Surw:
    """Selectively uniform random walk over the interesting messages of the programs.

    ``expected`` is how many of them each program has; a program whose turn it is holds back the
    interesting messages of the others until it has had one.
    """

    def __init__(self, seed: int, expected: Mapping[str, float]) -> None:
        self._random = random.Random(seed).random
        self._left = dict(sorted(expected.items()))
        self._blocked: set[str] = set()
        self._intended = self._draw(list(self._left))

    def _draw(self, programs: list[str]) -> str:
        """A program by how much it has left."""
        weights = [max(self._left.get(program, 0.0), 1.0) for program in programs]
        at = self._random() * sum(weights)
        for program, weight in zip(programs, weights, strict=True):
            at -= weight
            if at < 0:
                return program
        return programs[-1] if programs else ""

    def pick(self, heads: list[Envelope]) -> int:
        """A uniform draw among those that are not held back."""
        blocked = self._blocked
        while True:
            free = [index for index, e in enumerate(heads) if e.id not in blocked]
            if not free:  # the one whose turn it is cannot go on now
                self._turn(list(dict.fromkeys(operation_program(e.id) for e in heads)))
                continue
            chosen = free[int(self._random() * len(free))]
            envelope = heads[chosen]
            if not interesting(envelope):
                return chosen
            program = operation_program(envelope.id)
            if program == self._intended:
                self._left[program] = self._left.get(program, 0.0) - 1
                self._turn([name for name, left in self._left.items() if left > 0])
                return chosen
            blocked.add(envelope.id)

    def _turn(self, programs: list[str]) -> None:
        self._intended = self._draw(programs)
        self._blocked.clear()


class Paces:
    """A clock that nobody reads: a message takes as long as the node that it goes to needs.

    How far the nodes' paces lie apart is drawn too: all alike, or up to sixteen times.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed).random
        self._spread = 2.0 ** int(5 * self._draw())
        self._pace: dict[str, float] = {}
        """Node -> mean time that it takes for a message; the fastest takes 1."""
        self._due: dict[tuple[str, int], float] = {}
        """When each head is handled, by id and copy: one that can never arrive leaves its entry."""
        self._now = 0.0

    def pick(self, heads: list[Envelope]) -> int:
        """The head that is due first."""
        due = self._due
        chosen, first = 0, float("inf")
        for index, envelope in enumerate(heads):
            key = (envelope.id, envelope.copy)
            at = due.get(key)
            if at is None:
                at = due[key] = self._now + self._duration(envelope.dst)
            if at < first:
                chosen, first = index, at
        self._now = max(self._now, first)
        del due[heads[chosen].id, heads[chosen].copy]
        return chosen

    def _duration(self, node: str) -> float:
        pace = self._pace.get(node)
        if pace is None:
            pace = self._pace[node] = self._spread ** self._draw()
        return pace * (0.5 + self._draw())


class Stall:
    """A random walk, or POS, in which a program now and then stands still.

    It goes on when nobody else can, the one that has stood still for longest first.  So all of a
    system call fits between two messages of another one, and then another one between two of that.
    How often that happens is drawn too: at one choice in 8 to 32.
    """

    def __init__(self, seed: int) -> None:
        draws = random.Random(seed)
        self._random = draws.random
        self._rate = 2.0 ** -(3 + 2 * draws.random())
        walk = RandomWalk if draws.random() < 0.5 else Pos
        self._walk: RandomWalk | Pos = walk(draws.getrandbits(64))
        self._still: list[str] = []
        """Programs that stand still, in the order in which they stopped."""

    def pick(self, heads: list[Envelope]) -> int:
        """What the walk picks of those that do not stand still."""
        while True:
            still = self._still
            free = [e for e in heads if operation_program(e.id) not in still] if still else heads
            if not free:
                still.pop(0)
            elif len(free) > 1 and self._random() < self._rate:
                stopped = free[int(self._random() * len(free))]
                still.append(operation_program(stopped.id))
            else:
                chosen = self._walk.pick(free)
                return heads.index(free[chosen]) if still else chosen


class CountedWalk:
    """A random walk that counts what the other strategies want to know beforehand."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self.contested = 0
        self.interesting: dict[str, int] = {}
        """Program -> its interesting messages."""

    def pick(self, heads: list[Envelope]) -> int:
        """A uniform draw."""
        self.contested += len(heads) > 1
        chosen = int(self._random() * len(heads))
        envelope = heads[chosen]
        if interesting(envelope):
            program = operation_program(envelope.id)
            self.interesting[program] = self.interesting.get(program, 0) + 1
        return chosen
