"""Every limit of the system, with its reason.  Nothing else may hold a bare bound."""

from __future__ import annotations

from typing import Final

MESSAGE_BYTES_MAX: Final = 256 * 1024
"""Largest message body.  The longest legal one is a subscriber or VMA list; a thousand VMAs
pack to about 40 KiB."""

ZMQ_MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""``ZMQ_MAXMSGSIZE``.  Far above ours: libzmq cuts the connection without a word at its own."""

HANDLED_MESSAGES_MAX: Final = 4096
"""Messages that one handling may send; a broadcast to every node of the largest world is 64."""

STORED_REPLIES_MAX: Final = 4096
"""Replies that a node keeps to answer a repeated request.  Must exceed ``REPEAT_DISTANCE_MAX``."""

REPEAT_DISTANCE_MAX: Final = 1024
"""Deliveries within which the broker makes a duplicate or a retransmission deliverable."""

FAULT_RETRIES_MAX: Final = 64
"""Refusals of one access in a row by one cached entry before a device or a link gives up.

Hardware would go on for ever; the run has to end, and rules L1 and L6 have spoken by then."""

FAULT_ATTEMPTS_MAX: Final = 4096
"""Attempts of one access, whatever refuses it.  The kernel has no such limit: each refusal has a
reason, and programs end.  This is for kernels on which it has none, so that a run of them ends."""

STALE_DENIALS_MAX: Final = 8
"""Faults on one cached entry that the page table no longer justifies, before rule L6 speaks.  The
processor that adds the right flushes under the PTL, for which the next page request must wait, so
a good kernel comes to one for each access in flight."""

ZAPS_PER_UPGRADE_MAX: Final = 0
"""Shadow entries that may be zapped because a right was added: a shadow MMU adds rights lazily, at
its own write fault (measure P3)."""

CALLBACK_COMMANDS_MAX: Final = 16
"""Commands that one flush of a secondary may queue (rule P4): it may run under a spinlock.  A
driver with range commands needs a few, whatever the range."""

CALLBACK_STEPS_MAX: Final = 1 << 16
"""Commands after which a callback must have come back (rule L2): at a microsecond each that is
longer than any timer interrupt waits."""

LOOP_COMMANDS_MAX: Final = 4096
"""Commands after which a driver's loop over pages is cut off, however large its range."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
ULONG_MAX: Final = (1 << 64) - 1

NODES_MAX: Final = 64
"""Nodes in a world; a cpumask is one 64-bit word in the messages."""

READY_SECONDS_MAX: Final = 60.0
"""From spawning the processes until the last one said hello (spawn imports take about 1 s)."""

PLUGIN_STEP_SECONDS: Final = 5.0
"""Processor time that one call of a plug-in (import, handler, rule) may take: then it loops."""

PLUGIN_IDLE_SECONDS: Final = 15.0
"""How long one may wait instead (sleep, read); less than ``HANDLING_SECONDS_MAX``, after which a
node is given up, and nobody would know why."""

PLUGIN_GRACE_SECONDS: Final = 5.0
"""From the order to a plug-in's call to end until the process ends with it."""

PLUGIN_SENDS_MAX: Final = 4096
"""Requests that a plug-in may send for one that it handles: a retry that never ends does not stop.
A callback needs a few for each page of its range, an access a few for each retry."""

STOP_SECONDS_MAX: Final = 10.0
"""From the order to stop until every process has gone; then they are killed."""

SOCKET_SECONDS_MAX: Final = 1.0
"""Longest single wait on a socket before the loop looks at the rest of the world again."""

GAP_SECONDS: Final = 5.0
"""Whoever looks at its clock that much later than before has stood still: it looks every second."""

GAPS_MAX: Final = 8
"""How often one wait begins anew because of that, so that it has an end on any machine."""

HELLO_BYTES_MAX: Final = 1024
"""What is read of somebody who has not shown the run's token; a hello has about a hundred."""

HANDLING_SECONDS_MAX: Final = 30.0
"""A node that has not answered a delivery after this long is reported by name."""

SOCKET_HIGH_WATER_MARK: Final = 100_000
"""Frames queued per peer.  Reaching it is an error that is counted, never a silent drop."""

DELIVERIES_IN_FLIGHT_MAX: Final = 64
"""Deliveries to one node that it has not handled yet; the rest waits in the broker, where chaos
and the order of channels still hold.  A node is busy with one; a few more hide the trip."""

RECEIVE_ROUND_MAX: Final = 128
"""Frames that the router takes in before it sends again, so that no node runs dry meanwhile."""

JOURNAL_RECORD_BYTES_MAX: Final = 2 * ZMQ_MESSAGE_BYTES_MAX
"""Largest journal record.  A longer length prefix means that the file is damaged there."""

JOURNAL_HEADER_BYTES_MAX: Final = 4096
"""Largest header of a journal.  A file that says more is no journal."""

FOLLOW_STEPS_MAX: Final = 10_000
"""Trace steps that one poll of a run returns at most (about 10 MB of records)."""

ORACLE_PAGE_HISTORY: Final = 4
"""Values of an entry that the oracle remembers, to judge what a retrying agent could see."""

ORACLE_SWEEP_MIN: Final = 512
"""Closed fills and changes that the oracle keeps before it looks which of them it still needs."""

ORACLE_REPLACED_KEPT: Final = 32
"""Pages with a replaced frame for which the oracle follows the order of stores (rule S7)."""

ORACLE_COPIES_KEPT: Final = 8
"""Copies of one frame after which the oracle still looks for stores into the original (rule S9)."""

ORACLE_SLOTS_KEPT: Final = 4096
"""Swap slots whose content the oracle knows (rule Q3); that of older ones is not judged."""

ORACLE_LAZYFREE_KEPT: Final = 4096
"""Pages of ``MADV_FREE`` that the oracle follows until they are discarded (rule S9)."""

CALLBACK_STEPS_BASE: Final = 128
CALLBACK_STEPS_PER_PAGE: Final = 8
"""Requests that one notifier callback may make, at least and for each page of its range, before
rule L2 speaks: two for an entry that it zaps, a few around them, and a kick of every guest."""

BRACKET_STEPS_BASE: Final = 8192
BRACKET_STEPS_PER_PAGE: Final = 128
"""The same for all that an operation does between ``invalidate_range_start`` and ``_end``: it may
have to reclaim a batch of pages for a table, and each page of the range may be in a table of its
own, with locks and a flush of every processor (``NODES_MAX``)."""

ORACLE_OPERATIONS_KEPT: Final = 16
"""Finished operations of a node that a ``between`` condition still looks at."""
ORACLE_ACCESSES_KEPT: Final = 4096
"""Guest translations of which the last access is known: more than are live at a time."""

ORACLE_VIOLATIONS_KEPT: Final = 10_000
"""Violations that the oracle keeps with all they say (about 2 KiB each); the rest is counted."""

JOURNAL_FLUSH_EVERY: Final = 1024
"""Deliveries of the simulator between two writes of its journals: what kill -9 can cost."""

LOW_WATER_EVERY: Final = 8192
"""Deliveries between two notes of what may be forgotten; a clock of the oracle is about 250
bytes, so that is 2 MiB."""
