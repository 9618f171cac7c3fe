"""A run for other tools: what their own parsers make of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mmurace import launch
from mmurace.explorer.run import schedule_file
from mmurace.report.exports.shiviz import PARSER, shiviz_of
from mmurace.report.junit import Case, ci_lines, write_junit
from mmurace.report.page.model import moments_of, page_of
from tests.minimal import EXAMPLES, explained

RACE = EXAMPLES[0]


def events_of(log: str) -> list[tuple[str, dict[str, int], str]]:
    """As ShiViz reads it: (host, clock, event)."""
    pattern = re.compile(PARSER.replace("(?<", "(?P<"))
    assert "".join(f"{found[0]}\n" for found in pattern.finditer(log)) == log
    return [(m["host"], json.loads(m["clock"]), m["event"]) for m in pattern.finditer(log)]


def test_a_log_for_shiviz_has_a_clock_that_knows_the_causes() -> None:
    explanation = explained(*RACE)
    moments = moments_of(explanation)
    events = events_of(shiviz_of(moments, explanation.case.kinds()))
    assert [host for host, *_ in events] == [moment.envelope.dst for moment in moments]
    count: dict[str, int] = {}
    sent: dict[str, dict[str, int]] = {}
    for (host, clock, _), moment in zip(events, moments, strict=True):
        count[host] = count.get(host, 0) + 1
        assert clock[host] == count[host]
        for party, known in sent.get(moment.envelope.id, {}).items():
            assert clock[party] >= known
        sent.update((message.id, clock) for message in moment.handled.messages)
    assert any(len(clock) > 2 for _, clock, _ in events)


def test_a_trace_for_perfetto_has_every_delivery_and_what_lasts() -> None:
    trace = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    from mmurace.report.exports.perfetto import perfetto_of

    page = page_of(explained(*RACE), [])
    parsed = trace.Trace()
    parsed.ParseFromString(perfetto_of(page))
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in parsed.packet
              if p.HasField("track_descriptor")}  # fmt: skip
    assert {lane.title for lane in page.lanes} <= {track.name for track in tracks.values()}
    events = [p for p in parsed.packet if p.HasField("track_event")]
    assert {p.track_event.track_uuid for p in events} <= set(tracks)
    instants = [p.track_event for p in events if p.track_event.name]
    assert {text for *_, text in page.deliveries} <= {event.name for event in instants}
    open_slices: dict[int, int] = {}
    kinds = trace.TrackEvent
    for packet in sorted(events, key=lambda p: p.timestamp):
        event = packet.track_event
        step = {kinds.TYPE_SLICE_BEGIN: 1, kinds.TYPE_SLICE_END: -1}.get(event.type, 0)
        open_slices[event.track_uuid] = open_slices.get(event.track_uuid, 0) + step
    assert set(open_slices.values()) == {0}
    flows = [event.flow_ids[0] for event in instants if event.flow_ids]
    assert len(flows) > len(set(flows))  # some begin with one party and end with another


@pytest.mark.parametrize(("shown", "ending"), [("shiviz", "shiviz.log"), ("html", "html")])
def test_the_command_writes_it_beside_the_schedule(
    shown: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explanation = explained(*RACE)
    text = schedule_file.schedule_text(explanation.case, explanation.target)
    (file := tmp_path / "a.schedule.toml").write_text(text)
    assert launch.main(["report", str(file), "--format", shown]) == 1
    written = tmp_path / f"a.schedule.{ending}"
    assert capsys.readouterr().out.strip() == str(written)
    assert written.stat().st_size > 1000


def test_results_for_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case("E01", "v5.8", ""), Case("E02", "v6.2", "held, not\nviolated: 100 %", 1.5, "x")]
    write_junit(tmp_path / "out.xml", cases)
    suites = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("time")) == ("2", "1", "1.500")
    good, bad = suites.iter("testcase")
    assert good.find("failure") is None
    failure = bad.find("failure")
    assert failure is not None
    assert failure.get("message") == "held, not violated: 100 %"
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert ci_lines(cases) == []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert ci_lines(cases) == ["::error title=E02 v6.2::held, not%0Aviolated: 100 %25"]


def test_the_matrix_as_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "matrix.xml"
    arguments = ["matrix", "--race", "E01", "--schedules", "3", "--junit", str(file)]
    status = launch.main(arguments)
    assert status in (0, 1), capsys.readouterr().err
    tests = list(ElementTree.parse(file).getroot().iter("testcase"))
    assert {test.get("classname") for test in tests} == {"E01"}
    assert "v5.7" in {test.get("name") for test in tests}
    assert any(test.find("failure") is not None for test in tests) == (status == 1)
    assert all("explore E01 --kernel" in (test.findtext("system-out") or "") for test in tests)
