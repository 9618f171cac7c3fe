"""Kernels as files and options name them: a preset and the switches that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nodes.kernel.variant import Kernel, preset
from scenarios.tables import convert, deeper


def kernel_from(
    release: str, arch: str, switches: Mapping[str, Any], where: str, key: str = ""
) -> Kernel:
    """The kernel of a release with some switches set otherwise.

    ``key`` is that of the switches in ``where``, if they have one of their own.  Raises
    ``UserError`` that names the switch.
    """
    kinds = {field.name: field.type for field in msgspec.structs.fields(Kernel)}
    place = deeper(where, key) if key else where
    for switch, value in switches.items():
        if switch in kinds:
            convert(value, kinds[switch], deeper(place, switch))
    return preset(release, arch, dict(switches), where)
