"""The coroutine driver: one delivery in, one ``Handled`` out.

A node's handlers are plain functions (answered at once, or later with ``Port.reply``) or
coroutines over the port.  Between two awaits a coroutine is atomic; at an await anything may
happen.  The driver steps coroutines with ``send()`` in delivery order; there is no event loop,
no clock and no thread, so the same deliveries and choices give the same ``Handled``, byte for
byte.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from mmurace.protocol.envelope import REPLY_MARK, Envelope, Handled, operation_of
from mmurace.protocol.errors import EmulatorError, PeerLost, ReplayDivergence
from mmurace.protocol.limits import STORED_REPLIES_MAX
from mmurace.protocol.messages.base import Message, ObjectKey, PeerGone, Request
from mmurace.protocol.records import Record

R = TypeVar("R", bound=Message)
Handler = Callable[[Any, Envelope], Message | Coroutine[Any, Any, Message] | None]
Chooser = Callable[[str, int, str, int], int]
"""(what chooses, how often it chose before, the choice's name, how many ways) -> the way."""
Park = tuple[str, ...]
"""What a coroutine sleeps on inside its node; the first part is a word for people."""


_REPLY_KINDS: dict[str, str] = {}
"""Kind of a request -> kind of its reply: one string for each, hashed once."""


class Sender:
    """Whoever handles a request: its id, and how often it has sent and chosen."""

    __slots__ = ("choices", "path", "sends")

    def __init__(self, path: str) -> None:
        self.path = path
        self.sends = self.choices = 0


class Task(Sender):
    """A coroutine that handles one request; ``path`` is that request's id."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Message], path: str) -> None:
        self.coroutine, self.path = coroutine, path
        self.sends = self.choices = 0


class Port:
    """All that node code may do: send, wait, choose, record."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.touched: list[tuple[ObjectKey, str]] | None = None
        """Objects accessed by this handling, if somebody asked (a list), else None."""

    @types.coroutine
    def call(self, dst: str, message: Request[R], stream: str = "") -> Generator[Any, Any, R]:
        """Send a request and wait for its reply.

        Raises ``PeerLost`` if the receiver is dead.  To ``settle`` and ``gather`` its ``PeerGone``
        is an answer like any other: what is waited for there is that a peer is done with it.
        """
        reply: R = yield self._driver.send(dst, message, stream)
        if type(reply) is PeerGone:
            raise PeerLost(dst)
        return reply

    @property
    def upcoming(self) -> str:
        """The id that the next request sent from here will have."""
        sender = self._driver.current
        return f"{sender.path}.{sender.sends}"

    @property
    def operation(self) -> str:
        """The operation (``program/index``) on whose behalf this coroutine runs."""
        return operation_of(self._driver.current.path)

    def post(self, dst: str, message: Request[Any], stream: str = "") -> str:
        """Send a request without waiting; ``settle`` waits for its reply."""
        request = self._driver.send(dst, message, stream)
        self._driver.posted[request] = None
        return request

    @types.coroutine
    def settle(self, posted: Iterable[str]) -> Generator[Any, Any, list[Message]]:
        """Wait for the replies to posted requests, in the order given."""
        replies: list[Message] = yield tuple(posted)
        return replies

    async def gather(self, requests: Iterable[tuple[str, Request[Any]]]) -> list[Message]:
        """Send to many and wait for every reply, in the order given."""
        return await self.settle([self.post(dst, message) for dst, message in requests])

    def tell(self, dst: str, message: Request[Any], stream: str = "") -> None:
        """Send a request and never look at its reply."""
        self._driver.send(dst, message, stream)

    def reply(self, request: str, message: Message) -> None:
        """Answer a request whose handler returned None."""
        self._driver.answer(request, message)

    @types.coroutine
    def park(self, *on: str) -> Generator[Any, Any, None]:
        """Sleep inside this node until ``wake`` is called with the same words."""
        self.touch(("park", *on))
        yield [on]

    def wake(self, *on: str) -> None:
        """Resume, in order and within this very handling, all that sleep on these words."""
        driver = self._driver
        if driver.parked or self.touched is not None:
            driver.wake(on)

    def choose(self, name: str, ways: int) -> int:
        """A freedom of the hardware: 0 <= result < ways, drawn by (seed, identity) or given."""
        return self._driver.choose(name, ways)

    def emit(self, record: Record) -> None:
        """Write a trace record."""
        self._driver.handled.records.append(record)

    def touch(self, key: ObjectKey, access: str = "write") -> None:
        """Say which shared object was accessed beyond what the message declares."""
        if self.touched is not None:
            self.touched.append((key, access))


class Driver:
    """Runs one node.  ``deliver`` is the whole interface to a broker."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.port = Port(self)
        self.handlers: Mapping[type[Message], Handler] = {}
        self.node: object = None
        self.open: dict[str, tuple[str, str]] = {}
        """Requests not yet answered: id -> (who asked, kind)."""
        self.stored: dict[str, Envelope] = {}
        """Replies kept for repeated requests, oldest first."""
        self.waiting: dict[str, Task] = {}
        self.posted: dict[str, Message | None] = {}
        self.settling: dict[Task, tuple[str, ...]] = {}
        self.parked: dict[Park, deque[Task]] = {}
        self.ready: deque[tuple[Task, Any]] = deque()
        self.handled = Handled(0)
        self.plain = Sender("")
        """The handler that is called, until it turns out to be a coroutine."""
        self.current: Sender = self.plain
        self.given: list[tuple[str, int, int]] | None = None
        self.chooser: Chooser | None = None
        """Decides choices that are not given, instead of the seed (search and replay)."""
        self.tracked = False
        """The node itself notes what its coroutines access (``footprint.track``)."""

    def close(self) -> None:
        """Nothing is delivered any more: let go of the node, which leads back here.

        Without that cycle a world is freed at once, and no collector has to find it.
        """
        self.handlers, self.node = {}, None
        del self.port

    # -- the broker's side ----------------------------------------------------------------

    def deliver(
        self, n: int, envelope: Envelope, choices: list[tuple[str, int, int]] | None = None
    ) -> Handled:
        """Handle delivery ``n``; ``choices`` are given in search and replay."""
        self.handled = handled = Handled(n)
        self.given = choices
        if envelope.id[-1] == REPLY_MARK:
            self._take_reply(envelope)
        else:
            self._take_request(envelope)
        ready = self.ready
        while ready:
            self._step(*ready.popleft())
        return handled

    def _take_request(self, envelope: Envelope) -> None:
        request = envelope.id
        if request in self.open:
            return  # a repetition; the first one will be answered
        stored = self.stored.get(request)
        if stored is not None:
            self.handled.messages.append(msgspec.structs.replace(stored, causes=(), blocked=False))
            return
        body: Any = envelope.body
        handler = self.handlers.get(type(body))  # none for bytes
        if handler is None:
            raise EmulatorError(f"{self.name} does not handle {envelope.kind} ({request})")
        touched = self.port.touched
        if touched is not None and not self.tracked:
            touched.append((body.object_key(), body.ACCESS))
        self.current = plain = self.plain
        plain.path, plain.sends, plain.choices = request, 0, 0
        result: Any = handler(body, envelope)
        if result is None:
            self.open[request] = (envelope.src, envelope.kind)
        elif type(result) is types.CoroutineType:
            self.open[request] = (envelope.src, envelope.kind)
            self._step(Task(result, request), None)  # nothing else is ready yet
        else:
            self._reply(request, envelope.src, envelope.kind, result)

    def _take_reply(self, envelope: Envelope) -> None:
        request, body = envelope.id[:-1], envelope.body  # without REPLY_MARK
        touched = self.port.touched
        if touched is not None and not self.tracked:
            touched.append(((), "write"))  # a resumed coroutine may touch anything here
        task = self.waiting.pop(request, None)
        if task is not None:
            self._step(task, body)  # nothing else is ready yet
        elif request in self.posted and isinstance(body, Message):
            self.port.touch(("posted", request))
            self.posted[request] = body
            for settling in [t for t, wanted in self.settling.items() if request in wanted]:
                self._settle(settling, self.settling[settling])
        # else: a repetition of a reply that was taken

    # -- stepping -------------------------------------------------------------------------

    def _step(self, task: Task, value: Any) -> None:
        self.current = task
        touched = self.port.touched
        if touched is not None:
            touched.append((("task", task.path), "write"))
        try:
            waits_for = task.coroutine.send(value)
        except StopIteration as stop:
            self.answer(task.path, stop.value)
            return
        if type(waits_for) is str:
            self.waiting[waits_for] = task
        elif type(waits_for) is tuple:
            self._settle(task, waits_for)
        else:
            self.parked.setdefault(waits_for[0], deque()).append(task)

    def _settle(self, task: Task, wanted: tuple[str, ...]) -> None:
        touched = self.port.touched
        if touched is not None:
            touched += [(("posted", request), "read") for request in wanted]
        for request in wanted:
            if self.posted[request] is None:
                self.settling[task] = wanted
                return
        self.settling.pop(task, None)
        self.ready.append((task, [self.posted.pop(request) for request in wanted]))

    def wake(self, on: Park) -> None:
        """Make the sleepers on ``on`` ready, in the order in which they went to sleep."""
        touched = self.port.touched
        if touched is not None:
            touched.append((("park", *on), "write" if on in self.parked else "read"))
        for task in self.parked.pop(on, ()):
            self.ready.append((task, None))

    # -- sending --------------------------------------------------------------------------

    def send(self, dst: str, message: Message, stream: str) -> str:
        """Append a request to this handling's messages; its id comes from its cause."""
        sender = self.current
        path = sender.path
        request = f"{path}.{sender.sends}"
        sender.sends += 1
        self.handled.messages.append(
            Envelope(request, self.name, dst, type(message).__name__, path, stream, message)
        )
        return request

    def answer(self, request: str, message: Message) -> None:
        """Answer an open ``request``."""
        src, kind = self.open.pop(request)
        self._reply(request, src, kind, message)

    def _reply(self, request: str, src: str, kind: str, message: Message) -> None:
        """Append the reply to ``request`` and keep it for repetitions."""
        reply_kind = _REPLY_KINDS.get(kind) or _REPLY_KINDS.setdefault(kind, kind + REPLY_MARK)
        reply = Envelope(request + REPLY_MARK, self.name, src, reply_kind, request, "", message)
        self.handled.messages.append(reply)
        stored = self.stored
        stored[request] = reply
        if len(stored) > STORED_REPLIES_MAX:
            del stored[next(iter(stored))]

    # -- choices --------------------------------------------------------------------------

    def choose(self, name: str, ways: int) -> int:
        """Take the given choice, or draw one by (seed, what chooses, how often it chose)."""
        taken, sender = self.handled.choices, self.current
        if self.given is not None and len(taken) < len(self.given):
            asked, had, way = self.given[len(taken)]
            if (asked, had) != (name, ways):
                raise ReplayDivergence(
                    self.name, self.handled.n, "choices", f"{asked}/{had} became {name}/{ways}"
                )
        elif self.chooser is not None:
            way = self.chooser(sender.path, sender.choices, name, ways)
        else:
            way = draw(self.seed, f"{sender.path}/{sender.choices}/{name}") % ways
        sender.choices += 1
        taken.append((name, ways, way))
        return way


def draw(seed: int, identity: str) -> int:
    """A 64-bit number that depends on the seed and on who draws, never on the order of draws."""
    digest = blake2b(f"{seed}/{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
