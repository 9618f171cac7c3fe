"""Deaths: from the decision that a node is to die until nobody waits for it any more.

A death has a beginning (chaos decides; what the kernel does about it is fed) and an end (the node
is gone).  Between them a node that does not die at once goes on, and is fed nothing new.  From
the end on nothing is delivered to it: each request that it has not answered, and each later one,
is answered by the broker with ``PeerGone``.  A device's own requests that are still on their way
are lost with its link.  A node is gone only once it has handled whatever it was given, so a death
is at a boundary between two handlings, on processes as in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

from mmurace.broker.kills import PREFIX, Note, death_of, last_operation, tasks
from mmurace.broker.programs import Feeder
from mmurace.nodes.world import World
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope
from mmurace.protocol.messages.base import PeerGone


class KillSource(Protocol):
    """Who is to die, and when (``kills.py``)."""

    note: Note | None

    @property
    def world(self) -> World | None:
        """Where they live; None: nobody can die."""

    def begin(self, number: int, begun: Collection[str]) -> Sequence[str]:
        """Who begins to die after delivery ``number``, besides those in ``begun``."""

    def gone(self, number: int, ready: Sequence[str]) -> Sequence[str]:
        """Who is gone after delivery ``number``; ``ready`` have done all they had to do."""

    def heal(self) -> None:
        """Nobody else dies."""


@runtime_checkable
class Killing(Protocol):
    """A chaos that kills."""

    @property
    def kills(self) -> KillSource:
        """Whom."""


class Deaths:
    """Who is dying and who is dead."""

    def __init__(self, kills: KillSource, world: World, feeder: Feeder) -> None:
        self.kills, self.world, self.feeder = kills, world, feeder
        self.dead: dict[str, int] = {}
        """Dead nodes -> the delivery after which each was gone, in the order of their deaths."""
        self.leaving: list[str] = []
        """Nodes that are gone as soon as they have handled what they were given."""
        self.ended_by = ""
        """The node with which the run ends."""
        self._begun: set[str] = set()
        self._ready: list[str] = []
        self._unlinked: set[str] = set()
        """Dead devices: what they sent and nobody has got is lost."""
        self._open: dict[str, dict[str, Envelope]] = {
            node: {} for node in world.nodes() if death_of(node, world)
        }
        """Per node that may die: requests delivered to it and not answered."""

    # -- what happens ----------------------------------------------------------------------

    def begin(self, number: int) -> list[Envelope]:
        """Deaths that begin after delivery ``number``: what is fed about them."""
        fed: list[Envelope] = []
        for node in self.kills.begin(number, self._begun):
            if node in self._begun:
                continue  # with what it is a part of
            self._note("kill", number, node)
            for program in tasks(node, self.world, self._begun):
                victim = program.name.removeprefix(PREFIX)
                self._begun.add(victim)
                fed += self.feeder.end(victim)
                fed += self.feeder.add(program)
            self._begun.add(node)
            dies = death_of(node, self.world)
            if dies is None or dies.at_once:
                self._ready.append(node)
        return fed

    def finished(self, operation: str) -> None:
        """The broker was told that an operation is done."""
        for node in self._begun:
            dies = death_of(node, self.world)
            if operation == last_operation(node) and dies and not dies.at_once:
                self._ready.append(node)

    def go(self, number: int, idle: Callable[[str], bool]) -> list[str]:
        """Who is gone now; who has not handled everything yet stays in ``leaving``."""
        going = self.kills.gone(number, self._ready)
        self.leaving += [node for node in going if node not in self.leaving]
        self._ready = [node for node in self._ready if node not in self.leaving]
        gone = [node for node in self.leaving if idle(node)]
        self.leaving = [node for node in self.leaving if node not in gone]
        for node in gone:
            self.dead[node] = number
            self._note("killed", number, node)
            dies = death_of(node, self.world)
            if dies is None:
                self.ended_by = node
            elif dies.at_once:
                self._unlinked.add(node)
        return gone

    def _note(self, word: str, number: int, node: str) -> None:
        if self.kills.note is not None:
            self.kills.note(word, number, node)

    # -- messages --------------------------------------------------------------------------

    def delivered(self, envelope: Envelope) -> None:
        """Somebody was given a message."""
        requests = self._open.get(envelope.dst)
        if requests is not None and not envelope.is_reply and envelope.src != BROKER:
            requests.setdefault(envelope.id, envelope)

    def sent(self, envelope: Envelope) -> None:
        """Somebody sent a message."""
        requests = self._open.get(envelope.src)
        if requests is not None and envelope.is_reply:
            requests.pop(envelope.id[: -len(REPLY_MARK)], None)

    def stops(self, envelope: Envelope) -> bool:
        """Whether the message can never arrive."""
        if envelope.dst in self.dead:
            return True
        return envelope.src in self._unlinked and not envelope.is_reply

    def unanswered(self, node: str) -> Iterator[Envelope]:
        """Requests that a node that is gone was given and has not answered; once."""
        requests, self._open[node] = self._open[node], {}
        return iter(requests.values())


def peer_gone(request: Envelope) -> Envelope:
    """The broker's answer to a request to a dead node."""
    return Envelope(
        request.id + REPLY_MARK, request.dst, request.src, request.kind + REPLY_MARK, request.id,
        "", PeerGone(), causes=request.causes,
    )  # fmt: skip
