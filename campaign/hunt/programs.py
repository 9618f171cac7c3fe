"""Small programs, drawn: one to three parties on processors, and whoever caches their pages.

Which operations there are, what fields they have, whose nodes can be asked for them, and what a row
of a secondary can look like, the registry says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmurace.campaign.hunt.draft import Draft, Party, in_order
from mmurace.campaign.hunt.groups import Turn, of_files
from mmurace.campaign.hunt.operations import Maker, asks_for
from mmurace.campaign.hunt.rows import names_of_secondaries, row_of
from mmurace.campaign.hunt.scene import ENTRIES, FILE, HEAP, MMS, OWN, QUIET, START, Scene
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Part, by_node_order, of
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.operations import programs_from, programs_to
from mmurace.scenarios.worlds import world_from, world_to

RACE_MAX: Final = 6
"""Operations of a party that are done at once."""
TABLES: Final = frozenset(kind.CHANGES or kind.FUNCTION for kind in (ops.Mremap, ops.Munmap))
"""Groups of operations that free or move whole leaf tables."""
Role = Callable[[Scene, str, Sequence[Operation]], Party]


@dataclass(frozen=True, slots=True)
class Sketch:
    """A draft and what it is about, so that it can be changed."""

    scene: Scene
    draft: Draft


class Drawer(Maker):
    """Draws drafts for one kernel."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        super().__init__(seed)
        self.kernel = kernel
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
        pages = self._pages(groups)
        ground = Ground(MMS, cpus, START, pages, QUIET, self.kernel.machine, chance.below)
        world = World(
            kernel=self.kernel, cpus=cpus, mms=MMS, parts=tuple(self._parts(ground, chosen)),
            **self._tables(),
            frames=self._frames(),
            gather_batch=8 if chance.below(3) else 1 + chance.below(2),
        )  # fmt: skip
        kind = chance.choice(("anon", "anon", "anon", "shared", "private"))
        if any(of_files(group) for group in groups):
            kind = chance.choice(("shared", "shared", "private"))
        hot = tuple(sorted(chance.sample(range(pages), min(pages, 1 + chance.one_in(4)))))
        file = "" if kind == "anon" else FILE
        return Scene(
            replace(ground, world=world), world, file, kind == "shared", chance.one_in(8), hot
        )

    def _pages(self, groups: Collection[str]) -> int:
        """How many everybody uses; a whole leaf table, where one can be moved or freed as such."""
        if TABLES & set(groups) and self.chance.one_in(2):
            return ENTRIES
        return self.chance.choice((1, 1, 1, 2, 2, 2, 3, ENTRIES, ENTRIES + ENTRIES // 2))

    def _tables(self) -> dict[str, int]:
        """Levels, and entries of each."""
        return {"levels": 2 if self.chance.below(8) else 3, "entries": ENTRIES}

    def _frames(self) -> int:
        return 40 if self.chance.below(6) else 10 + self.chance.below(8)

    def _secondaries(self) -> tuple[str, ...]:
        """Names of those of a world: most have one, some none or two."""
        there = names_of_secondaries(self.kernel)
        count = self.chance.choice((0, 1, 1, 1, 2, 2))
        return tuple(self.chance.choice(there) for _ in range(count)) if there else ()

    def _parts(self, ground: Ground, chosen: Sequence[str]) -> Iterator[Part]:
        for one in by_node_order():
            for number in range(chosen.count(one.name)):
                yield row_of(one, ground, number)

    # -- preparing -------------------------------------------------------------------------

    def _setup(self, scene: Scene, taken: bool) -> Iterator[Operation]:
        chance, ground = self.chance, scene.ground
        mm = ground.mm
        length = ground.pages * PAGE_SIZE
        if asks_for(scene.world, QUIET):
            yield ops.Mmap(mm, QUIET, PAGE_SIZE, True, True)
            yield ops.Touch(mm, QUIET, True, self.new_value())
        yield ops.Mmap(mm, START, length, True, True, scene.file, 0, scene.shared)
        if taken:
            yield ops.Mmap(mm, OWN, 3 * PAGE_SIZE, True, True)
        if scene.heap:
            yield ops.Brk(mm, HEAP)
            yield ops.Brk(mm, HEAP + 2 * PAGE_SIZE)
            yield ops.Touch(mm, HEAP, True, self.new_value())
        second = bool(scene.file) and chance.one_in(4)
        if second:
            yield ops.Mmap(MMS[1], START, length, True, True, FILE, 0, scene.shared)
            yield ops.Touch(MMS[1], ground.page(scene.hot[0]), chance.one_in(2), self.new_value())
        for page in range(ground.pages):
            if page in scene.hot or chance.one_in(2 * ground.pages):
                yield ops.Touch(mm, ground.page(page), chance.below(5) > 0, self.new_value())
        yield from self._prepared(scene, second)

    def _prepared(self, scene: Scene, second: bool) -> Iterator[Operation]:
        """What makes pages other than new; now and then two things."""
        for _ in range(1 + self.chance.one_in(3)):
            yield from self._preparation(scene, second)

    def _preparation(self, scene: Scene, second: bool) -> Iterator[Operation]:
        """Shared, read-only, clean, swapped out, of one content."""
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
        elif kind == 8 and not scene.shared:
            yield from self._alike(scene)

    def _alike(self, scene: Scene) -> Iterator[Operation]:
        """Pages of the same content."""
        mm, ground, value = scene.ground.mm, scene.ground, self.new_value()
        yield ops.MadviseDontneed(mm, START, ground.pages * PAGE_SIZE)
        for page in range(ground.pages):
            yield ops.Touch(mm, ground.page(page), True, value)

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
        chance, mm = self.chance, self.mm_of(setup)
        often = 1 if scene.world.parts else 2  # where TLBs are all the caches that there are
        race: list[Operation] = []
        for _ in range(chance.choice((1, 1, 1, 1, 1, 2, 3))):
            race.append(self.on_cpu(scene, setup, self._first.pop(0) if self._first else ""))
            if chance.below(5) < 2 * often:
                race.append(self.touch(scene, mm))
        warm = (self.touch(scene, mm),) if chance.below(5) < 2 * often else ()
        return Party(cpu, cpu, warm, tuple(race), chance.one_in(6))

    def _toucher(self, scene: Scene, cpu: str, setup: Sequence[Operation]) -> Party:
        """Has the pages in its TLB, and uses them."""
        mm = self.mm_of(setup)
        count = self.chance.choice((1, 1, 1, 2, 3))
        race = tuple(self.touch(scene, mm) for _ in range(count))
        return Party(cpu, cpu, (self.touch(scene, mm),), race, self.chance.one_in(6))

    def _taker(self, scene: Scene, cpu: str, _: Sequence[Operation]) -> Party:
        """Takes frames that others have freed."""
        race = tuple(
            ops.Touch(scene.ground.mm, OWN + page * PAGE_SIZE, True, self.new_value())
            for page in range(1 + self.chance.below(3))
        )
        return Party(cpu, cpu, (), race, self.chance.one_in(6))

    def _accessors(self, scene: Scene, part: Part) -> Iterator[Party]:
        """The nodes of a secondary that can be asked for something."""
        for node in part.nodes():
            fitting = [kind for kind, nodes in of(part).accesses.items() if node in nodes(part)]
            if not fitting or not self.chance.below(8):
                continue
            made = [self.on_node(scene, part, fitting) for _ in range(self._accesses() + 1)]
            done = [operation for operation in made if operation is not None]
            if done:
                warm = tuple(done[:1]) if self.chance.below(6) else ()
                yield Party(node, node, warm, tuple(done[1:]), self.chance.one_in(4))

    def _accesses(self) -> int:
        """How many a node of a secondary makes at once."""
        return self.chance.choice((1, 1, 1, 1, 2, 3))


def checked(draft: Draft) -> Draft:
    """The draft, if it is legal and can be said in a race's file.  Raises ``UserError``."""
    world = world_from(world_to(draft.world), draft.world.kernel, "world")
    programs = programs_from(programs_to(draft.programs()), world, "program")
    if not in_order(programs, world):
        raise UserError("program", "uses what may be gone, or not there yet", "an order")
    return draft


def is_legal(draft: Draft) -> bool:
    """Whether it can be said in a race's file."""
    try:
        checked(draft)
    except UserError:
        return False
    return True
