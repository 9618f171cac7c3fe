"""Facts about a run that more than one form of report tells."""

from __future__ import annotations

from typing import Any

import msgspec

from explorer.outcome import Outcome
from nodes.kernel.variant import Kernel, preset


def switches_set(kernel: Kernel) -> dict[str, Any]:
    """The switches that differ from the preset of the kernel's release and architecture."""
    usual = msgspec.to_builtins(preset(kernel.release, kernel.arch))
    return {key: v for key, v in msgspec.to_builtins(kernel).items() if usual[key] != v}


def kernel_text(kernel: Kernel) -> str:
    """``v6.2 x86 (gather_calls_ir=false)``."""
    switches = ", ".join(f"{key}={_toml(value)}" for key, value in switches_set(kernel).items())
    return f"{kernel.release} {kernel.arch}" + (f" ({switches})" if switches else "")


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def ran_on(outcome: Outcome) -> str:
    """``6 real processes`` or ``the simulator``."""
    if outcome.on == "simulator":
        return "the simulator"
    return f"{len(outcome.spec.world.nodes())} real processes and a broker"


def window_text(condition: tuple[str, bool, int]) -> str:
    """One *sometimes* condition: whether it was met, and how often if that was counted."""
    name, met, count = condition
    often = f" ({count:,} times)" if count > 1 else ""
    return f"{'met' if met else 'NEVER MET'}: {name}{often}"
