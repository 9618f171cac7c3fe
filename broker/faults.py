"""What the exchange asks of chaos: whether a message meets a fault, and what stops deliveries.

``chaos.py`` and ``gates.py`` answer from a configuration, ``recorder.py`` from a record.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mmurace.protocol.envelope import Envelope

FaultKind = Literal["delay", "drop", "duplicate", "hold"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a chaos rule does to one message.

    ``after`` counts deliveries: until a delayed message is deliverable again, until the
    retransmission of a lost one is, or from the delivery of a message until its duplicate is.
    """

    kind: FaultKind
    after: int = 0
    rule: str = ""
    missed: bool = True
    """For a dropped reply in a record: somebody still waited for it, so it was sent again."""


class Chaos(Protocol):
    """What the exchange asks of a chaos configuration (``chaos.py``)."""

    def fault(self, envelope: Envelope) -> Fault | None:
        """The fault for a message that was just sent."""

    def delivered(self, envelope: Envelope) -> Sequence[Envelope]:
        """A message was delivered: the held ones that it sets free."""

    def hold(self, envelope: Envelope, rule: str) -> None:
        """Keep a message until the event of its rule."""

    def give_up(self) -> Sequence[Envelope]:
        """Nothing else can move: set the oldest held message free, and report its rule."""

    def heal(self) -> Sequence[Envelope]:
        """No more faults from now on: set every held message free."""


class Gatekeeper(Protocol):
    """What stops deliveries for a while (``gates.py``); numbers are of the last delivery."""

    def moved(self, number: int) -> bool:
        """Whether a gate has closed or opened by now."""

    def shut(self, envelope: Envelope, again: bool = False) -> bool:
        """Whether the message must wait; ``again``: it was stopped before."""

    def opens(self) -> int:
        """The number after which the first closed gate opens; huge if all are open."""

    def cut_short(self, number: int) -> None:
        """Open that gate now."""

    def heal(self, number: int) -> None:
        """Open all, for good."""


@runtime_checkable
class Gated(Protocol):
    """A chaos with gates."""

    @property
    def gates(self) -> Gatekeeper:
        """The gates."""


@runtime_checkable
class Sparing(Protocol):
    """A chaos that knows of kinds of messages that they never meet a fault."""

    @property
    def spared(self) -> Set[str]:
        """Those kinds; the set may grow."""
