"""Nodes that are interchangeable, and states that are the same but for names.

Two processors of one guest run the same code.  If the world stays what it is when they swap names,
then from a state and from its mirror image the same can happen, mirrored: it is enough to search
one of the two.  (Clarke, Enders, Filkorn, Jha, *Exploiting Symmetry in Temporal Logic Model
Checking*, FMSD 9, 1996; Ip and Dill, *Better Verification Through Symmetry*, FMSD 9, 1996.)

A state is given a *form* for every permutation of interchangeable nodes, and the least one stands
for all.  In a form

- nodes and programs have the names that the permutation gives them;
- ids of messages, and the names of translations that are made from them, are numbered in the
  order in which they are met (Ip and Dill's *scalarsets*): they are compared and never looked into,
  so which message a translation is named after does not matter, nor how many were sent before.
  An id keeps the operation that it belongs to;
- names of interchangeable nodes that make up a list (a cpumask) are sorted, and so are requests
  that somebody waits for together, by whom they were sent to;
- operations that were not fed yet are written down with what they still come after.  So programs
  need not be symmetric from the start: what is asked is whether the rest of them is.

A list that somebody has read a part of is not sorted.  That node code indeed does not mind is
tried: states of one form must have successors of the same forms, which break the same rules (by
induction the same then holds of all that follows).  ``tests/test_symmetry.py`` compares all in
parts of the scopes, and a search some.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, permutations, product
from types import CodeType
from typing import Any, Final

import msgspec

from mmurace.broker.programs import operation_program
from mmurace.explorer.exhaustive.node_tables import Sent
from mmurace.explorer.exhaustive.oracle_table import OracleTable
from mmurace.explorer.exhaustive.persistent_sets import Names, rename
from mmurace.explorer.exhaustive.state_values import Frozen, IteratorState, TaskState, freeze
from mmurace.explorer.exhaustive.world_state import Front, Model
from mmurace.nodes.world import World
from mmurace.protocol.errors import EmulatorError

ORBIT_MAX: Final = 4
"""So many interchangeable nodes are taken to be so."""
PERMUTATIONS_MAX: Final = 24
"""A state is written down in so many ways at most."""
_ID: Final = re.compile(r"(?:([\w:]*):)?([\w.-]+/\d+)((?:\.\d+)*)(~?)")

_ATOMS: Final = (int, bytes, float, range, CodeType, type(None))
"""What has no names in it."""

Form = tuple[int, tuple[str, ...]]
"""The number of a template, and the ids that fill its gaps, in order."""
Canonical = tuple[tuple[int, ...], tuple[int, ...]]
Match = tuple[Names, dict[str, str], list[tuple[Sent, Sent]]]
Key = tuple[tuple[int, ...], Front, int]
"""States of the nodes, what is pending, the state of the oracle."""


# ---- which nodes ---------------------------------------------------------------------------------


def interchangeable(world: World, model: Model) -> list[tuple[str, ...]]:
    """Sets of nodes any two of which may swap names, and whose programs end in the same way."""
    ends = _last_operations(model)
    found: list[list[str]] = []
    for node in model.nodes:
        for orbit in found:
            if _may_swap(world, ends, orbit[0], node):
                orbit.append(node)
                break
        else:
            found.append([node])
    return [tuple(orbit[:ORBIT_MAX]) for orbit in found if len(orbit) > 1]


def _last_operations(model: Model) -> dict[str, list[tuple[str, Any]]]:
    """By node: the last operation of each of its programs, and what that is called."""
    last: dict[str, Sent] = {}
    for operation in model.feed.operations.values():
        last[operation_program(operation.id)] = operation
    found: dict[str, list[tuple[str, Any]]] = {node: [] for node in model.nodes}
    for name, operation in sorted(last.items()):
        found[operation.dst].append((name, msgspec.to_builtins(operation.body)))
    return found


def _may_swap(
    world: World, ends: Mapping[str, list[tuple[str, Any]]], one: str, other: str
) -> bool:
    swap, same = {one: other, other: one}, dict[str, str]()
    if _renamed([body for _, body in ends[one]], swap) != _renamed(
        [body for _, body in ends[other]], same
    ):
        return False
    plain = msgspec.to_builtins(world)
    return bool(_renamed(plain, same) == _renamed(plain, swap))


def _renamed(value: Any, names: Names) -> Any:
    """With other names; lists of names are in no order."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {key: _renamed(held, names) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_renamed(held, names) for held in value]
        return sorted(items) if all(isinstance(held, str) for held in value) else items
    return value


def group(orbits: Sequence[tuple[str, ...]], model: Model) -> list[Names]:
    """Permutations of nodes and of their programs, by what they rename; the first renames none."""
    ends = _last_operations(model)
    ways = [[[*zip(orbit, way, strict=True)] for way in permutations(orbit)] for orbit in orbits]
    found: list[Names] = []
    for way in islice(product(*ways), PERMUTATIONS_MAX + 1):
        names: dict[str, str] = {}
        for old, new in chain.from_iterable(way):
            names[old] = new
            for (mine, _), (other, _) in zip(ends[old], ends[new], strict=True):
                names[mine] = other
        found.append(names)
    return found if len(found) <= PERMUTATIONS_MAX else found[:1]


# ---- forms ---------------------------------------------------------------------------------------


class Forms:
    """States of one model in canonical form."""

    def __init__(self, model: Model, oracle: OracleTable) -> None:
        self.model, self.oracle = model, oracle
        self.orbits = interchangeable(oracle.world, model)
        """Nodes that are interchangeable."""
        templates = _Templates()
        members = frozenset(chain.from_iterable(self.orbits))
        self._ways = [
            _Way(model, oracle, names, members, templates) for names in group(self.orbits, model)
        ]
        self._least: dict[Key, tuple[Canonical, int]] = {}

    def canonical(self, nodes: tuple[int, ...], front: Front, oracle: int) -> Canonical:
        """What the state has in common with all that are the same but for names."""
        return self.least((nodes, front, oracle))[0]

    def least(self, state: Key) -> tuple[Canonical, int]:
        """The form of a state, and the permutation that shows it."""
        known = self._least.get(state)
        if known is None:  # a search comes to it again: when it leaves it, and in another pass
            known = self._least[state] = self._least_of(state)
        return known

    def _least_of(self, state: Key) -> tuple[Canonical, int]:
        found = [way.state(*state) for way in self._ways]
        least = min(templates for templates, _ in found)
        forms = [
            ((templates, _numbered(ids)), number)
            for number, (templates, ids) in enumerate(found)
            if templates == least
        ]
        return forms[0] if len(forms) == 1 else min(forms)

    def images(self, nodes: tuple[int, ...], front: Front, oracle: int) -> int:
        """How many states it stands for: itself, and those that are it with nodes permuted."""
        found = [way.state(nodes, front, oracle) for way in self._ways]
        return len({(templates, _numbered(ids)) for templates, ids in found})

    def match(self, state: Key, way: int, other: Key, other_way: int) -> Match:
        """For states of one form: what the other's nodes, ids and pending messages are called here.

        The names are those that differ.
        """
        mine, theirs = self._ways[way], self._ways[other_way]
        back = {new: old for old, new in mine.names.items()}
        names = {old: back.get(new, new) for old, new in theirs.names.items()}
        messages = zip(mine.pending(state[1]), theirs.pending(other[1]), strict=True)
        return (
            {old: new for old, new in names.items() if old != new},
            dict(zip(theirs.state(*other)[1], mine.state(*state)[1], strict=True)),
            list(messages),
        )


_State = tuple[tuple[int, ...], tuple[str, ...]]


def _numbered(ids: Iterable[str]) -> tuple[int, ...]:
    """Each by when it is first met."""
    numbers: dict[str, int] = {}
    return tuple([numbers.setdefault(name, len(numbers)) for name in ids])


class _Templates:
    """Numbers of templates; they order the members of sets."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def number(self, template: object) -> int:
        """Equal templates have equal numbers."""
        return self._numbers.setdefault(template, len(self._numbers))


class _Way:
    """States as one permutation shows them."""

    def __init__(
        self,
        model: Model,
        oracle: OracleTable,
        names: Names,
        members: frozenset[str],
        templates: _Templates,
    ) -> None:
        self.model, self.oracle, self.names, self.members = model, oracle, names, members
        self._number = templates.number
        self._nodes = frozenset(model.nodes)
        self._receivers = model.tables.receivers
        place = {names.get(node, node): at for at, node in enumerate(model.nodes)}
        self._order = [place[node] for node in model.nodes]
        self._states: list[dict[int, Form]] = [{} for _ in model.nodes]
        self._fronts: dict[Front, Form] = {}
        self._pending: dict[Front, list[Sent]] = {}
        self._oracles: dict[int, Form] = {}
        self._memo: dict[Frozen, Form] = {}
        self._messages: dict[Sent, Form] = {}

    def state(self, nodes: tuple[int, ...], front: Front, oracle: int) -> _State:
        """Templates of all parts, and all ids in them."""
        forms = [self._node(at, nodes[at]) for at in self._order]
        forms.append(self._fronts.get(front) or self._front(front))
        judged = self._oracles.get(oracle)
        if judged is None:
            judged = self._oracles[oracle] = self.form(self.oracle.frozen[oracle])
        forms.append(judged)
        return tuple([form[0] for form in forms]), tuple(
            chain.from_iterable([form[1] for form in forms])
        )

    def _node(self, at: int, state: int) -> Form:
        found = self._states[at].get(state)
        if found is None:
            frozen = self.model.machines[at].frozen[state]
            found = self._states[at][state] = self.form(frozen)
        return found

    # -- what is pending -------------------------------------------------------------------

    def _front(self, front: Front) -> Form:
        """Pending messages by channel, and the operations to come."""
        queues = [
            (self._joined("queue", map(self._message, queue)), number, queue)
            for number, queue in enumerate(front.queues.values())
        ]
        queues.sort()
        self._pending[front] = [message for _, _, queue in queues for message in queue]
        feed = self.model.feed
        to_come = [
            (self._op(name), self._message(feed.operations[name])[0], self._left(after, front.done))
            for name, after in feed.after.items()
            if not front.done.issuperset(after)
        ]
        rest = self._number(("to come", tuple(sorted(to_come))))
        forms = [form for form, _, _ in queues]
        found = self._fronts[front] = self._joined("front", [*forms, (rest, ())])
        return found

    def pending(self, front: Front) -> list[Sent]:
        """Its messages in the order of the form."""
        return self._pending[front]

    def _left(self, after: Iterable[str], done: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted({self._op(name) for name in after if name not in done}))

    def _message(self, message: Sent) -> Form:
        found = self._messages.get(message)
        if found is None:
            said = (
                message.id, message.path, message.src, message.dst, message.kind, message.stream,
                freeze(message.body),
            )  # fmt: skip
            found = self._messages[message] = self.form(said)
        return found

    # -- values ------------------------------------------------------------------------------

    def form(self, value: Frozen, sort: bool = True) -> Form:
        """Any frozen value; ``sort``: lists of names are in no order."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, _ATOMS):
            return self._number(("value", value)), ()
        if isinstance(value, msgspec.Struct):
            return self.form(freeze(value), sort)
        if not isinstance(value, (tuple, frozenset)):
            raise EmulatorError(f"cannot rename what is in a {type(value).__name__}")
        if not sort:
            return self._container(value, False)
        found = self._memo.get(value)
        if found is None:
            found = self._memo[value] = self._container(value, True)
        return found

    def _container(self, value: tuple[Frozen, ...] | frozenset[Frozen], sort: bool) -> Form:
        if isinstance(value, frozenset):
            return self._joined("set", sorted([self.form(held, sort) for held in value]))
        if isinstance(value, TaskState):  # how much was sent says only what is sent next is called
            return self._joined("task", [self.form(value.path), self.form(value.suspended)])
        if isinstance(value, IteratorState):
            return self._joined("iterator", [self.form(held, False) for held in value])
        forms = [self.form(held, sort) for held in value]
        return self._joined("tuple", self._sorted(value, forms) if sort else forms)

    def _joined(self, word: str, forms: Iterable[Form]) -> Form:
        parts = list(forms)
        ids = tuple(chain.from_iterable([part[1] for part in parts]))
        return self._number((word, *[part[0] for part in parts])), ids

    def _sorted(self, value: tuple[Frozen, ...], forms: list[Form]) -> list[Form]:
        """A list of nodes, or of requests that somebody waits for, in no order."""
        names = [held for held in value if isinstance(held, str)]
        if len(names) < 2 or len(names) < len(value):
            return forms
        if self._nodes.issuperset(names):
            whose: list[str | None] = [*names]
        else:
            whose = [self._receivers.get(name) for name in names]
        if None in whose:
            return forms
        moved = [at for at, node in enumerate(whose) if node in self.members]
        for at, form in zip(moved, sorted(forms[at] for at in moved), strict=True):
            forms[at] = form
        return forms

    def _text(self, value: str) -> Form:
        if value in self._nodes:
            return self._number(("node", self.names.get(value, value))), ()
        match = _ID.fullmatch(value)
        if match is None:
            return self._word(value)
        cache, operation, sends, mark = match.groups()
        if not sends:
            return self._number(("operation", cache, self._op(operation), mark)), ()
        raw = operation + sends
        if cache is not None:
            return self._number(("name", cache, mark)), (raw,)
        receiver = self._receivers.get(raw)
        to = self.names[receiver] if receiver in self.members else ""
        return self._number(("id", self._op(operation), to, mark)), (raw,)

    def _word(self, value: str) -> Form:
        """A node's stream, or a text that has no name in it."""
        node, dot, stream = value.partition(".")
        if dot and node in self._nodes and stream.isidentifier():
            return self._number(("stream", self.names.get(node, node), stream)), ()
        if any(name in value for name in self.members):
            raise EmulatorError(f"cannot rename what is in {value!r}")
        return self._number(("value", value)), ()

    def _op(self, operation: str) -> str:
        return rename(operation, self.names)
