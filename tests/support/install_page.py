"""docs/install.md, as tests follow it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.support.debian import ROOT, Debian

PAGE = ROOT / "docs" / "install.md"
LOAD = Path(__file__).with_name("guest_load.py")


def commands(title: str) -> list[str]:
    """Those of the first block of shell below a title of the page."""
    text = PAGE.read_text()
    section = text[text.index(f"# {title}\n") :]
    block = re.search(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert block
    return [line.strip() for line in block[1].splitlines()]


SERVER = commands("A server, with the Debian package")


def install(debian: Debian, wheels: Path) -> None:
    """The page's commands up to the installation, in a checkout; without an index of packages."""
    shutil.copytree(wheels, debian.hand / "wheels")
    source = debian.hand / "metad"
    source.mkdir()
    for name in ("tools", "packaging"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "LICENSE", source)
    debian.run("echo mx1.example.org >/etc/hostname")
    debian.run(
        "cd /mnt/metad; export WHEELS=/mnt/wheels COMPRESSION=none\n" + "\n".join(SERVER[:3])
    )
