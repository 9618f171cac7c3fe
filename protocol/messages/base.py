"""What all messages share: the frozen struct, the declared footprint, the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar, get_args

import msgspec

from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.lock import Lock
from mmurace.protocol.told import Told

ObjectKey = tuple[str | int, ...]
"""A shared object: a label and what completes it, e.g. ``("word", frame, index)``.

Two keys conflict if one is a prefix of the other: ``("word", 7)`` is every word of frame 7.
"""

R = TypeVar("R", bound="Message")


class Message(
    msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False
):
    """A request or a reply.  Plain values only.

    ``OBJECT`` is the label of the object accessed, then the fields that complete its key;
    empty means "the whole receiver".  ``ACCESS`` is ``read``, ``write``, ``add`` or ``drop``: adds
    commute with each other (references that are taken, shared holds of a lock), and so do drops
    (references that are given back), but with nothing else.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ()
    ACCESS: ClassVar[str] = "write"

    TAKES: ClassVar[Lock | None] = None
    """The lock that its receiver has granted when it answers."""
    GIVES_BACK: ClassVar[Lock | None] = None
    MAY_SLEEP: ClassVar[bool] = False
    """Whoever sends it may have to sleep, other than for a lock."""
    MAY_COME_LATER: ClassVar[bool] = False
    """A handler that makes it wait does nothing else, and the answer is the same as if it had come
    when it need not wait.  True of all requests for locks."""

    TOLD: ClassVar[Told] = Told()
    OWN_PAGE: ClassVar[str] = ""
    """The field with a page number of the receiver's own, which stands for one of an mm."""
    OF_MM: ClassVar[str] = "mm"
    """The field, if there is one, that says whose translations it is about."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        _KINDS.clear()

    def object_key(self) -> ObjectKey:
        """The declared object of this very message."""
        key = _KEYS.get(type(self)) or _KEYS.setdefault(type(self), _key_maker(self.OBJECT))
        return key(self)


_KINDS: dict[str, type[Message]] = {}
"""What ``kinds`` has found; empty after another class has been declared."""
_KEYS: dict[type[Message], Callable[[Message], ObjectKey]] = {}
"""How the key of a class is made; explorations ask for it at every delivery."""


def _key_maker(declared: tuple[str, ...]) -> Callable[[Message], ObjectKey]:
    label: ObjectKey = declared[:1]
    fields = declared[1:]
    if not fields:
        return lambda _: label
    get: Callable[[Message], Any] = attrgetter(*fields)
    if len(fields) == 1:
        return lambda message: (*label, get(message))
    return lambda message: (*label, *get(message))


class Request(Message, Generic[R], frozen=True):
    """A message that is answered by an ``R``."""

    @classmethod
    def reply_kind(cls) -> type[Message]:
        """The class of the reply."""
        for klass in cls.__mro__:
            for base in getattr(klass, "__orig_bases__", ()):
                for argument in get_args(base):
                    if isinstance(argument, type):
                        return argument
        raise EmulatorError(f"{cls.__name__} does not say what answers it")


class Ack(Message, frozen=True):
    """Done; nothing to say."""


class PeerGone(Message, frozen=True):
    """The receiver is dead (chaos killed it): the broker's answer to whatever is asked of it.

    Nothing, or only a part, of what was asked was done.  A translation that it held is gone with
    it, so to whoever waits for an invalidation this is as good as its completion.
    """


def kinds() -> Mapping[str, type[Message]]:
    """Every message class that there is by now, by its kind (the class name)."""
    if not _KINDS:
        todo: list[Any] = [Message]
        while todo:
            cls = todo.pop()
            for child in cls.__subclasses__():
                _KINDS[child.__name__] = child
                todo.append(child)
    return _KINDS
