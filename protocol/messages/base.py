"""What all messages share: the frozen struct, the declared footprint, the registry."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

ObjectKey = tuple[str | int, ...]
"""A shared object: a label and what completes it, e.g. ``("word", frame, index)``.

Two keys conflict if one is a prefix of the other: ``("word", 7)`` is every word of frame 7.
"""


class Message(
    msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False
):
    """A request or a reply.  Plain values only.

    ``OBJECT`` is the label of the object accessed, then the fields that complete its key;
    empty means "the whole receiver".  ``ACCESS`` is ``read`` or ``write``.  ``REPLY`` is the
    class of the reply, ``None`` for a reply itself.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ()
    ACCESS: ClassVar[str] = "write"
    REPLY: ClassVar[type[Message] | None] = None

    def object_key(self) -> ObjectKey:
        """The declared object of this very message."""
        if not self.OBJECT:
            return ()
        label, *fields = self.OBJECT
        return (label, *(getattr(self, field) for field in fields))


class Ack(Message):
    """Done; nothing to say."""


class PeerGone(Message):
    """The receiver is dead (chaos killed it): the request will never be handled."""


def kinds() -> dict[str, type[Message]]:
    """Every message class by its kind (the class name)."""
    found: dict[str, type[Message]] = {}
    todo: list[Any] = [Message]
    while todo:
        cls = todo.pop()
        for child in cls.__subclasses__():
            found[child.__name__] = child
            todo.append(child)
    return found
