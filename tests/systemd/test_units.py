"""The unit files by themselves, as systemd's own tools judge them: `make test-systemd`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.systemd

SYSTEMD = Path(__file__).parent.parent.parent / "systemd"

#: What issue and documentation promise, times ten: systemd-analyze counts in tenths.
HIGHEST_EXPOSURE = 16


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "systemd-analyze is not installed: apt-get install systemd"
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize("name", ["kbatchd.service", "kbatchd@.service"])
def test_systemd_finds_no_fault(name: str, tmp_path: Path) -> None:
    # The command is not installed on every machine that runs the tests; all else stays as it is.
    unit = tmp_path / name.replace("@", "@main")
    unit.write_text((SYSTEMD / name).read_text().replace("/usr/local/bin/kbatchd", "/bin/true"))
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["kbatchd.service", "kbatchd@.service"])
def test_exposure_is_low(name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", "--no-pager", str(SYSTEMD / name))
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert overall is not None, done.stdout + done.stderr
    assert float(overall.group(1)) * 10 <= HIGHEST_EXPOSURE
    assert done.returncode == 0


def test_verify_tells_a_fault(tmp_path: Path) -> None:
    unit = tmp_path / "kbatchd.service"
    text = (SYSTEMD / "kbatchd.service").read_text().replace("/usr/local/bin/kbatchd", "/bin/true")
    unit.write_text(text.replace("ProtectSystem=strict", "ProtectSystem=strictly"))
    assert "strictly" in analyze("verify", "--man=no", str(unit)).stderr
