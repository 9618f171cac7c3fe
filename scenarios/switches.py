"""Kernels as files and options name them: a preset and the switches that differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmurace.nodes import plugins
from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.kernel.variant.preset import field_named
from mmurace.protocol.errors import UserError
from mmurace.scenarios.tables import Table, TomlTable, convert, deeper


class _SavedKernel(TomlTable, frozen=True):
    """A kernel in ``run.toml``: a preset, and every switch."""

    release: str
    arch: str
    drivers: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    switches: Table = {}
    """Those that are missing are newer than the file: they are as the release has them."""


def kernel_from(
    release: str,
    arch: str,
    switches: Mapping[str, Any],
    where: str,
    key: str = "",
    drivers: Iterable[str] = (),
    patches: Iterable[str] = (),
) -> Kernel:
    """The kernel of a release with some switches set otherwise.

    ``key`` is that of the switches in ``where``, if they have one of their own.  Raises
    ``UserError`` that names the switch.
    """
    place = deeper(where, key) if key else where
    for name, value in switches.items():
        convert(value, field_named(name, place).hint, deeper(place, name))
    for patch in patches:
        if patch not in plugins.patches():
            known = ", ".join(plugins.patches()) or "none: no plug-in has declared one"
            raise UserError(deeper(where, "patches"), f"no patch {patch!r}", known)
    return preset(release, arch, switches, where, drivers, patches)


def kernel_to(kernel: Kernel) -> Table:
    """The table that ``kernel_of`` reads back."""
    return {
        "release": kernel.release,
        "arch": kernel.machine,
        "drivers": list(kernel.profiles),
        "patches": list(kernel.patches),
        "switches": kernel.switches(),
    }


def kernel_of(table: Table, where: str) -> Kernel:
    """The kernel of a saved run.  Raises ``UserError``."""
    saved = convert(table, _SavedKernel, where)
    return kernel_from(
        saved.release, saved.arch, saved.switches, where, "switches", saved.drivers, saved.patches
    )
