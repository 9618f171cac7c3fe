"""The driver of a node in a run with plug-ins: what theirs do wrong is found at once, and named.

Without it the simulator would pass a wrong value on until something far away trips over it, and
the router would reject a wrong message, whose sender then waits for ever: both would be told as if
the kernel were at fault.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes import secondary
from mmurace.nodes.driver import Driver
from mmurace.nodes.plugin_watchdog import moved_on
from mmurace.nodes.plugins import (
    author_of,
    author_of_function,
    author_of_patch,
    blame,
    is_interrupt,
    raise_noted,
)
from mmurace.nodes.world import World
from mmurace.protocol import codec
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, Handled, operation_of
from mmurace.protocol.errors import PeerError, PluginError, ReplayDivergence
from mmurace.protocol.limits import PLUGIN_SENDS_MAX
from mmurace.protocol.messages.base import Message, PeerGone, Request, kinds


class PluginDriver(Driver):
    """One that checks what comes out of each handling.  Raises ``PluginError``."""

    def __init__(self, name: str, seed: int, world: World) -> None:
        super().__init__(name, seed)
        self.world = world
        self._checked = _runs_foreign_code(name, world)
        self._receivers: Final = frozenset((BROKER, *world.nodes()))

    def deliver(
        self, n: int, envelope: Envelope, choices: list[tuple[str, int, int]] | None = None
    ) -> Handled:
        """Handle delivery ``n``, and look at what it sent and recorded."""
        moved_on()
        try:
            handled = super().deliver(n, envelope, choices)
        except (PluginError, ReplayDivergence):
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise self._blamed(error, envelope) from error
        raise_noted()
        if self._checked:
            self._check(envelope, handled)
        return handled

    def _blamed(self, error: BaseException, envelope: Envelope) -> BaseException:
        """The same error with the plug-in that is at fault, if one is."""
        named = blame(error)
        if named:
            return PluginError(named)
        author = author_of(envelope.body) or self._author(envelope)
        said = f"{envelope.kind} from {envelope.src} to {envelope.dst}: {error}"
        return PluginError(f"plug-in {author}: {said}") if author else error

    def _author(self, envelope: Envelope) -> str:
        """The plug-in of the sender, the receiver, or the node whose operation this is."""
        program = operation_of(envelope.id).partition("/")[0]
        for name in (envelope.src, envelope.dst, program):
            if author := author_of_node(name, self.world):
                return author
        return ", ".join(filter(None, map(author_of_patch, self.world.kernel.patches)))

    def _check(self, envelope: Envelope, handled: Handled) -> None:
        for message in handled.messages:
            problem = self._problem(message)
            if problem:
                raise self._wrong(envelope, f"{self.name} {problem}")
        for record in handled.records:
            try:
                codec.record_from(codec.unpack(codec.pack(record)))
            except (PeerError, TypeError, ValueError, OverflowError) as error:
                raise self._wrong(envelope, f"{self.name} records {record!r}: {error}") from None

    def _problem(self, message: Envelope) -> str:
        """What is wrong with something that was sent; empty: nothing."""
        body, kind = message.body, message.kind
        if kind.endswith(REPLY_MARK):
            asked = kinds().get(kind.removesuffix(REPLY_MARK))
            answer = asked.reply_kind() if asked and issubclass(asked, Request) else Message
            if not isinstance(body, (answer, PeerGone)):
                return (
                    f"answers {kind.removesuffix(REPLY_MARK)} with {body!r}, not {answer.__name__}"
                )
        elif not isinstance(body, Request):
            return f"sends {body!r}, which is no request"
        elif kinds().get(kind) is not type(body):
            return f"sends {kind}, a message that is not known"
        elif message.dst not in self._receivers:
            return f"sends {kind} to {message.dst!r}, which is not in this world"
        elif _count(message) >= PLUGIN_SENDS_MAX and self._author(message):
            return f"has sent {PLUGIN_SENDS_MAX} requests for one {message.path}: an endless loop"
        try:
            codec.decode_message(codec.encode_message(body))
        except (PeerError, TypeError, ValueError, OverflowError) as error:
            return f"sends {kind} with a wrong value: {error}"
        return ""

    def _wrong(self, envelope: Envelope, problem: str) -> PluginError:
        author = author_of(envelope.body) or self._author(envelope)
        return PluginError(f"plug-in {author or 'unknown'}: {problem}")


def author_of_node(name: str, world: World) -> str:
    """The plug-in that a node comes from; empty: none."""
    part = world.part_of(name)
    if part is None:
        return ""
    return author_of(secondary.of(part).node_class(part, name)) or author_of(part)


def _runs_foreign_code(name: str, world: World) -> bool:
    """Whether a plug-in's code can run in a node: its own, a driver's part, a patched function."""
    if author_of_node(name, world):
        return True
    foreign = (one for one in secondary.secondaries() if one.parts(world))
    functions = (f for s in foreign for f in (*s.work.values(), *s.calls.values()))
    callbacks = (f for s in secondary.secondaries() for f in s.ops(world.kernel).values())
    return bool(world.kernel.patches) or any(map(author_of_function, (*functions, *callbacks)))


def _count(message: Envelope) -> int:
    """How many its coroutine has sent before it."""
    return int(message.id.rpartition(".")[2])
