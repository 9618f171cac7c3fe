"""Every kind of node and every operation, for ten minutes under each chaos configuration.

    python benchmarks/everything.py [--seconds N] [--world NAME|FILE] [--chaos NAME]...
                                    [--arch ARCH] [--kernel RELEASE] [--seed N] [--keep DIR]

On real processes, one run after the other.  A line for each: deliveries, operations, how many
windows somebody was in of those that there are, rules that were broken, and how it was judged.  A
run that is too short has windows that nobody was in; it may yet show that something is broken.
``--keep DIR`` keeps the runs that broke a rule.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mmurace.broker.chaos import load_rules
from mmurace.broker.chaos_config import presets
from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.run.session import run_on_processes
from mmurace.scenarios.runs import workload_run
from mmurace.scenarios.world_file import load_world

SECONDS: Final = 600.0
HEAD: Final = (
    f"{'chaos':16}{'deliveries':>12}{'operations':>12}{'windows':>12}  broken, and the verdict"
)


def run(given: argparse.Namespace, chaos: str, directory: Path) -> Outcome:
    """One run; its files are in ``directory``."""
    file = load_world(Path(given.world))
    kernel = file.kernel_of(given.kernel, given.arch)
    spec = workload_run("mixed", kernel, given.seed, load_rules(chaos), file=file)
    return run_on_processes(spec.save(directory), directory, given.seconds)


def line(chaos: str, outcome: Outcome) -> str:
    """A line of the table."""
    counts = [n for row in outcome.verdict.how.windows.values() for n in row.values()]
    windows = f"{sum(n > 0 for n in counts)} of {len(counts)}"
    operations = sum(count.done for count in outcome.operations.values())
    rules = ", ".join(sorted({f"{v.rule} by {v.agent}" for v in outcome.violations})) or "nothing"
    ended = outcome.verdict.outcome if outcome.status == "finished" else outcome.status
    return (
        f"{chaos:16}{outcome.ending.deliveries:>12,}{operations:>12,}{windows:>12}  "
        f"{rules}; {ended}"
    )


def main() -> int:
    """Print the table; 1 if a rule was broken, or a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--world", default="everything")
    parser.add_argument("--chaos", action="append", default=[], choices=presets())
    parser.add_argument("--arch", default="")
    parser.add_argument("--kernel", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where to copy runs that broke a rule")
    given = parser.parse_args()
    print(f"{given.world}, {given.seconds:g} s each, load {os.getloadavg()[0]:.1f}\n{HEAD}")
    wrong = False
    for chaos in given.chaos or presets():
        with TemporaryDirectory() as directory:
            outcome = run(given, chaos, Path(directory))
            print(line(chaos, outcome), flush=True)
            broken = bool(outcome.violations) or outcome.status != "finished"
            wrong |= broken
            if broken and given.keep is not None:
                shutil.copytree(directory, given.keep / chaos, dirs_exist_ok=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
