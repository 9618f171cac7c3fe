"""Small programs, drawn: two to four parties on one to a few pages, and whoever caches these.

Which operations there are, what fields they have, whose nodes can be asked for them, and what a row
of a secondary can look like, the registry says.  Where they go is the same small address space:

    quiet      one page that is only moved (a secondary may have asked for it)
    main       one to eight pages of a leaf table's own, which everybody uses
    spare      where mappings are moved to
    heap       if there is one
    own        pages of whoever only takes frames
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from mmurace.campaign.hunt.draft import Draft, Party
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Part, Secondary, by_node_order, of, secondaries
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation, operation_kinds
from mmurace.scenarios.operations import programs_from, programs_to
from mmurace.scenarios.worlds import world_from, world_to

ENTRIES: Final = 8
QUIET, START, SPARE, HEAP, OWN = 0x8000, 0x10000, 0x20000, 0x30000, 0x38000
"""Each in a leaf table of its own, with ``ENTRIES`` of them."""
FILE: Final = "data"
MMS: Final = ("mm0", "mm1")
RACE_MAX: Final = 6
"""Operations of a party that are done at once."""


def kinds_on_cpus() -> list[type[Operation]]:
    """Operations that a processor can be asked for."""
    elsewhere = {kind for one in secondaries() for kind in one.accesses}
    return [kind for kind in operation_kinds() if kind not in elsewhere]


def group_of(kind: type[Operation]) -> str:
    """What an operation does to entries, as the kernel function that does it is called."""
    return kind.CHANGES or kind.FUNCTION or kind.__name__


SELDOM: Final = (ops.Exit, ops.Execve, ops.Brk)
"""Within its group an operation is drawn seldom that needs much else, or ends a process."""


class Chance(random.Random):
    """A seeded source of draws."""

    def below(self, count: int) -> int:
        """A number from 0 to below ``count``."""
        return int(self.random() * count)

    def one_in(self, count: int) -> bool:
        """True once in so many."""
        return self.below(count) == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a draft is about."""

    ground: Ground
    world: World
    file: str
    """What the main pages map; empty: they are anonymous."""
    shared: bool
    heap: bool
    hot: tuple[int, ...]
    """The pages of main that the parties meet on."""


Pair = tuple[str, str]
"""Two groups (``group_of``)."""
Turn = tuple[Pair, tuple[str, ...]]
"""A pair, and the secondaries beside which it is."""
Role = Callable[[Scene, str, Sequence[Operation]], Party]


@dataclass(frozen=True, slots=True)
class Sketch:
    """A draft and what it is about, so that it can be changed."""

    scene: Scene
    draft: Draft


class Drawer:
    """Draws drafts for one kernel."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel, self.chance = kernel, Chance(seed)
        self._value = 0
        self._first: list[str] = []
        """Groups that the next changers begin with."""

    def sketch(self, turn: Turn | None = None) -> Sketch:
        """Any; whether it is a legal use of everything in it, ``checked`` says.

        ``turn``: whose turn it is, if that can be.
        """
        pair, chosen = turn or (("", ""), self._secondaries())
        self._first = [group for group in pair if group]
        roles = self._roles()
        scene = self._scene(self._first, chosen, len(roles))
        setup = tuple(self._setup(scene, self._taker in roles))
        draft = Draft(scene.world, setup, self._parties(scene, setup, roles))
        return Sketch(scene, draft)

    # -- worlds ----------------------------------------------------------------------------

    def _scene(self, groups: Collection[str], chosen: Sequence[str], parties: int) -> Scene:
        chance = self.chance
        cpus = tuple(f"cpu{n}" for n in range(parties + chance.one_in(6)))
        pages = chance.choice((1, 1, 1, 2, 2, 2, 3, ENTRIES))
        ground = Ground(MMS, cpus, START, pages, QUIET, chance.below)
        world = World(
            kernel=self.kernel, cpus=cpus, mms=MMS, parts=tuple(self._parts(ground, chosen)),
            levels=2 if chance.below(8) else 3, entries=ENTRIES,
            frames=40 if chance.below(6) else 10 + chance.below(8),
            gather_batch=8 if chance.below(3) else 1 + chance.below(2),
        )  # fmt: skip
        kind = chance.choice(("anon", "anon", "anon", "shared", "private"))
        if any(_of_files(group) for group in groups):
            kind = chance.choice(("shared", "shared", "private"))
        hot = tuple(sorted(chance.sample(range(pages), min(pages, 1 + chance.one_in(4)))))
        file = "" if kind == "anon" else FILE
        return Scene(
            replace(ground, world=world), world, file, kind == "shared", chance.one_in(8), hot
        )

    def _secondaries(self) -> tuple[str, ...]:
        """Names of those of a world: most have one, some none or two."""
        there = names_of_secondaries(self.kernel)
        count = self.chance.choice((0, 1, 1, 1, 1, 2))
        return tuple(self.chance.choice(there) for _ in range(count)) if there else ()

    def _parts(self, ground: Ground, chosen: Sequence[str]) -> Iterator[Part]:
        for one in by_node_order():
            for number in range(chosen.count(one.name)):
                yield self._row(one, ground, number)

    def _row(self, one: Secondary, ground: Ground, number: int) -> Part:
        if one.row is not None:
            drawn: Part = one.row(ground, number)
            return drawn
        return _plain_row(one, ground, number)

    # -- preparing -------------------------------------------------------------------------

    def _setup(self, scene: Scene, taken: bool) -> Iterator[Operation]:
        chance, ground = self.chance, scene.ground
        mm = ground.mm
        length = ground.pages * PAGE_SIZE
        if _asks_for(scene.world, QUIET):
            yield ops.Mmap(mm, QUIET, PAGE_SIZE, True, True)
            yield ops.Touch(mm, QUIET, True, self._new_value())
        yield ops.Mmap(mm, START, length, True, True, scene.file, 0, scene.shared)
        if taken:
            yield ops.Mmap(mm, OWN, 3 * PAGE_SIZE, True, True)
        if scene.heap:
            yield ops.Brk(mm, HEAP)
            yield ops.Brk(mm, HEAP + 2 * PAGE_SIZE)
            yield ops.Touch(mm, HEAP, True, self._new_value())
        second = bool(scene.file) and chance.one_in(4)
        if second:
            yield ops.Mmap(MMS[1], START, length, True, True, FILE, 0, scene.shared)
            yield ops.Touch(MMS[1], ground.page(scene.hot[0]), chance.one_in(2), self._new_value())
        for page in range(ground.pages):
            if page in scene.hot or chance.one_in(4):
                yield ops.Touch(mm, ground.page(page), chance.below(5) > 0, self._new_value())
        yield from self._prepared(scene, second)

    def _prepared(self, scene: Scene, second: bool) -> Iterator[Operation]:
        """What makes pages other than new: shared, read-only, clean, swapped out."""
        chance, mm = self.chance, scene.ground.mm
        kind = chance.below(14)
        page = scene.ground.page(scene.hot[0])
        if kind == 0 and not second:
            yield ops.Fork(mm, MMS[1])
        elif kind == 1 and not second:
            yield ops.Fork(mm, MMS[1])
            yield ops.Exit(MMS[1])
        elif kind == 2:
            yield ops.Mprotect(mm, page, PAGE_SIZE, True, False)
        elif kind == 3:
            yield ops.Mprotect(mm, page, PAGE_SIZE, True, False)
            yield ops.Mprotect(mm, page, PAGE_SIZE, True, True)
        elif kind == 4:
            yield ops.Kswapd(1 + chance.below(2))
        elif kind == 5:
            yield ops.MadviseFree(mm, page, PAGE_SIZE)
        elif kind == 6 and scene.file:
            yield ops.Writeback(FILE)
        elif kind == 7:
            yield ops.MadviseDontneed(mm, page, PAGE_SIZE)
            yield ops.Touch(mm, page, False)

    # -- parties ---------------------------------------------------------------------------

    def _parties(
        self, scene: Scene, setup: Sequence[Operation], roles: Sequence[Role]
    ) -> tuple[Party, ...]:
        """Those of processors, and whoever of the secondaries can be asked for something."""
        cpus = scene.world.cpus
        found = [make(scene, cpu, setup) for make, cpu in zip(roles, cpus, strict=False)]
        for part in scene.world.parts:
            found += self._accessors(scene, part)
        return tuple(found)

    def _roles(self) -> list[Role]:
        """What processors do: two that change something, an adversary or two, or just one."""
        changer, toucher, taker = self._changer, self._toucher, self._taker
        few: tuple[list[Role], ...] = (
            [changer], [changer, toucher], [changer, toucher], [changer, taker],
            [changer, changer], [changer, changer], [changer, changer], [changer, changer],
            [changer, changer, toucher], [changer, changer, taker], [changer, toucher, taker],
            [changer, changer, changer],
        )  # fmt: skip
        if len(self._first) > 1 and self.chance.below(4):
            few = tuple(roles for roles in few if roles[1:2] == [changer])
        return self.chance.choice(few)

    def _changer(self, scene: Scene, cpu: str, setup: Sequence[Operation]) -> Party:
        """Takes entries away, or does what else processors do; has them in its TLB, or not."""
        chance, mm = self.chance, self._mm(setup)
        race: list[Operation] = []
        for _ in range(chance.choice((1, 1, 1, 1, 1, 2, 3))):
            race.append(self.on_cpu(scene, setup, self._first.pop(0) if self._first else ""))
            if chance.below(5) < 2:
                race.append(self._touch(scene, mm))
        warm = (self._touch(scene, mm),) if chance.one_in(2) else ()
        return Party(cpu, cpu, warm, tuple(race), chance.one_in(6))

    def _toucher(self, scene: Scene, cpu: str, setup: Sequence[Operation]) -> Party:
        """Has the pages in its TLB, and uses them."""
        mm = self._mm(setup)
        count = self.chance.choice((1, 1, 1, 2, 3))
        race = tuple(self._touch(scene, mm) for _ in range(count))
        return Party(cpu, cpu, (self._touch(scene, mm),), race, self.chance.one_in(6))

    def _taker(self, scene: Scene, cpu: str, _: Sequence[Operation]) -> Party:
        """Takes frames that others have freed."""
        race = tuple(
            ops.Touch(scene.ground.mm, OWN + page * PAGE_SIZE, True, self._new_value())
            for page in range(1 + self.chance.below(3))
        )
        return Party(cpu, cpu, (), race, self.chance.one_in(6))

    def _accessors(self, scene: Scene, part: Part) -> Iterator[Party]:
        """The nodes of a secondary that can be asked for something."""
        for node in part.nodes():
            fitting = [kind for kind, nodes in of(part).accesses.items() if node in nodes(part)]
            if not fitting or not self.chance.below(8):
                continue
            count = self.chance.choice((1, 1, 1, 1, 2, 3))
            made = [self.on_node(scene, part, fitting) for _ in range(count + 1)]
            done = [operation for operation in made if operation is not None]
            if done:
                warm = tuple(done[:1]) if self.chance.below(6) else ()
                yield Party(node, node, warm, tuple(done[1:]), self.chance.one_in(4))

    # -- operations ------------------------------------------------------------------------

    def on_node(
        self, scene: Scene, part: Part, fitting: Sequence[type[Operation]]
    ) -> Operation | None:
        """An operation of a node of a secondary; None: the drawn one cannot be asked for."""
        data = [kind for kind in fitting if kind.AGENT]
        kind = self.chance.choice(data if data and self.chance.below(12) else list(fitting))
        return self._made(kind, scene, part, scene.ground.mm)

    def on_cpu(self, scene: Scene, setup: Sequence[Operation], group: str = "") -> Operation:
        """An operation of a processor; of that group, if one of it has something to be done to."""
        groups: dict[str, list[type[Operation]]] = {}
        for kind in kinds_on_cpus():
            if self._suits(kind, scene, setup):
                groups.setdefault(group_of(kind), []).extend([kind] * (1 if kind in SELDOM else 4))
        while True:
            kind = self.chance.choice(groups.get(group) or groups[self._some(groups)])
            part = self._part_for(kind, scene.world)
            made = self._made(kind, scene, part, self._mm(setup))
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
            return not _second_process(setup)
        owners = [one for one in secondaries() if kind in one.calls]
        return not owners or any(one.parts(scene.world) for one in owners)

    def _part_for(self, kind: type[Operation], world: World) -> Part | None:
        rows = [row for one in secondaries() if kind in one.calls for row in one.parts(world)]
        return self.chance.choice(rows) if rows else None

    def _mm(self, setup: Sequence[Operation]) -> str:
        """The second process now and then, if there is one."""
        return MMS[_second_process(setup) and self.chance.one_in(4)]

    def _touch(self, scene: Scene, mm: str) -> Operation:
        made = self._made(ops.Touch, scene, None, mm)
        assert made is not None
        return made

    def _made(
        self, kind: type[Operation], scene: Scene, part: Part | None, mm: str
    ) -> Operation | None:
        """An operation with every field drawn."""
        given = _given(kind, scene.ground, part)
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
            "value": self._new_value,
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
        if kind is ops.MigratePages and _asks_for(scene.world, QUIET) and chance.one_in(2):
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

    def _new_value(self) -> int:
        self._value += 1
        return self._value


def _of_files(group: str) -> bool:
    """Whether only operations on files do that."""
    kinds = [kind for kind in kinds_on_cpus() if group_of(kind) == group]
    return bool(kinds) and all("file" in kind.__struct_fields__ for kind in kinds)


def pairs_of_groups() -> dict[Pair, float]:
    """Every two groups of what core mm does on processors, and every one with itself.

    Each with a weight: twice the operations, half as much again of the turns.
    """
    calls = {kind for one in secondaries() for kind in one.calls}
    sizes = Counter(group_of(kind) for kind in kinds_on_cpus() if kind not in calls)
    groups = list(sizes)
    return {
        (one, two): math.sqrt(sizes[one] * sizes[two])
        for at, one in enumerate(groups)
        for two in groups[at:]
    }


def names_of_secondaries(kernel: Kernel) -> list[str]:
    """Those that a machine has."""
    return [one.name for one in by_node_order() if kernel.machine in one.machines]


def turns_of(kernel: Kernel) -> dict[Turn, float]:
    """Every pair beside every secondary, and without any; with weights."""
    beside: list[tuple[str, ...]] = [(), *((name,) for name in names_of_secondaries(kernel))]
    pairs = pairs_of_groups()
    return {(pair, chosen): weight for pair, weight in pairs.items() for chosen in beside}


def _second_process(setup: Sequence[Operation]) -> bool:
    """Whether there is one when the parties begin."""
    alive = False
    for operation in setup:
        if isinstance(operation, ops.Fork) or getattr(operation, "mm", "") == MMS[1]:
            alive = not isinstance(operation, ops.Exit)
    return alive


def _asks_for(world: World, address: int) -> bool:
    """Whether a secondary has a range of this very page."""
    return any(host == address for part in world.parts for _, _, host, _ in part.ranges())


def _given(kind: type[Operation], ground: Ground, part: Part | None) -> dict[str, Any] | None:
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


def _plain_row(one: Secondary, ground: Ground, number: int) -> Part:
    """A row by the kinds of its fields.  Raises ``UserError`` if they do not tell."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(one.part):
        if field.name == "name":
            values["name"] = f"{one.name}{number}"
        elif field.name in (*one.part.MMS, *one.part.CPUS):
            value = ground.mm if field.name in one.part.MMS else ground.cpus[-1]
            values[field.name] = value if field.type is str else (value,)
        elif field.type is bool:
            values[field.name] = ground.one_in(2)
        elif field.required:
            problem = f"does not say what its {field.name!r} can be"
            raise UserError(f"secondary {one.name}", problem, "row = ... in its declaration")
    return one.part(**values)


def checked(draft: Draft) -> Draft:
    """The draft, if it can be said in a race's file.  Raises ``UserError``."""
    world = world_from(world_to(draft.world), draft.world.kernel, "world")
    programs_from(programs_to(draft.programs()), world, "program")
    return draft


def is_legal(draft: Draft) -> bool:
    """Whether it can be said in a race's file."""
    try:
        checked(draft)
    except UserError:
        return False
    return True
