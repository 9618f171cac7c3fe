"""What comes and goes during a run, and what cannot be asked of it then: refused when a file is
loaded.

Whoever uses a part of a world holds a reference to it, so whatever is done to it comes after the
operation that creates it, and before the one that ends it.  Which operations those are, the part
says (``Part.begun_by``, ``Part.ended_by``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondary import Part
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError

Steps = Mapping[str, tuple[str, Step]]
"""Operation -> the node that it is asked of, and its step."""


def steps_by_name(programs: Sequence[Program]) -> Steps:
    """All steps by the names of their operations."""
    return {
        f"{program.name}/{index}": (program.node, step)
        for program in programs
        for index, step in enumerate(program.steps)
    }


def check_begins(programs: Sequence[Program], world: World, places: Mapping[str, str]) -> None:
    """Nothing uses a part of the world that may not be there yet.

    ``places``: operation -> file and key path.  Raises ``UserError``.
    """
    steps = steps_by_name(programs)
    for part in world.parts:
        begins = [name for name, (_, step) in steps.items() if part.begun_by(step.operation)]
        there = part.there_from_the_start()
        if len(begins) + there > 1:
            first = "it is there from the start" if there else f"{begins[0]} does so already"
            raise UserError(
                places[begins[-1]], f"creates {part.name}, and {first}", "one beginning"
            )
        if not there:
            _check_begun(part, begins, steps, places)


def _check_begun(
    part: Part, begins: Sequence[str], steps: Steps, places: Mapping[str, str]
) -> None:
    for name, (node, step) in steps.items():
        ends = part.ended_by(step.operation) or part.let_go_by(step.operation)
        used = node in part.nodes() or part.needed_by(node, step.operation) or ends
        if used and name not in begins and not before(name, steps).intersection(begins):
            after = f'after = ["{begins[0]}"], directly or through others' if begins else ""
            why = f"{part.name} is not there from the start"
            raise UserError(places[name], why, after or f"an operation that creates {part.name}")


def check_ends(programs: Sequence[Program], world: World, places: Mapping[str, str]) -> None:
    """Nothing uses a part of the world that may be gone.

    ``places``: operation -> file and key path.  Raises ``UserError``.
    """
    steps = steps_by_name(programs)
    ended: dict[str, str] = {}
    for name, (_, step) in steps.items():
        for part in world.parts:
            if not part.ended_by(step.operation):
                continue
            first = ended.setdefault(part.name, name)
            if first != name:
                raise UserError(places[name], f"{first} destroys {part.name} already", "one end")
            _check_users(part, name, steps, places)


def _check_users(part: Part, end: str, steps: Steps, places: Mapping[str, str]) -> None:
    past = before(end, steps)
    gone = {node for name, (node, step) in steps.items()
            if name in past and part.let_go_by(step.operation)}  # fmt: skip
    for name, (node, step) in steps.items():
        if name in past or node in gone or not part.needed_by(node, step.operation):
            continue
        if end in before(name, steps):
            why = f"comes after {end}, which destroys {part.name}"
            raise UserError(places[name], why, "nothing that is done to it after its end")
        why = f"destroys {part.name} while {name} of {node} may hold a reference to it"
        last = _last(name, steps)
        raise UserError(places[end], why, f'after = ["{last}"], directly or through others')


def _last(name: str, steps: Iterable[str]) -> str:
    """The last operation of the same program."""
    program = name.rpartition("/")[0]
    return [other for other in steps if other.rpartition("/")[0] == program][-1]


def before(name: str, steps: Steps) -> set[str]:
    """The operations that are over whenever this one begins."""
    found: set[str] = set()
    left = [name]
    while left:
        program, _, index = (at := left.pop()).rpartition("/")
        previous = [f"{program}/{int(index) - 1}"] if int(index) else []
        new = {*previous, *steps[at][1].after} - found
        found |= new
        left += new
    return found
