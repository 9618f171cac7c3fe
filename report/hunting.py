"""A hunt as people and programs read it: a line a finding, and at the end how much was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from mmurace.campaign.hunt.finding import Finding
from mmurace.campaign.hunt.hunt import Hunt
from mmurace.report import formats
from mmurace.report.terminal import WORDS


def hunt_line(state: Mapping[str, Any]) -> str:
    """``12.3 s: 104 programs, 10,400 schedules (845/s), 3 found, 41 points covered``."""
    took = formats.seconds(float(state["seconds"]))
    programs = formats.many(int(state["programs"]), "program")
    schedules = formats.many(int(state["schedules"]), "schedule")
    return (
        f"{took}: {programs}, {schedules} ({state['rate']:,.0f}/s), {state['findings']} found, "
        f"{state['points']} points covered"
    )


def finding_line(finding: Finding, race: Path | None) -> str:
    """``S3 by cpu1 (tlb) in zap_pte_range / try_to_unmap_one: 6 operations, ...; python ...``."""
    cache = f" ({finding.cache})" if finding.cache else ""
    raced = f" in {' / '.join(finding.functions)}" if finding.functions else ""
    size = (
        f"{formats.many(finding.operations, 'operation')}, "
        f"{formats.many(finding.deliveries, 'delivery', 'deliveries')}"
    )
    shown = "" if race is None else f"; {show_command(race)}"
    return f"{finding.rule} by {finding.agent}{cache}{raced}: {size}{shown}"


def show_command(race: Path) -> str:
    """What shows why it fails."""
    return formats.command("explain", race)


def summary(hunt: Hunt) -> str:
    """``VIOLATED: 3 found; 512 programs, 51,200 schedules, ...``."""
    tally, options = hunt.tally, hunt.options
    against = "" if options.against is None else f" that {options.against.release} does not show"
    found = f"{tally.findings or 'nothing'} found{against}"
    word = WORDS.get(hunt.exit_code, "ENDED")
    if hunt.interrupted:
        word += ", interrupted"
    return (
        f"{word}: {found}; {formats.many(tally.programs, 'program')}, "
        f"{formats.many(tally.schedules, 'schedule')}, "
        f"{formats.many(tally.deliveries, 'delivery', 'deliveries')}, somebody in a window in "
        f"{formats.many(tally.windows, 'schedule')}, seed {options.seed:#x}{_broken(hunt)}"
    )


def _broken(hunt: Hunt) -> str:
    """What the emulator could not run, which is its own fault."""
    if not hunt.broke:
        return ""
    return f"; {formats.many(hunt.tally.broken, 'program')} could not be run, first {hunt.broke}"


def hunt_dict(hunt: Hunt, found: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The same for programs."""
    return {
        "exit_code": hunt.exit_code,
        "seed": hunt.options.seed,
        "directory": str(out),
        "interrupted": hunt.interrupted,
        "broke": hunt.broke,
        "seconds": hunt.seconds,
        **asdict(hunt.tally),
        "findings": found,
        "points": dict(sorted(hunt.steering.points.items())),
    }


def finding_dict(finding: Finding, race: Path) -> dict[str, Any]:
    """One of them; its texts are in the files."""
    built: dict[str, Any] = msgspec.to_builtins(finding)
    del built["race"], built["schedule"]
    return built | {"file": str(race), "explain": show_command(race)}
