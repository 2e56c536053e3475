"""docs/compared.md: what it says that Postfix and Dovecot have, the packages of Debian have."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "compared.md").read_text("utf-8")
# A daemon of Postfix, by one of its settings.
DAEMONS = {"postscreen": "postscreen_greet_action"}
_SPAN = re.compile(r"`([^`]+)`")


def named(heading: str) -> list[str]:
    """What stands as code in the first column of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return [one for cell in cells for one in _SPAN.findall(cell)]


def manual(name: str) -> str:
    """The manual page of a Debian package; skips where packages have none."""
    for root in (os.environ.get("METAD_TEST_ROOT", "/"), "/"):
        path = Path(root) / "usr/share/man/man1" / f"{name}.1.gz"
        if path.exists():
            return gzip.decompress(path.read_bytes()).decode().replace("\\-", "-")
    pytest.skip(f"no manual page {name}(1)")


def test_postfix_has_these_settings_and_commands(tmp_path: Path) -> None:
    if shutil.which("postconf") is None:
        pytest.skip("no Postfix")
    (tmp_path / "main.cf").touch()
    (tmp_path / "master.cf").touch()
    settings = [one for one in named("If you use Postfix") if re.fullmatch(r"[a-z_]+", one)]
    settings = [DAEMONS.get(one, one) for one in settings if shutil.which(one) is None]
    done = subprocess.run(
        ["postconf", "-c", str(tmp_path), "-d", *settings],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "unknown parameter" not in done.stderr
    known = {line.partition(" =")[0] for line in done.stdout.splitlines()}
    assert known == set(settings)
    assert len(known) > 10
    commands = [one.split()[0] for one in named("If you use Postfix") if " " in one]
    assert [one for one in commands if shutil.which(one) is None] == []


def test_dovecot_has_these_commands() -> None:
    commands = [one.split() for one in named("If you use Dovecot") if one.startswith("doveadm ")]
    assert len(commands) > 15
    for _, command, *rest in commands:
        text = manual(f"doveadm-{command}")
        if rest and rest[0].isalpha():
            assert re.search(rf"\b{command} {rest[0]}\b", text), (command, rest)
