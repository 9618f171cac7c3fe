"""Kinds of caches, as the secondaries that are known by now have declared them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from mmurace.nodes.secondary import Secondary, secondaries


class Kinds(NamedTuple):
    """Names of caches with one thing in common."""

    shadow: frozenset[str]
    """Filled from a table of the secondary's own (catalogue 1)."""
    zapped: frozenset[str]
    """That table itself."""
    walked: frozenset[str]
    """Filled from the mm's own table by a walk, and invalidated by commands."""
    derived: frozenset[str]
    """Filled from entries of another cache."""
    sources: frozenset[str]
    """Those from whose entries others are filled."""
    by_guest_address: frozenset[str]
    latched: frozenset[str]
    """Values count as usable once their holder begins to use them."""
    dropped_on: frozenset[str]
    """Requests that make a holder drop such a value."""
    read_only: frozenset[str]
    tags_reused: frozenset[str]


def kinds() -> Kinds:
    """Those of all secondaries."""
    return _kinds(secondaries())


@cache
def _kinds(known: tuple[Secondary, ...]) -> Kinds:
    every = [one for secondary in known for one in secondary.caches]
    caches = [one for one in every if not one.upper]
    plain = [one for one in caches if not one.source and not one.latched]
    return Kinds(
        shadow=frozenset(one.name for one in caches if one.table == "shadow"),
        zapped=frozenset(one.name for one in plain if one.table == "shadow"),
        walked=frozenset(one.name for one in plain if one.table == "shared"),
        derived=frozenset(one.name for one in caches if one.source),
        sources=frozenset(one.source for one in caches if one.source),
        by_guest_address=frozenset(one.name for one in caches if one.by_guest_address),
        latched=frozenset(one.name for one in caches if one.latched),
        dropped_on=frozenset(one.dropped_on for one in caches if one.dropped_on),
        read_only=frozenset(one.name for one in caches if one.read_only),
        tags_reused=frozenset(one.name for one in caches if one.tags_reused),
    )
