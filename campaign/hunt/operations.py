"""Operations with every field drawn.

Fields that all operations share are drawn by their names and types (``address``, ``length``,
``write``, ...); what only a secondary knows, that says itself (``Secondary.given``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from mmurace.campaign.hunt.groups import SELDOM, group_of, kinds_on_cpus
from mmurace.campaign.hunt.scene import HEAP, MMS, QUIET, SPARE, START, Chance, Scene
from mmurace.nodes.ground import Ground
from mmurace.nodes.secondary import Part, of, secondaries
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation


class Maker:
    """Makes operations, by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance(seed)
        self._value = 0

    def on_node(
        self, scene: Scene, part: Part, fitting: Sequence[type[Operation]]
    ) -> Operation | None:
        """An operation of a node of a secondary; None: the drawn one cannot be asked for."""
        data = [kind for kind in fitting if kind.AGENT]
        kind = self.chance.choice(data if data and self.chance.below(12) else list(fitting))
        return self.made(kind, scene, part, scene.ground.mm)

    def on_cpu(self, scene: Scene, setup: Sequence[Operation], group: str = "") -> Operation:
        """An operation of a processor; of that group, if one of it has something to be done to."""
        groups: dict[str, list[type[Operation]]] = {}
        for kind in kinds_on_cpus():
            if self._suits(kind, scene, setup):
                groups.setdefault(group_of(kind), []).extend([kind] * (1 if kind in SELDOM else 4))
        while True:
            kind = self.chance.choice(groups.get(group) or groups[self._some(groups)])
            part = self._part_for(kind, scene.world)
            made = self.made(kind, scene, part, self.mm_of(setup))
            if made is not None:
                return made
            group = ""

    def _some(self, groups: Collection[str]) -> str:
        return self.chance.choice(list(groups))

    def _suits(self, kind: type[Operation], scene: Scene, setup: Sequence[Operation]) -> bool:
        """Whether it has something to be done to."""
        if kind in (ops.Truncate, ops.Writeback):
            return bool(scene.file)
        if kind is ops.Brk:
            return scene.heap
        if kind is ops.Fork:
            return not second_process(setup)
        owners = [one for one in secondaries() if kind in one.calls]
        return not owners or any(one.parts(scene.world) for one in owners)

    def _part_for(self, kind: type[Operation], world: World) -> Part | None:
        rows = [row for one in secondaries() if kind in one.calls for row in one.parts(world)]
        return self.chance.choice(rows) if rows else None

    def mm_of(self, setup: Sequence[Operation]) -> str:
        """The second process now and then, if there is one."""
        return MMS[second_process(setup) and self.chance.one_in(4)]

    def touch(self, scene: Scene, mm: str) -> Operation:
        """A load or a store on a hot page."""
        made = self.made(ops.Touch, scene, None, mm)
        assert made is not None
        return made

    def made(
        self, kind: type[Operation], scene: Scene, part: Part | None, mm: str
    ) -> Operation | None:
        """An operation with every field drawn."""
        given = given_of(kind, scene.ground, part)
        if given is None:
            return None
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(kind):
            if field.name in given:
                values[field.name] = given[field.name]
            else:
                values[field.name] = self._field(kind, field, scene, mm, values)
        return kind(**values)

    def _field(
        self, kind: type[Operation], field: Any, scene: Scene, mm: str, values: dict[str, Any]
    ) -> Any:
        chance, name = self.chance, field.name
        known: dict[str, Callable[[], Any]] = {
            "mm": lambda: mm,
            "child": lambda: MMS[1] if mm == MMS[0] else MMS[0],
            "address": lambda: self._address(kind, scene),
            "length": lambda: self._length(scene, values["address"]),
            "new_address": lambda: self._target(values, scene),
            "new_length": lambda: values["length"],
            "value": self.new_value,
            "pages": lambda: 1 + chance.below(4),
            "size": lambda: chance.choice((0, 0, chance.below(scene.ground.pages) * PAGE_SIZE)),
            "offset": lambda: chance.choice((0, 0, PAGE_SIZE)) if values["file"] else 0,
            "shared": lambda: bool(values["file"]) and scene.shared != chance.one_in(6),
            "file": lambda: scene.file if kind is not ops.Mmap or chance.below(4) else "",
            "read": lambda: chance.below(5) > 0,
            "write": lambda: self._right_to_write(kind, values),
        }
        if name in known:
            return known[name]()
        if field.type is bool:
            return chance.one_in(2)
        if not field.required:
            return field.default
        return chance.below(4) if field.type is int else ""

    def _right_to_write(self, kind: type[Operation], values: dict[str, Any]) -> bool:
        """A store two times in three; a mapping is hardly ever read-only."""
        if "read" not in kind.__struct_fields__:
            return self.chance.below(3) > 0
        return bool(values["read"]) and self.chance.below(5 if kind is ops.Mmap else 2) > 0

    def _address(self, kind: type[Operation], scene: Scene) -> int:
        chance, ground = self.chance, scene.ground
        if kind is ops.Brk:
            return HEAP + chance.below(4) * PAGE_SIZE
        if "length" not in kind.__struct_fields__:
            return ground.page(chance.choice(scene.hot)) + 8 * chance.below(2)
        if kind is ops.MigratePages and asks_for(scene.world, QUIET) and chance.one_in(2):
            return QUIET
        if kind in (ops.Mremap, ops.Munmap) and chance.one_in(8):
            return SPARE
        return ground.page(chance.choice((0, 0, *scene.hot, *scene.hot)))

    def _length(self, scene: Scene, address: int) -> int:
        """To the end, or as far as a hot page, or one page."""
        if address in (QUIET, SPARE):
            return PAGE_SIZE * (1 if address == QUIET else scene.ground.pages)
        first = (address - START) // PAGE_SIZE
        last = [page for page in scene.hot if page >= first]
        ends = [scene.ground.pages, scene.ground.pages, first + 1]
        ends += [page + 1 for page in last]
        return (self.chance.choice(ends) - first) * PAGE_SIZE

    def _target(self, values: dict[str, Any], scene: Scene) -> int:
        address: int = values["address"]
        if address >= SPARE:
            return START
        if self.chance.one_in(10) and scene.ground.pages > 1:
            return scene.ground.page(self.chance.below(scene.ground.pages))
        return SPARE + address - START

    def new_value(self) -> int:
        """A value that nobody has stored yet."""
        self._value += 1
        return self._value


def second_process(setup: Sequence[Operation]) -> bool:
    """Whether there is one when the parties begin."""
    alive = False
    for operation in setup:
        if isinstance(operation, ops.Fork) or getattr(operation, "mm", "") == MMS[1]:
            alive = not isinstance(operation, ops.Exit)
    return alive


def asks_for(world: World, address: int) -> bool:
    """Whether a secondary has a range of this very page."""
    return any(host == address for part in world.parts for _, _, host, _ in part.ranges())


def given_of(kind: type[Operation], ground: Ground, part: Part | None) -> dict[str, Any] | None:
    """The fields that only the row's secondary knows; None: it cannot be asked for this."""
    if part is None:
        return {}
    one = of(part)
    named = {
        key: ground.one_of(names(part))
        for key, names in one.named_by.items()
        if key in kind.__struct_fields__ and names(part)
    }
    if kind in one.given:
        values = one.given[kind](ground, part)
        return None if values is None else named | dict(values)
    mms = [getattr(part, key) for key in part.MMS]
    bound = next((mm if isinstance(mm, str) else mm[0] for mm in mms if mm), "")
    return named | ({"mm": bound} if bound and "mm" in kind.__struct_fields__ else {})
