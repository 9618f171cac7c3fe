"""The page of a violation: what is in it, that it is one file, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.report.interleaving import chosen_rows
from mmurace.report.page.model import Page, page_of
from mmurace.report.page.write import html_of
from mmurace.report.steps import text_of
from tests.minimal import EXAMPLES, explained

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
VOID = {"meta", "input", "br"}


@pytest.fixture(params=EXAMPLES, ids="-".join)
def page(request: pytest.FixtureRequest) -> Page:
    """The page of a race of the catalogue."""
    return page_of(explained(*request.param), ["explain <it>"])


def test_every_row_is_there_and_every_party_has_a_lane(page: Page) -> None:
    assert page.rows
    assert {row.lane for row in page.rows} <= set(range(len(page.lanes)))
    numbers = [n for n, *_ in page.deliveries]
    assert numbers == sorted(set(numbers))
    assert {row.n for row in page.rows} <= set(numbers)
    assert sum(row.decisive for row in page.rows) >= 3
    assert page.closing


def test_the_rows_are_those_of_the_explanation() -> None:
    explanation = explained(*EXAMPLES[0])
    told = {text_of(row) for row in chosen_rows(explanation.rows)}
    assert told >= {row.text for row in page_of(explanation, []).rows if row.decisive}


def test_what_lasts_ends_after_it_begins(page: Page) -> None:
    assert {bar.kind for bar in page.bars} >= {"lock", "cached"}
    assert all(bar.first <= bar.last for bar in page.bars)
    cached = next(bar for bar in page.bars if bar.kind == "cached")
    assert any(row.n == cached.first and row.decisive for row in page.rows)


class Balanced(HTMLParser):
    """Counts what is open; a page leaves nothing open and closes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balanced(text: str) -> None:
    """Nothing is left open, and nothing is asked of anybody."""
    reader = Balanced()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.sources == []


def test_it_is_one_file_that_asks_nobody(page: Page) -> None:
    text = html_of(page)
    balanced(text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@" not in re.sub(r"@media", "", text.partition("<script type")[0])


def test_no_text_ends_the_page_or_its_data(page: Page) -> None:
    title = "</title></script><script>alert(1)</script>"
    told = Page(**{name: getattr(page, name) for name in page.__struct_fields__} | {"title": title})
    text = html_of(told)
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["title"] == title


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_draws_it(page: Page, tmp_path: Path) -> None:
    """All rows of a page that fits its window, with the words that the script made of them."""
    (file := tmp_path / "report.html").write_text(html_of(page))
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
         "--window-size=1600,3000", "--virtual-time-budget=2000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    drawn = done.stdout
    assert drawn.count("data-row=") == len(page.rows), done.stderr[-500:]
    assert drawn.count('aria-expanded="true"') >= 2
    assert 'class="cached"' in drawn
    assert 'class="decisive"' in drawn


def test_the_command_writes_it_beside_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert launch.main(["explore", "E01", "--seed", "1", "--out", str(run), "--no-explain"]) == 1
    assert launch.main(["report", str(run)]) == 1
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert launch.main(["report", str(run), "--out", str(tmp_path / "other.html")]) == 1
    assert (tmp_path / "other.html").exists()
    assert launch.main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert launch.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


# ---- pages of what has no violation to show ------------------------------------------------------


def summary_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    launch.main([*words, "--json"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("explore", "E08", "--kernel", "v6.6", "--schedules", "20"), "schedules a second"),
        (("explore", "E02", "--kernel", "v6.6-arm64", "--exhaustive"), "rules judged"),
    ],
)
def test_a_page_of_a_search(
    words: tuple[str, ...], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "found.json").write_text(summary_of(list(words), capsys))
    assert launch.main(["report", str(file)]) == 0
    written = (tmp_path / "found.html").read_text()
    balanced(written)
    assert shown in written


def test_every_run_has_a_page_with_its_windows_and_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = ["stress", "--on", "simulator", "--operations", "400", "--seed", "3", "--out", run]
    launch.main(words)
    written = (tmp_path / "run" / "report.html").read_text()
    balanced(written)
    assert "Whose windows were entered" in written
    assert '<td class="never">never</td>' in written
    assert "How long an invalidation took" in written
    assert written.count("<rect ") > 10
    capsys.readouterr()
    assert launch.main(["report", run]) == 0
    assert "latency" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is no JSON"), ("[1]", "is of something else"), ('{"exit_code": 0}', "something else")],
)
def test_what_is_no_summary_is_said(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "a.json").write_text(text)
    assert launch.main(["report", str(file)]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
