"""The files for systemd: what its own tools say of them, and what must stand in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
SERVICE = PACKAGING / "systemd" / "metad.service"
MOST_EXPOSURE = 20  # tenths of systemd-analyze's points: "OK" ends at 40


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path) -> Path:
    """The units with programs that exist, which is all that differs from an installation."""
    for path in (PACKAGING / "systemd").iterdir():
        text = path.read_text().replace("/usr/bin/metad", "/bin/true")
        lines = [line for line in text.splitlines() if not line.startswith("Documentation=")]
        (tmp_path / path.name).write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", ["metad.service", "metad-smtp.socket", "metad-pop3.socket"])
def test_systemd_finds_nothing_wrong_with_the_units(installed, name):
    done = tool("systemd-analyze", "verify", str(installed / name))
    if "Failed to initialize manager" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("systemd-analyze cannot work here")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_is_exposed_as_little_as_a_mail_server_can_be():
    done = tool(
        "systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}",
        "--no-pager", str(SERVICE),
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze does not know --offline")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_the_user_is_one_of_the_system():
    if "\nmetad:" in Path("/etc/passwd").read_text():
        pytest.skip("there is a user metad here already")
    done = tool("systemd-sysusers", "--dry-run", str(PACKAGING / "sysusers.d" / "metad.conf"))
    assert done.returncode == 0
    assert "Creating user 'metad' (metad mail hub) with UID" in done.stdout + done.stderr


def test_the_service_keeps_what_the_hub_needs():
    lines = SERVICE.read_text().splitlines()
    wanted = {"Type=notify", "User=metad", "StateDirectoryMode=0700", "RemoveIPC=no"}
    assert wanted <= set(lines)
    # Shared memory and semaphore live in /dev/shm: nothing may put another one in its place.
    assert not [line for line in lines if "PrivateIPC" in line]
    assert not [line for line in lines if line.startswith("TemporaryFileSystem=/dev/shm")]
