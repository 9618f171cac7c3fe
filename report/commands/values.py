"""Values that options name: seeds, kernels, switches."""

from __future__ import annotations

import re
import secrets
import tomllib
from typing import TYPE_CHECKING, Any, Final

from mmurace.protocol.errors import UserError
from mmurace.protocol.names import meant

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant import Kernel
    from mmurace.scenarios.world_file import WorldFile

SEED_MAX: Final = (1 << 63) - 1
"""The largest integer that TOML promises to hold."""
DRAWN_SEED_END: Final = 1 << 32
"""A drawn seed is short enough to be typed."""
INTEGER: Final = re.compile(r"[0-9]{1,999}|0[xX][0-9a-fA-F]{1,999}")  # int() has a bound


def seed_from(text: str | None) -> int:
    """The seed that was given, or one that is drawn.  Raises ``UserError``."""
    if text is None:
        return secrets.randbelow(DRAWN_SEED_END)
    seed = int(text, 16 if text[:2] in ("0x", "0X") else 10) if INTEGER.fullmatch(text) else -1
    if not 0 <= seed <= SEED_MAX:
        raise UserError("--seed", f"is {text!r}", f"an integer or hex, 0 to {SEED_MAX:#x}")
    return seed


def kernel_from(
    file: WorldFile, release: str, arch: str, settings: list[str], drivers: list[str]
) -> Kernel:
    """The kernel of the options and the file.  Raises ``UserError`` that names the option."""
    file.kernel_of(release, arch, drivers=drivers)
    overrides: dict[str, object] = {}
    for setting in settings:
        switch, equals, value = setting.partition("=")
        if not equals or switch in ("release", "arch"):
            raise UserError("--set", f"is {setting!r}", "SWITCH=VALUE of a switch")
        overrides[_whole_name(switch.strip())] = switch_value(value.strip())
    return file.kernel_of(release, arch, overrides, drivers)


def _whole_name(switch: str) -> str:
    """The switch that alone begins so; else what was given, which is then an error."""
    from mmurace.nodes.kernel.variant.switch import fields

    found = meant(switch, (field.name for field in fields()))
    return found[0] if len(found) == 1 else switch


def switch_value(text: str) -> Any:
    """A switch's value as TOML has it; y, n, on and off are booleans, any other word a string."""
    words = {"y": True, "n": False, "on": True, "off": False}
    if text in words:
        return words[text]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
