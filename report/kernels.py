"""Kernels as people read them: which release does what, and with which commit that came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table

from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.kernel.variant.preset import differences, offered, origin
from mmurace.nodes.kernel.variant.switch import ALWAYS, Field, Since, Unreleased, Value, fields
from mmurace.report.facts import kernel_text


def shown(value: Value) -> str:
    """As it stands in a file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def table_of(kernels: Iterable[Kernel]) -> Table:
    """Every switch by owner: its value in each kernel, and its history."""
    columns = list(kernels)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="")
    heads = (f"{kernel.release} {kernel.machine}" for kernel in columns)
    for head in ("owner", "switch", *heads, "since"):
        table.add_column(head, overflow="fold", no_wrap=head == "switch")
    for owner, usual, chosen in profiles(columns):
        table.add_row(owner, "(driver)", *chosen, usual)
    values = [kernel.switches() for kernel in columns]
    for field in fields():
        here = (shown(switches[field.name]) for switches in values)
        table.add_row(field.owner.OWNER, field.name, *here, history(field))
    return table


def profiles(kernels: Iterable[Kernel]) -> list[tuple[str, str, list[str]]]:
    """(owner, the drivers that the machine may have, the one of each kernel)."""
    columns = list(kernels)
    machines = dict.fromkeys(kernel.machine for kernel in columns)
    offers = {owner: of for machine in machines for owner, of in offered(machine).items()}
    return [
        (
            owner,
            f"{known[0]} (usual)" + "".join(f", {other}" for other in known[1:]),
            [next((p for p in kernel.profiles if p in known), "") for kernel in columns],
        )
        for owner, known in offers.items()
    ]


def history(field: Field) -> str:
    """``true v3.19, false v6.6``; what came with an architecture or a driver names it."""
    found = (origin for origin in field.switch.history if isinstance(origin, Since))
    return ", ".join(map(_since, found))


def _since(origin: Since) -> str:
    on = f" ({' '.join(sorted(origin.on))})" if origin.on else ""
    release = "" if str(origin.release) == ALWAYS else f" {origin.release}"
    return f"{shown(origin.value)}{release}{on}"


def differences_text(left: Kernel, right: Kernel) -> str:
    """What two kernels do differently: where in the kernel's source, and what brought it."""
    lines = [f"{kernel_text(left)} and {kernel_text(right)}:"]
    for field, here, there in differences(left, right):
        place = f"{field.switch.function} ({field.switch.file})"
        lines += [
            "",
            f"{field.name}: {shown(here)} -> {shown(there)}",
            f"  {'hardware' if field.switch.hardware else place}",
            f"  {shown(here)}: {came(field, left)}",
            f"  {shown(there)}: {came(field, right)}",
        ]
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]} no difference that is modelled"])


def came(field: Field, kernel: Kernel) -> str:
    """What a kernel's value of a switch came with."""
    value = kernel.switches()[field.name]
    own = origin(field, kernel)
    known = own if own.value == value else field.switch.origins_of(value)[:1]
    return origin_text(known if isinstance(known, Since) else next(iter(known), None))


def origin_text(found: Since | Unreleased | None) -> str:
    """``v6.6, commit 6bbd42e2df8f``."""
    if found is None:
        return "not in any release"
    if isinstance(found, Unreleased):
        return f"in no release: {found.why}"
    if not found.commit:
        return "always" if str(found.release) == ALWAYS else str(found.release)
    back = f", backported to {', '.join(map(str, found.backports))}" if found.backports else ""
    return f"{found.release}, commit {found.commit}{back}"


def differences_dict(left: Kernel, right: Kernel) -> dict[str, Any]:
    """The same for programs."""
    return {
        "kernels": [kernel_text(left), kernel_text(right)],
        "differences": [
            {
                "switch": field.name,
                "owner": field.owner.OWNER,
                "file": field.switch.file,
                "function": field.switch.function,
                "values": [here, there],
                "came": [came(field, left), came(field, right)],
            }
            for field, here, there in differences(left, right)
        ],
    }


def table_dict(kernels: Iterable[Kernel]) -> dict[str, Any]:
    """The table for programs."""
    columns = list(kernels)
    names = [f"{kernel.release} {kernel.machine}" for kernel in columns]
    machines = dict.fromkeys(kernel.machine for kernel in columns)
    return {
        "kernels": {name: k.switches() for name, k in zip(names, columns, strict=True)},
        "drivers": {name: list(k.profiles) for name, k in zip(names, columns, strict=True)},
        "profiles": {machine: offered(machine) for machine in machines},
    }
