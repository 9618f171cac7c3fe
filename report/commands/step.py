"""``step``: through what was saved, delivery by delivery."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmurace.explorer.run import outcome as codes
from mmurace.protocol.errors import UserError
from mmurace.report.commands.run import print_json
from mmurace.report.commands.saved import damage_of
from mmurace.report.screen import say

if TYPE_CHECKING:
    from mmurace.explorer.step.stepper import Stepper


def step(source: Path | None, at: int | None, dap: bool, as_json: bool) -> int:
    """Go through a run: by commands on stdin, by a debugger's requests, or to one place.  0."""
    if dap:
        from mmurace.report.stepping.adapter import serve

        return serve(sys.stdin.buffer, sys.stdout.buffer, source, opened)
    if source is None:
        raise UserError("usage", "the following arguments are required: FILE", "a run, a schedule")
    stepper = opened(source)
    from mmurace.report.stepping.session import Session
    from mmurace.report.stepping.terminal import converse

    stepper.go(at or 0)
    if as_json:
        return print_json(place_dict(stepper))
    converse(Session(stepper), sys.stdin)
    return codes.HELD


def opened(source: Path) -> Stepper:
    """The stepper of a run, of its minimal schedule if there is one.

    Raises ``UserError`` if it is neither a run nor a schedule, or does not fit.
    """
    from mmurace.explorer.step.stepper import stepper_of
    from mmurace.report.schedules import minimal_of, run_or_schedule

    with damage_of(source):
        given = run_or_schedule(source)
        found = minimal_of(given)
        if found != given:
            say(f"going through {found}, the minimal schedule of that run")
        return stepper_of(found)


def place_dict(stepper: Stepper) -> dict[str, Any]:
    """One place of a run for programs: the delivery, what it changed, every node's state."""
    from mmurace.report.stepping import words
    from mmurace.report.stepping.session import Session

    last = stepper.last
    return {
        "at": stepper.at,
        "deliveries": len(stepper.moments),
        "delivery": None if last is None else {
            "name": last.name, "text": words.delivery_text(stepper, last),
            "records": list(words.record_lines(stepper, last)),
        },
        "violations": [violation.as_dict() for violation in stepper.violations],
        "changes": [
            dict(zip(("node", "name", "before", "after"), change, strict=True))
            for change in Session(stepper).changes()
        ],
        "state": stepper.state(),
        "threads": {
            node: words.stack_lines(node, stepper.stacks(node)) for node in stepper.drivers
        },
        "deliverable": stepper.deliverable(),
    }  # fmt: skip
