"""What became of every message of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counts:
    """What became of every message; ``balance`` is zero at every moment."""

    sent: int = 0
    duplicated: int = 0
    retransmitted: int = 0
    delivered: int = 0
    dropped: int = 0
    rejected: int = 0
    undeliverable: int = 0
    consumed: int = 0
    """Replies to the broker itself (``OpDone``)."""

    def balance(self, pending: int) -> int:
        """Sent + repeated - everything that became of it."""
        came = self.sent + self.duplicated + self.retransmitted
        went = self.delivered + self.dropped + self.rejected + self.undeliverable + self.consumed
        return came - went - pending

    def as_dict(self) -> dict[str, int]:
        """For the summary."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
