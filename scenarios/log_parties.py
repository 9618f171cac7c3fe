"""Who is beside a log: nodes of secondaries, the pages that they can use, and how their accesses
are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from mmurace.nodes import secondary
from mmurace.nodes.secondaries import BUILT_IN
from mmurace.nodes.secondary import Drawn
from mmurace.nodes.world import World
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.agents import Agent, agents, private_page
from mmurace.scenarios.tables import TomlTable

Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
DEVICE: Final = "device"
GUEST: Final = "guest"
"""Who runs on a processor of a secondary's own."""


class _Uses(TomlTable, frozen=True):
    """How much of the mapped memory is used, in percent of the calls."""

    touch: Percent = 70
    """The thread touches a live page after its call."""
    device: Percent = 10
    """A device uses a live page after a call, without anybody waiting for it."""
    guest: Percent = 10
    """A guest uses a live page."""


_Privately: Any = msgspec.defstruct(
    "_Privately",
    [(one.private.name, Percent, one.private.percent) for one in BUILT_IN if one.private],
    bases=(_Uses,), frozen=True, module=__name__,
)  # fmt: skip
"""A secondary uses the page that it has for itself, by the name that it gives that."""


class TouchOptions(_Privately, frozen=True):  # type: ignore[call-arg, misc]  # fields of it are declared
    """How much of the mapped memory is used, in percent of the calls."""

    migrate: Percent = 30
    """A live page, or one that a secondary has for itself, is migrated."""
    held: Percent = 80
    """Of the calls that take something away: they wait until the secondaries hold a page."""
    race: Percent = 40
    """Of those: a secondary uses the page again while the call runs."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page that a party has for itself."""

    address: int
    name: str
    """What its draws are called."""
    percent: int
    """After so many of the calls it is used."""


@dataclass(frozen=True, slots=True)
class Party:
    """A node of a secondary, and how it takes part."""

    agent: Agent
    turns: str
    """What the draws are called by which it uses a page, and which."""
    rights: str
    """And those by which it writes."""
    percent: int
    """After so many of the calls it uses a page."""
    memory: tuple[tuple[int, int], ...] | None
    """From where to where it can use pages that it shares; None: all."""
    private: Page | None

    @property
    def name(self) -> str:
        """The node, and its program."""
        return self.agent.name

    def shares(self, page: int) -> bool:
        """Whether it can use a page that others use, too."""
        if self.private is not None and page == self.private.address:
            return False
        return self.memory is None or any(start <= page < end for start, end in self.memory)

    def access(
        self, mm: str, address: int, page: int, write: bool, value: int, number: int
    ) -> Operation:
        """One of ``address``, which is in ``page``; a value for what else there is to draw."""
        return self.agent.draw(Drawn(mm, address, write, value, page, False, number))


def parties(world: World, options: TouchOptions) -> tuple[Party, ...]:
    """All of a world, devices first; they use the memory of the first process."""
    devices, processors = agents(world, {})
    return (
        *_of_kind(devices, DEVICE, options.device, world, options),
        *_of_kind(processors, GUEST, options.guest, world, options),
    )


def _of_kind(
    found: list[Agent], kind: str, percent: int, world: World, options: TouchOptions
) -> list[Party]:
    return [
        Party(
            agent, agent.name if at else kind, secondary.of(agent.row).rights or agent.name,
            percent, _memory(agent, world.mms[0]), _private(agent, options),
        )
        for at, agent in enumerate(found)
    ]  # fmt: skip


def _memory(agent: Agent, mm: str) -> tuple[tuple[int, int], ...] | None:
    ranges = [(of, host, size) for of, _, host, size in agent.row.ranges()]
    own = private_page(agent.row)
    shared = tuple((host, host + size) for of, host, size in ranges if (of, host) != (mm, own))
    return shared if ranges else None


def _private(agent: Agent, options: TouchOptions) -> Page | None:
    address, declared = private_page(agent.row), secondary.of(agent.row).private
    if address is None or declared is None:
        return None
    return Page(address, declared.name, getattr(options, declared.name, declared.percent))
