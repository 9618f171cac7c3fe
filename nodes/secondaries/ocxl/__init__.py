"""OpenCAPI links, which walk the mm's own table under a PID (drivers/misc/ocxl)."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.node import Node
from mmurace.nodes.secondaries.ocxl import context, link
from mmurace.nodes.secondaries.ocxl.hardware import Ocxl
from mmurace.nodes.secondaries.ocxl.memory import OcxlMemory
from mmurace.nodes.secondaries.ocxl.messages import (
    AfuTouch,
    AtsdLaunch,
    OcxlAttach,
    OcxlDetach,
    XslFault,
)
from mmurace.nodes.secondaries.ocxl.part import Link, Links, attached, first_context_ids, row
from mmurace.nodes.secondary import Cache, Secondary
from mmurace.nodes.world import World
from mmurace.protocol.messages.book3s64 import Tlbie, pid_tag


def node_class(_link: Link, _name: str) -> type[Node]:
    """A link is one node."""
    return Ocxl


def tags(world: World) -> Mapping[str, str]:
    """PIDs of the mms that are attached from the start."""
    return {pid_tag(pid): mm for mm, pid in first_context_ids(world).items()}


OCXL = Secondary(
    name="ocxl",
    key="links",
    named_by={"link": lambda link: (link.name,)},
    points={"pasid_reused": frozenset(), "pid_reused": frozenset()},
    place=2,
    part=Link,
    node_class=node_class,
    caches=(
        Cache(
            "xsl", "shared", tags_reused=True, filled_by="page walk of the link",
            held_in="its translation cache",
            dropped_by=(AtsdLaunch,), heard=(Tlbie,),
        ),
    ),
    tags=tags,
    ops=link.notifier_ops,
    memory=OcxlMemory,
    exit_files=context.exit_files,
    released_at_exit=True,
    work={XslFault: context.xsl_fault_handler_bh},
    calls={OcxlAttach: context.ocxl_context_attach, OcxlDetach: context.ocxl_context_detach},
    accesses={AfuTouch: lambda link: (link.name,)},
    drawn={AfuTouch: lambda _link, d: AfuTouch(d.mm, d.address, d.write, d.value)},
    rights="dma",
    beside=Links,
    row=row,
    given={AfuTouch: attached},
    machines=("ppc",),
)  # fmt: skip
"""The declaration."""
