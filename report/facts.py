"""Facts about a run that more than one form of report tells."""

from __future__ import annotations

from typing import Any

import msgspec

from explorer.outcome import Outcome
from nodes.kernel.variant import RELEASES, Kernel, preset


def switches_set(kernel: Kernel) -> dict[str, Any]:
    """The switches that differ from the preset of the kernel's release and architecture."""
    known = kernel.release in RELEASES
    usual = msgspec.to_builtins(preset(kernel.release, kernel.arch)) if known else {}
    return {key: v for key, v in msgspec.to_builtins(kernel).items() if usual.get(key) != v}


def kernel_text(kernel: Kernel) -> str:
    """``v6.2 x86 (gather_calls_ir=false)``."""
    switches = ", ".join(f"{key}={_toml(value)}" for key, value in switches_set(kernel).items())
    return f"{kernel.release} {kernel.arch}" + (f" ({switches})" if switches else "")


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def ran_on(outcome: Outcome) -> str:
    """``on 6 real processes and a broker``, ``in the simulator`` or ``read from its files``."""
    if outcome.on == "processes":
        return f"on {len(outcome.spec.world.nodes())} real processes and a broker"
    return "in the simulator" if outcome.on == "simulator" else "read from its files"
