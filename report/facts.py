"""Facts about a run that more than one form of report tells."""

from __future__ import annotations

from typing import Any

from mmurace.explorer.run.outcome import Outcome
from mmurace.nodes.kernel.variant import Kernel, usual
from mmurace.nodes.kernel.variant.preset import differences, offered
from mmurace.protocol.errors import UserError


def switches_set(kernel: Kernel) -> dict[str, Any]:
    """The switches that differ from the preset of the kernel's release and architecture."""
    try:
        near = usual(kernel)
    except UserError:  # a release that nobody knows
        return dict(kernel.switches())
    return {field.name: here for field, here, _ in differences(kernel, near)}


def kernel_text(kernel: Kernel) -> str:
    """``v6.2 x86 (gather_calls_ir=false)``; a driver that is not the usual one is told too."""
    switches = ", ".join(f"{key}={_toml(value)}" for key, value in switches_set(kernel).items())
    patched = f" with {', '.join(kernel.patches)}" if kernel.patches else ""
    differs = f" ({switches})" if switches else ""
    unusual = [profile for profile in kernel.profiles if profile not in _usual(kernel.machine)]
    return " ".join((kernel.release, kernel.machine, *unusual)) + patched + differs


def _usual(machine: str) -> tuple[str, ...]:
    return tuple(profiles[0] for profiles in offered(machine).values())


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def ran_on(outcome: Outcome) -> str:
    """``on 6 real processes and a broker``, ``in the simulator`` or ``read from its files``."""
    if outcome.on == "processes":
        return f"on {len(outcome.spec.world.nodes())} real processes and a broker"
    return "in the simulator" if outcome.on == "simulator" else "read from its files"
