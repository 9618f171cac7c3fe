"""Rule S6: after fork has returned, what the parent writes is not seen by the child.

    cpu0 (fork)                         agent of the parent         child
    write-protect the entry             (holds a writable copy)     (maps the same frame)
    return
                                        write through the copy      [Required: never sees it]

That nobody is granted a write to what others share, whoever they are, says
``oracle.rules.s6_private_pages``.

It is judged where rule S3 found a write through an entry that a fork had revoked; if no other
mm maps the frame any more, nobody can see that write.
"""

from __future__ import annotations

import msgspec

from mmurace.oracle.state.live import State
from mmurace.oracle.violation import Violation
from mmurace.protocol.pte import frame_of, usable

_FORK = "Fork "


def isolation_broken(state: State, revoked: Violation) -> Violation | None:
    """The breach behind a write after revocation, if that was a fork's and somebody sees it."""
    if not revoked.owed.startswith(_FORK):
        return None
    for page in state.pages.values():
        sees = usable(page.pte) and frame_of(page.pte) == revoked.frame
        if sees and page.mm != revoked.mm:
            detail = (
                f"wrote to frame {revoked.frame:#x}, which {page.mm}:{page.address:#x} "
                f"shares since {revoked.owed}"
            )
            return msgspec.structs.replace(revoked, rule="S6", detail=detail)
    return None
