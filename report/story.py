"""Why what a search found fails, as people and programs read it: cut down, and explained."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain, repeat
from typing import Any

from rich.console import Console

from mmurace.explorer.explain.found import Story
from mmurace.explorer.run.outcome import Outcome
from mmurace.report import formats, interleaving
from mmurace.report.exploration import LABEL_WIDTH
from mmurace.report.minimizing import size_text
from mmurace.report.next_steps import next_steps
from mmurace.report.screen import put
from mmurace.report.terminal import repeat_command


def print_story(console: Console, outcome: Outcome, story: Story) -> None:
    """The explanation of it, and the commands that repeat it."""
    put(console, "\n" + interleaving.terminal(story.explanation))
    put(console, f"\n  {'cut down':<{LABEL_WIDTH}}{_cut_down(story)}")
    put(console, f"  {'schedule':<{LABEL_WIDTH}}{formats.command('replay', str(story.file))}")
    put(console, f"  {'reproduce':<{LABEL_WIDTH}}{repeat_command(outcome)}")
    steps = next_steps(story.explanation.violation, outcome.spec.name, story.file)
    for label, line in zip(chain(["next"], repeat("")), steps, strict=False):
        put(console, f"  {label:<{LABEL_WIDTH}}{line}")


def _cut_down(story: Story) -> str:
    found = story.minimized
    more = "; minimize goes on" if found.interrupted else ""
    before = formats.many(found.before.deliveries, "delivery", "deliveries")
    tries = formats.many(found.tries, "try", "tries")
    return f"from {before} to {size_text(found.after)} in {tries}{more}"


def story_dict(story: Story) -> dict[str, Any]:
    """The short schedule and its explanation."""
    found = story.minimized
    sizes = {"before": asdict(found.before), "after": asdict(found.after), "tries": found.tries}
    explanation = interleaving.as_dict(story.explanation)
    return {"schedule": str(story.file), "minimized": sizes, "explanation": explanation}
