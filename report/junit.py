"""Results for those who run this in CI: JUnit XML, and lines that a CI service shows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mmurace.nodes.files import not_opened, write_whole
from mmurace.report.formats import plain


@dataclass(frozen=True, slots=True)
class Case:
    """One race on one kernel, as a test."""

    race: str
    kernel: str
    failure: str
    """What is not as expected, on one line; empty: it passed."""
    seconds: float = 0.0
    output: str = ""
    """What else there is to read: how to run it again."""


def write_junit(file: Path, cases: Sequence[Case]) -> None:
    """The results as JUnit XML.  Raises ``UserError`` if the file cannot be written."""
    text = ElementTree.tostring(_suite(cases), encoding="utf-8", xml_declaration=True)
    try:
        write_whole(file, text + b"\n")
    except OSError as error:
        raise not_opened(file, error, "cannot be written", "a file") from None


def _suite(cases: Sequence[Case]) -> ElementTree.Element:
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(bool(case.failure) for case in cases)),
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "mmurace", **counts})
    for case in cases:
        named = {"classname": case.race, "name": case.kernel, "time": f"{case.seconds:.3f}"}
        test = ElementTree.SubElement(suite, "testcase", named)
        if case.failure:
            failure = ElementTree.SubElement(test, "failure", {"message": plain(case.failure)})
            failure.text = plain(case.failure)
        if case.output:
            ElementTree.SubElement(test, "system-out").text = case.output
    return suites


def ci_lines(cases: Iterable[Case]) -> list[str]:
    """A line for each failure, as GitHub's runners show it beside the change; else none."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return []
    return [
        f"::error title={_escaped(f'{case.race} {case.kernel}', title=True)}"
        f"::{_escaped(case.failure)}"
        for case in cases
        if case.failure
    ]


def _escaped(text: str, title: bool = False) -> str:
    for char, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(char, code)
    return text.replace(":", "%3A").replace(",", "%2C") if title else text
