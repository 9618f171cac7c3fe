"""``Kernel``: one kernel, as far as its notifier and TLB-flush behaviour goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mmurace.nodes.kernel.variant.arch_by_release import Arch
from mmurace.nodes.kernel.variant.mm_by_release import Mm
from mmurace.nodes.kernel.variant.switch import Switches, Value, fields_of, owners
from mmurace.protocol.errors import UserError

MACHINES: Final = ("x86", "arm64", "ppc")


class Kernel(msgspec.Struct, frozen=True):
    """A release on a machine with its drivers, and every switch by owner."""

    release: str
    machine: str
    mm: Mm
    arch: Arch
    groups: tuple[Switches, ...]
    """Those two, and one for each driver and plug-in (``Switches.of``)."""
    profiles: tuple[str, ...] = ()
    """Which drivers it runs, where a machine may have one or another (``vt-d``, ``amd-iommu``)."""
    patches: tuple[str, ...] = ()
    """Patches of plug-ins that are applied: functions in the place of stock ones."""

    def switches(self) -> dict[str, Value]:
        """Every switch by its name."""
        return {
            field.name: getattr(group, field.name)
            for group in self.groups
            for field in fields_of(type(group))
        }

    def replace(self, **values: Value) -> Kernel:
        """The same with some switches set otherwise.  Raises ``msgspec.ValidationError``."""
        switches = self.switches() | values
        return make(self.release, self.machine, switches, self.profiles, self.patches)

    def validate(self, where: str) -> Kernel:
        """Itself, or ``UserError`` naming the switches that contradict each other."""
        for group in self.groups:
            for problem, expected in group.contradictions(self):
                raise UserError(where, problem, expected)
        return self


def make(
    release: str,
    machine: str,
    values: Mapping[str, Value],
    profiles: tuple[str, ...] = (),
    patches: tuple[str, ...] = (),
) -> Kernel:
    """The kernel with these values, one for each switch.  Raises ``msgspec.ValidationError``."""
    groups = tuple(
        msgspec.convert({field.name: values[field.name] for field in fields_of(owner)}, owner)
        for owner in owners()
    )
    of: dict[type[Switches], Any] = {type(group): group for group in groups}
    return Kernel(release, machine, of[Mm], of[Arch], groups, profiles, patches)
