"""``hunt``: random small programs on a kernel, explored; what breaks is cut down and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmurace.protocol.errors import EmulatorError, ReplayDivergence, UserError
from mmurace.report import hunting
from mmurace.report.commands.run import print_json
from mmurace.report.commands.values import kernel_from, seed_from
from mmurace.report.directory import new_run, point_to
from mmurace.report.progress import Progress
from mmurace.report.screen import say, stderr, write_out

if TYPE_CHECKING:
    from mmurace.campaign.hunt.directory import Directory
    from mmurace.campaign.hunt.hunt import Hunt, Options
    from mmurace.nodes.kernel.variant import Kernel


def hunt(
    kernel: str,
    arch: str,
    switches: list[str],
    drivers: list[str],
    patch: str,
    against: str,
    seconds: float | None,
    programs: int | None,
    schedules: int,
    jobs: int,
    resume: Path | None,
    explanation: bool,
    seed: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Hunt, and print what is found as it is found."""
    from mmurace.campaign.hunt.directory import Directory
    from mmurace.campaign.hunt.hunt import Hunt, Options

    bounds = Options(0, programs, seconds, schedules, jobs)
    if resume is not None:
        _check_alone(kernel, arch, switches, drivers, patch, against, seed, out)
        directory = Directory(resume)
        variant, options = directory.asked(bounds)
    else:
        variant = _kernel(kernel, arch, switches, drivers, patch)
        options = _options(bounds, variant, against, seed_from(seed))
        directory = Directory(new_run(f"hunt-{variant.release}-{variant.machine}", out))
        directory.begin(variant, options)
        if out is None:
            point_to(directory.path)
    name = f"{variant.release} {variant.machine}"
    say(f"hunting on {name}, seed {options.seed:#x}, in {directory.path}")
    with Progress(stderr(), hunting.hunt_line) as progress:
        hunted = Hunt(variant, options, directory, progress)
        found = _told(hunted, directory, explanation, as_json)
    if as_json:
        print_json(hunting.hunt_dict(hunted, found, directory.path))
    else:
        write_out(hunting.summary(hunted))
    return hunted.exit_code


def _told(
    hunted: Hunt, directory: Directory, explanation: bool, as_json: bool
) -> list[dict[str, Any]]:
    """Each finding, told when it is found, and explained in a page beside it."""
    found = []
    for finding in hunted:
        race = directory.race_of(finding)
        tell = say if as_json else write_out
        tell(hunting.finding_line(finding, race))
        if explanation:
            explain_beside(race)
        found.append(hunting.finding_dict(finding, race))
    return found


def explain_beside(race: Path) -> None:
    """Why it fails, as Markdown beside the race's file, unless that is there already."""
    from mmurace.nodes.files import unwritten
    from mmurace.report import explaining, interleaving
    from mmurace.report.arguments import Form

    page = race.with_suffix(".md")
    if page.exists():
        return
    try:
        told = interleaving.written(explaining.explanation_of(race), Form.markdown)
    except (UserError, EmulatorError, ReplayDivergence) as error:
        say(f"no explanation of {race}: {error}")
        return
    if problem := unwritten(page, told):
        say(problem)


def _kernel(release: str, arch: str, switches: list[str], drivers: list[str], patch: str) -> Kernel:
    import msgspec

    from mmurace.nodes import plugins
    from mmurace.scenarios.world_file import WorldFile

    kernel = kernel_from(WorldFile(), release, arch, switches, drivers)
    plugins.check_patch(patch)
    patches = (*kernel.patches, patch) if patch else kernel.patches
    return msgspec.structs.replace(kernel, patches=patches)


def _options(bounds: Options, kernel: Kernel, against: str, seed: int) -> Options:
    """With the kernel whose own violations are no news.  Raises ``UserError``."""
    from dataclasses import replace

    from mmurace.nodes.kernel.variant import preset

    other = preset(against, kernel.machine, where="--against") if against else None
    if other == kernel:
        raise UserError("--against", f"{against} is the kernel that is hunted", "another one")
    return replace(bounds, against=other, seed=seed)


def _check_alone(*given: object) -> None:
    if any(given):
        problem = "goes on with what was asked then"
        raise UserError("--resume", problem, "--seconds, --programs, --jobs, --json beside it")
