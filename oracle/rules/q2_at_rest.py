"""Rule Q2: when everything has come to rest, what is still cached is right.

A run has ended, nothing is in flight and nobody owes anything: whoever still holds a translation
holds one that the page table grants, to a frame that was not freed since.  What an earlier breach
has said already is not said again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmurace.oracle.state.live import Cached, Page, State
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.pte import describe, takes_away

_Key = tuple[str, str, str, int]


def stale_at_rest(state: State, known: Iterable[Violation], n: int) -> Iterator[Violation]:
    """A violation for each translation that is left and should not be; ``n``: the last delivery."""
    told = {(v.agent, v.cache, v.mm, v.address) for v in known}
    for page in state.pages.values():
        for fill in state.held(page):
            why = _wrong(state, page, fill)
            if why and (fill.agent, fill.cache, page.mm, page.address) not in told:
                yield _report(page, fill, why, n)


def _wrong(state: State, page: Page, fill: Cached) -> str:
    if takes_away(fill.pte, page.pte):
        return f"the entry is {describe(page.pte)}"
    if state.frame(fill.frame).generation != fill.read.generation:
        return f"frame {fill.frame:#x} was freed since"
    return ""


def _report(page: Page, fill: Cached, why: str, n: int) -> Violation:
    return Violation(
        rule="Q2", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=describe(fill.read.pte), racing=(Event("end of run", n, fill.agent, ""),),
        detail=f"still held when the run was over: {why}",
    )  # fmt: skip
