"""The end of a run that was interrupted before its router came to write one."""

from __future__ import annotations

from pathlib import Path

from mmurace.broker.counts import Counts
from mmurace.broker.plan import ABORTED, Outcome
from mmurace.broker.recorder import BrokerJournal, broker_records
from mmurace.nodes.journal import journal_path
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.trace import Ending


def write_aborted(directory: Path, why: str) -> None:
    """Write it where the broker's journal holds nothing: whoever reads the run is told why."""
    path = journal_path(directory, BROKER)
    if path.exists() and next(broker_records(directory), None) is not None:
        return
    path.unlink(missing_ok=True)  # it has no more than a part of its head
    journal = BrokerJournal(directory)
    journal.end(Outcome(ABORTED, Ending(0, 0, False, ()), Counts().as_dict(), detail=why))
    journal.flush()
    journal.close()
