"""Long programs, drawn: everybody there is, on four leaf tables' pages, with many operations each.

A small program asks one question thoroughly.  A crowd asks many at once, and each seldom: three
processors, a row of every secondary, few frames, so that what was freed is used again at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from mmurace.campaign.hunt.draft import Party
from mmurace.campaign.hunt.programs import Drawer, Role
from mmurace.campaign.hunt.rows import names_of_secondaries
from mmurace.campaign.hunt.scene import ENTRIES, Scene
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation

OPERATIONS_MIN, OPERATIONS_MAX = 4, 10
"""Of a party that changes something."""
HOT = 5
"""Pages on which they meet."""


class Crowd(Drawer):
    """Draws them for one kernel."""

    def _secondaries(self) -> tuple[str, ...]:
        return tuple(names_of_secondaries(self.kernel))

    def _roles(self) -> list[Role]:
        return [self._changer] * 3

    def _scene(self, groups: Collection[str], chosen: Sequence[str], parties: int) -> Scene:
        scene = super()._scene(groups, chosen, parties)
        return replace(scene, hot=tuple(sorted(self.chance.sample(range(scene.ground.pages), HOT))))

    def _pages(self, groups: Collection[str]) -> int:  # noqa: ARG002 - see Drawer
        return 2 * ENTRIES

    def _tables(self) -> dict[str, int]:
        return {"levels": 3, "entries": ENTRIES // 2}

    def _frames(self) -> int:
        return 96 if self.chance.one_in(2) else 28 + self.chance.below(20)

    def _changer(self, scene: Scene, cpu: str, setup: Sequence[Operation]) -> Party:
        count = OPERATIONS_MIN + self.chance.below(OPERATIONS_MAX - OPERATIONS_MIN + 1)
        race: list[Operation] = []
        for _ in range(count):
            race.append(self.on_cpu(scene, setup, self._first.pop(0) if self._first else ""))
            if self.chance.one_in(3):  # lest everything is unmapped soon
                mapped = self.made(ops.Mmap, scene, None, self.mm_of(setup))
                race += [mapped] if mapped is not None else []
            race.append(self.touch(scene, self.mm_of(setup)))
        return Party(cpu, cpu, (self.touch(scene, self.mm_of(setup)),), tuple(race))

    def _accesses(self) -> int:
        return 4 + self.chance.below(5)
