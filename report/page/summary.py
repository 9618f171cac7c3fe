"""What a run or a search found, as sections of a page: tables, and bars drawn without a script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from mmurace.protocol.errors import UserError
from mmurace.report import formats
from mmurace.report.page.write import part

Facts = Mapping[str, Any]
"""``summary.json`` of a run, or what ``explore --json`` says."""
BARS_MAX: Final = 24
"""Of a histogram; neighbours share one."""
WIDTH: Final = 320
NEVER: Final = "never"
RULE_KEYS: Final = ("fault", "matched", "hits")


def facts_of(file: Path) -> Facts:
    """What ``--json`` has written.  Raises ``UserError``."""
    expected = "summary.json of a run, or what explore --json says"
    try:
        facts = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}", expected) from None
    except ValueError as error:
        raise UserError(str(file), f"is no JSON: {error}", expected) from None
    if not isinstance(facts, dict) or not {"exit_code", "verdict"} <= set(facts):
        raise UserError(str(file), "is of something else", expected)
    return facts


def summary_page(facts: Facts, commands: Sequence[str]) -> str:
    """A page of its own, for what has no violation to show."""
    headline = str(facts.get("headline") or f"{_verdict(facts).upper()}: {facts.get('name')}")
    return (
        part("summary.html")
        .replace("@title@", escape(headline))
        .replace("@kernel@", escape(_kernel(facts)))
        .replace("@sections@", "\n".join(sections(facts)))
        .replace("@again@", _again(commands))
        .replace("@style@", part("page.css") + part("summary.css"))
    )


def _again(commands: Sequence[str]) -> str:
    listed = escape("\n".join(commands))
    return f"<section>\n<h2>Again</h2>\n<pre>{listed}</pre>\n</section>" if commands else ""


def sections(facts: Facts) -> Iterator[str]:
    """Those that it has something for."""
    made = {
        "Violations": _violations(facts),
        "Why": _reasons(facts),
        "Whose windows were entered": _windows(facts),
        "How long an invalidation took, in deliveries": _latencies(facts),
        "The search": _search(facts),
        "Conditions": _counted(facts.get("conditions")),
        "What was come through": _counted(facts.get("coverage")),
        "Policies": _policies(facts.get("policies")),
        "Operations": _operations(facts.get("operations")),
        "Chaos": _chaos(facts.get("chaos")),
        "Messages": _counted(facts.get("counts")),
    }
    for title, body in made.items():
        if body:
            yield f"<section><h2>{escape(title)}</h2>\n{body}\n</section>"


def _verdict(facts: Facts) -> str:
    verdict = facts["verdict"]
    return str(verdict.get("outcome") if isinstance(verdict, dict) else verdict)


def _kernel(facts: Facts) -> str:
    kernel = facts.get("kernel") or {}
    differs = ", ".join(f"{name} = {value}" for name, value in (kernel.get("set") or {}).items())
    named = " ".join(filter(None, (kernel.get("release"), kernel.get("arch"))))
    return f"{named} ({differs})" if differs else named


def _reasons(facts: Facts) -> str:
    verdict = facts["verdict"]
    reasons = verdict.get("reasons") if isinstance(verdict, dict) else None
    return _items(map(str, reasons or ()))


def _items(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _violations(facts: Facts) -> str:
    """Each in a line; the interleaving is another page (``report DIR``)."""
    return _items(
        f"{of['rule']} by {of['agent']} ({of['cache'] or 'no cache'}"
        f"{', ' + formats.place(of['mm'], of['address']) if of['mm'] else ''}): {of['detail']}"
        for of in facts.get("violations") or ()
    )


def _windows(facts: Facts) -> str:
    """By operation and kind of cache; a window that nobody entered stands out, also in print."""
    verdict = facts["verdict"]
    how = verdict.get("how") if isinstance(verdict, dict) else None
    windows: Mapping[str, Mapping[str, int]] = (how or {}).get("windows") or {}
    if not windows:
        return ""
    caches = list(dict.fromkeys(cache for row in windows.values() for cache in row))
    most = max((count for row in windows.values() for count in row.values()), default=0)
    rows = [
        [_head(kind), *(_cell(row.get(c), most) for c in caches)] for kind, row in windows.items()
    ]
    note = "<p>How often somebody came in between with a live entry; blank where nobody can.</p>"
    return note + _table(["operation", *caches], rows)


def _cell(count: int | None, most: int) -> str:
    if count is None:
        return "<td></td>"
    if not count:
        return f'<td class="never">{NEVER}</td>'
    share = 12 + round(60 * (len(str(count)) / max(len(str(most)), 1)))
    return f'<td class="met" style="--share: {share}%">{formats.number(count)}</td>'


def _latencies(facts: Facts) -> str:
    found: Mapping[str, Facts] = facts.get("latency") or {}
    return "".join(
        f"<h3>{escape(cache)}: {formats.number(of['count'])}, half within {of['p50']}, "
        f"99 of 100 within {of['p99']}, at most {of['max']}</h3>\n"
        + histogram([(int(a), int(b)) for a, b in of.get("counts", ())])
        for cache, of in found.items()
    )


def histogram(counts: Sequence[tuple[int, int]]) -> str:
    """Bars of (value, how often); values share a bar where there are many."""
    if not counts:
        return ""
    low, high = counts[0][0], counts[-1][0]
    step = max(1, -(-(high - low + 1) // BARS_MAX))
    bars: dict[int, int] = {}
    for value, count in counts:
        first = low + (value - low) // step * step
        bars[first] = bars.get(first, 0) + count
    labels = {f: str(f) if step == 1 else f"{f} to {f + step - 1}" for f in bars}
    return _bars([(labels[first], count) for first, count in sorted(bars.items())])


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in bars), default=1) or 1
    rows = [
        [_head(label), f'<td class="bars"><svg width="{WIDTH}" height="12" role="img" '
         f'aria-label="{count}"><rect width="{max(1, WIDTH * count // most)}" height="12"/></svg>'
         f"</td><td>{formats.number(count)}</td>"]
        for label, count in bars
    ]  # fmt: skip
    return _table([], rows)


def _search(facts: Facts) -> str:
    wall = facts.get("wall") or {}
    told = {
        "engine": facts.get("engine") or facts.get("strategy"),
        "schedules": facts.get("schedules"),
        "states": facts.get("states"),
        "deliveries": facts.get("deliveries"),
        "schedules that entered a window": facts.get("entered"),
        "distinct traces": facts.get("distinct_traces"),
        "schedules a second": wall.get("schedules_per_second"),
        "deliveries a second": wall.get("deliveries_per_second"),
        "rules judged": ", ".join(facts.get("rules") or ()) or None,
        "nodes that are interchangeable": ", ".join(facts.get("symmetric") or ()) or None,
    }
    known = {name: value for name, value in told.items() if value is not None}
    if not {"engine", "schedules"} & set(known):
        return ""
    return _table([], [[_head(name), f"<td>{escape(_text(v))}</td>"] for name, v in known.items()])


def _counted(found: Any) -> str:
    if not isinstance(found, dict) or not any(found.values()):
        return ""
    return _bars([(str(name), int(count)) for name, count in found.items()])


def _chaos(found: Any) -> str:
    """By rule how many messages it is about it saw, and how often it did something."""
    rules = found.get("rules") if isinstance(found, dict) else None
    rows = [
        [_head(str(of["name"])), *(f"<td>{escape(_text(of[key]))}</td>" for key in RULE_KEYS)]
        for of in rules or ()
    ]
    return _table(["rule", *RULE_KEYS], rows) if rows else ""


def _policies(found: Any) -> str:
    if not isinstance(found, dict) or not found:
        return ""
    rows = [
        [_head(name), *(f"<td>{_text(of.get(key))}</td>" for key in ("schedules", "violated"))]
        for name, of in found.items()
    ]
    return _table(["policy", "schedules", "violated"], rows)


def _operations(found: Any) -> str:
    if not isinstance(found, dict) or not found:
        return ""
    rows = []
    for name, of in sorted(found.items(), key=lambda item: -item[1]["done"]):
        errors = ", ".join(f"{n} {formats.errno_name(int(e))}" for e, n in of["errors"].items())
        rows.append([_head(name), f"<td>{_text(of['done'])}</td>", f"<td>{escape(errors)}</td>"])
    return _table(["operation", "done", "failed"], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f"<table>{top}<tbody>\n{body}\n</tbody></table>"


def _head(name: str) -> str:
    return f'<th scope="row">{escape(name)}</th>'


def _text(value: Any) -> str:
    return formats.number(value) if isinstance(value, int) else str(value)
