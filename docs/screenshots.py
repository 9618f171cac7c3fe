"""Makes the pictures of the pages in docs/images; needs a chromium, which no test does.

python docs/screenshots.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmurace import launch  # noqa: E402

SHOWN = {"E01": (1280, 1290), "E05b": (1280, 900), "E11d": (1280, 1250), "E20p": (1280, 1100)}
"""Race -> the size of its window."""
STRESS = ("--operations", "20000", "--seed", "1")
SECONDS_MAX = 90


def main() -> int:
    """Write them; 0, or 2 if there is no browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        print("docs/screenshots.py: no chromium", file=sys.stderr)
        return 2
    for race, (width, height) in SHOWN.items():
        with TemporaryDirectory() as directory:
            run = Path(directory) / race
            launch.main(["explore", race, "--seed", "1", "--out", str(run), "--no-explain"])
            launch.main(["report", str(run)])
            picture = ROOT / "docs" / "images" / f"{race.lower()}.png"
            _shoot(browser, run / "report.html", picture, f"{width},{height}", directory)
    with TemporaryDirectory() as directory:
        run = Path(directory) / "stress"
        launch.main(["stress", "--on", "simulator", *STRESS, "--out", str(run)])
        picture = ROOT / "docs" / "images" / "stress.png"
        _shoot(browser, run / "report.html", picture, "1000,1150", directory)
    return 0


def _shoot(browser: str, page: Path, picture: Path, size: str, profile: str) -> None:
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={profile}/profile", f"--window-size={size}",
         f"--screenshot={picture}", page.as_uri()],
        timeout=SECONDS_MAX, check=True, capture_output=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
