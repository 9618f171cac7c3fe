"""Drivers that decode a range: a sound one covers what was asked, with bounded work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmurace.nodes.secondaries.decode import (
    ALL,
    CMDQ_MAX_TLBI_OPS,
    Decoder,
    decode,
    decode_atc,
    page_by_page,
    pages_left,
)
from mmurace.protocol.limits import CALLBACK_COMMANDS_MAX, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.ranges import covers

SOUND: tuple[Decoder, ...] = ("exact", "as_given", "page_or_all", "size0_all", "off_by_one")
PAGES = 64
CORNERS = (0, 1, PAGE_SIZE - 1, PAGE_SIZE, ULONG_MAX - PAGE_SIZE, ULONG_MAX - 1, ULONG_MAX)
ADDRESS = st.sampled_from(CORNERS) | st.integers(0, ULONG_MAX)


def told(decoder: Decoder, start: int, end: int, address: int) -> bool:
    """Whether some command holds the address."""
    return any(covers(first, last, address) for first, last in decode(decoder, start, end, PAGES))


@pytest.mark.parametrize("decoder", SOUND)
@given(start=ADDRESS, end=ADDRESS, address=ADDRESS)
def test_sound_decoders_cover_what_was_asked(
    decoder: Decoder, start: int, end: int, address: int
) -> None:
    for wanted in {start, address, max(end - 1, 0)}:
        if covers(start, end, wanted):
            assert told(decoder, start, end, wanted)


@pytest.mark.parametrize("decoder", SOUND)
@given(start=ADDRESS, end=ADDRESS)
def test_sound_decoders_have_bounded_work(decoder: Decoder, start: int, end: int) -> None:
    for commands in (decode(decoder, start, end, PAGES), decode_atc(decoder, start, end, PAGES)):
        assert len(list(commands)) <= CALLBACK_COMMANDS_MAX


@pytest.mark.parametrize("decoder", SOUND)
@given(start=ADDRESS, pages=st.integers(1, PAGES))
def test_a_unit_that_takes_no_ranges_is_told_the_same_pages(
    decoder: Decoder, start: int, pages: int
) -> None:
    end = min(start + pages * PAGE_SIZE, ULONG_MAX)
    singly = list(page_by_page(decoder, start, end, 2 * PAGES))
    assert all(command == ALL or command[1] - command[0] <= PAGE_SIZE for command in singly)
    for first, last in decode(decoder, start, end, PAGES):
        assert ALL in singly or {first, last} <= {edge for command in singly for edge in command}


def test_a_unit_that_takes_no_ranges_is_told_everything_from_a_tableful_on() -> None:
    most = (CMDQ_MAX_TLBI_OPS - 1) * PAGE_SIZE
    assert len(list(page_by_page("size0_all", 0, most, 1 << 10))) == CMDQ_MAX_TLBI_OPS - 1
    assert list(page_by_page("size0_all", 0, most + PAGE_SIZE, 1 << 10)) == [ALL]
    assert len(list(page_by_page("as_given", 0, most + PAGE_SIZE, 1 << 10))) == CMDQ_MAX_TLBI_OPS


def test_everything_by_decoder() -> None:
    assert [list(decode(decoder, *ALL, PAGES)) for decoder in SOUND] == [[ALL]] * len(SOUND)
    assert list(decode("round_up_overflow", *ALL, PAGES)) == []
    assert list(decode("size0_noop", *ALL, PAGES)) == []
    assert list(decode("unaligned", *ALL, PAGES)) == [(0, PAGE_SIZE)]
    assert list(decode_atc("size0_noop", *ALL, PAGES)) == [ALL]
    assert len(list(decode("per_page_loop", *ALL, PAGES))) == PAGES


@given(start=ADDRESS, pages=st.integers(0, 3 * PAGES), offset=st.integers(0, PAGE_SIZE - 1))
def test_what_a_loop_has_left_when_it_is_cut(start: int, pages: int, offset: int) -> None:
    end = start + pages * PAGE_SIZE + offset
    done = len(list(decode("per_page_loop", start, end, PAGES)))
    assert done + pages_left(start, end, PAGES) == pages + (offset > 0)
    assert pages_left(*ALL, PAGES) == (1 << 52) - PAGES


def test_the_end_of_the_address_space_twice_is_an_empty_range() -> None:
    assert list(decode("exact", ULONG_MAX, ULONG_MAX, PAGES)) == []
    assert list(decode("per_page_loop", ULONG_MAX, ULONG_MAX, PAGES)) == []
    assert list(decode("size0_all", ULONG_MAX, ULONG_MAX, PAGES)) == [ALL]
    assert list(decode("as_given", ULONG_MAX, ULONG_MAX, PAGES)) == []
    assert list(decode_atc("as_given", ULONG_MAX, ULONG_MAX, PAGES)) == [ALL]
    last = ULONG_MAX + 1 - PAGE_SIZE
    assert list(decode("page_or_all", ULONG_MAX, ULONG_MAX, PAGES)) == [(last, ULONG_MAX)]


@pytest.mark.parametrize(
    ("first", "pages", "missed"),
    [
        (0, 1, 0),
        (0, 2, 0),
        (4, 4, 0),
        (0, 3, 0),
        (1, 2, 1),
        (3, 2, 1),
        (2, 4, 2),
        (5, 3, 0),
        (6, 3, 1),
    ],
)
def test_a_block_of_pages_begins_before_its_range_and_ends_before_it(
    first: int, pages: int, missed: int
) -> None:
    """2d6ffc63f124 (v5.11): the unit ignores the address below the block; the ATC is told right."""
    start, end = first * PAGE_SIZE, (first + pages) * PAGE_SIZE
    wanted = range(start, end, PAGE_SIZE)
    lost = [page for page in wanted if not told("unaligned", start, end, page)]
    assert lost == list(wanted)[pages - missed :]
    for low, high in decode_atc("unaligned", start, end, PAGES):
        assert (low, high) == (start, end)


@given(start=ADDRESS, end=ADDRESS)
def test_a_page_or_all_is_one_page_only_if_it_is_asked_for_one(start: int, end: int) -> None:
    commands = list(decode("page_or_all", start, end, PAGES))
    page = start & ~(PAGE_SIZE - 1)
    assert commands in ([ALL], [(page, min(page + PAGE_SIZE, ULONG_MAX))])


@pytest.mark.parametrize(
    "decoder", ["round_up_overflow", "size0_noop", *(d for d in SOUND if d != "page_or_all")]
)
def test_small_ranges_are_right_everywhere(decoder: Decoder) -> None:
    for page in range(3):
        start = page * PAGE_SIZE
        assert told(decoder, start, start + 2 * PAGE_SIZE, start + PAGE_SIZE)
        assert not told(decoder, start, start + PAGE_SIZE, start + 8 * PAGE_SIZE)
