"""Under which words a race is found: subsystems, rules, releases, CVEs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mmurace.nodes.kernel.variant.preset import differences
from mmurace.nodes.kernel.variant.switch import Field, owners
from mmurace.nodes.secondary import secondaries
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import KernelCase, Race

ALIKE: Final = 4
"""Switches in which two kernels may differ and each of these is still about the race."""
CVE: Final = re.compile(r"CVE-\d{4}-\d{4,}")


@dataclass(frozen=True, slots=True)
class Terms:
    """The words of one race, each kind in order."""

    subsystems: tuple[str, ...]
    """Owners of the switches that cure it, and the secondaries in its world."""
    rules: tuple[str, ...]
    """That its kernels break."""
    releases: tuple[str, ...]
    """On which it is shown."""
    cves: tuple[str, ...]


def terms_of(race: Race) -> Terms:
    """The words under which a race is found."""
    bad = [case for case in race.kernels if case.expect.verdict == "violated"]
    text = "\n".join((*race.source, race.story))
    return Terms(
        subsystems_of(race),
        tuple(sorted({case.expect.rule for case in bad})),
        tuple(dict.fromkeys(str(case.kernel.release) for case in bad)),
        tuple(sorted(set(CVE.findall(text)))),
    )


def subsystems_of(race: Race) -> tuple[str, ...]:
    """Those whose code cures it, then those that are told.

    Two releases that lie far apart differ in code that has nothing to do with it: so what tells the
    pair of kernels that are most alike.
    """
    cures = [cures for case in race.kernels if (cures := cures_of(race, case))]
    alike = [fields for fields in cures if len(fields) <= ALIKE] or sorted(cures, key=len)[:1]
    found = {field.owner.OWNER for fields in alike for field in fields}
    found |= {one.name for one in secondaries() if one.parts(race.world)}
    return tuple(name for name in known_subsystems() if name in found)


def cures_of(race: Race, case: KernelCase) -> tuple[Field, ...]:
    """The switches that tell a bad kernel from the good one that is most like it.

    One on the same hardware, if there is one: that cures nothing.
    """
    if case.expect.verdict != "violated":
        return ()
    good = (other.kernel for other in race.kernels if other.expect.verdict == "held")
    found = (tuple(field for field, _, _ in differences(case.kernel, one)) for one in good)
    return min(found, key=lambda fs: (any(f.switch.hardware for f in fs), len(fs)), default=())


def known_subsystems() -> tuple[str, ...]:
    """Whose code there is: the mm, architectures, drivers."""
    return tuple(dict.fromkeys((*(o.OWNER for o in owners()), *(s.name for s in secondaries()))))


def chosen(
    races: Iterable[Race], subsystem: str = "", rule: str = "", release: str = "", cve: bool = False
) -> list[Race]:
    """The races that are found under all of these words; empty: under any.

    Raises ``UserError`` for a subsystem that does not exist.
    """
    if subsystem and subsystem not in known_subsystems():
        names = ", ".join(known_subsystems())
        raise UserError("--subsystem", f"no subsystem {subsystem!r}", f"one of {names}")
    return [race for race in races if _found(terms_of(race), subsystem, rule, release, cve)]


def _found(terms: Terms, subsystem: str, rule: str, release: str, cve: bool) -> bool:
    asked = ((subsystem, terms.subsystems), (rule, terms.rules), (release, terms.releases))
    return all(not word or word in words for word, words in asked) and (not cve or bool(terms.cves))
