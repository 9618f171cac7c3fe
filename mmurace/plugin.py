"""What a plug-in imports: all that is needed to declare a secondary, a switch, a patch, an
operation or a rule.

    from mmurace import plugin as api

``docs/writing-a-secondary.md`` and ``docs/trying-a-patch.md`` build one each.
"""

from mmurace.nodes.beside import Beside, NodeCount, Private, Site
from mmurace.nodes.driver import Port
from mmurace.nodes.kernel import errno, gup, memory, mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased
from mmurace.nodes.node import Handlers, Node
from mmurace.nodes.plugins import replaces
from mmurace.nodes.secondary import Cache, Death, Drawn, Part, Secondary, Task, register
from mmurace.nodes.shadow import ShadowNode, ShadowPart, get_user_page, register_shadow
from mmurace.nodes.translation import TranslationCache, data_access, walk_page_table
from mmurace.nodes.world import World
from mmurace.oracle.rules.table import Rule, add_rule
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte, records
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.program import Operation, OpDone
from mmurace.protocol.messages.shadow import DeviceAccess, GetUserPage, UserPage
from mmurace.protocol.told import Told, over_range, says

__all__ = [
    "Ack",
    "Beside",
    "Cache",
    "Death",
    "DeviceAccess",
    "Drawn",
    "Envelope",
    "Event",
    "GetUserPage",
    "Handlers",
    "Kernel",
    "Lock",
    "Message",
    "MmuNotifierEvent",
    "Node",
    "NodeCount",
    "OpDone",
    "Operation",
    "Part",
    "Port",
    "Private",
    "Processor",
    "Request",
    "Rule",
    "Secondary",
    "ShadowNode",
    "ShadowPart",
    "Site",
    "Switches",
    "Task",
    "Told",
    "TranslationCache",
    "UserPage",
    "Violation",
    "World",
    "add_rule",
    "data_access",
    "declare",
    "errno",
    "get_user_page",
    "gup",
    "memory",
    "mmu_notifier",
    "over_range",
    "preset",
    "pte",
    "records",
    "register",
    "register_shadow",
    "replaces",
    "says",
    "since",
    "switch",
    "unreleased",
    "walk_page_table",
]
