"""docs/mx.md: its files are what the programs that read them take, and its hook installs."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from functools import partial
from pathlib import Path

import pytest

from metad.cli.tls import make_self_signed
from metad.config.parse import load
from tests.support.clients import in_time
from tests.support.hub import HOSTNAME, METAD, Hub
from tests.support.pages import files
from tests.support.wide_hub import WideHub, connect, trusting

FILES = files("mx.md")


def test_the_configuration_is_one(tmp_path: Path) -> None:
    file = tmp_path / "metad.toml"
    file.write_text(FILES["/etc/metad/metad.toml"].replace("/var/", f"{tmp_path}/"))
    config = load(file)
    assert [one.address for one in config.listen] == ["0.0.0.0:25", "0.0.0.0:995"]


def test_the_firewall_takes_its_rules(tmp_path: Path) -> None:
    if shutil.which("nft") is None or os.geteuid() != 0:
        pytest.skip("nftables need root and their package (sh tools/test --full brings it)")
    file = tmp_path / "nftables.conf"
    file.write_text(FILES["/etc/nftables.conf"])
    script = f"nft -f '{file}' && nft -j list ruleset"
    done = subprocess.run(["unshare", "-n", "sh", "-ec", script], capture_output=True, check=False)
    if b"Operation not permitted" in done.stderr or b"not supported" in done.stderr:
        pytest.skip("this kernel has no nftables")
    assert done.returncode == 0, done.stderr
    ports = json.dumps(json.loads(done.stdout))
    assert all(f"{port}" in ports for port in (25, 995))
    assert "9125" not in ports


def lineage_of(hub: Hub, number: int, chain: str, key: str) -> Path:
    """As certbot keeps it: live/NAME has links to the newest of archive/NAME, the key is root's."""
    live, archive = (hub.home / place / HOSTNAME for place in ("live", "archive"))
    for directory in (live, archive):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in (("fullchain", chain), ("privkey", key)):
        file = archive / f"{name}{number}.pem"
        file.write_text(text)
        file.chmod(0o600)
        link = live / f"{name}.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/{HOSTNAME}/{file.name}")
    return live


def hook_of(hub: Hub) -> Path:
    """The page's, with the real command and the hub's configuration."""
    text = FILES["/etc/letsencrypt/renewal-hooks/deploy/metad"]
    assert text.count("metad tls install") == 1
    program = f"{METAD} tls install --config '{hub.config}'"
    script = hub.home / "hook"
    script.write_text(text.replace("metad tls install", program))
    script.chmod(0o755)
    return script


def served(hub: WideHub, chain: str) -> bool:
    """Whether a client that trusts nothing but this certificate is content with the hub."""
    with connect(hub.places["pop3s"]) as raw:
        try:
            trusting(chain).wrap_socket(raw, server_hostname=HOSTNAME).close()
        except ssl.SSLError:
            return False
    return True


def test_the_hook_of_an_acme_client_installs_each_renewed_certificate() -> None:
    """As certbot calls it: no arguments, no terminal, RENEWED_LINEAGE and RENEWED_DOMAINS."""
    with WideHub(["smtp", "pop3s"], ["ann"]) as hub:
        script = hook_of(hub)
        for number in (1, 2):
            chain, key = make_self_signed([HOSTNAME])
            assert not served(hub, chain)
            lineage = lineage_of(hub, number, chain, key)
            environment = {
                "PATH": os.environ["PATH"], "RENEWED_LINEAGE": str(lineage),
                "RENEWED_DOMAINS": HOSTNAME,
            }  # fmt: skip
            subprocess.run(
                [script], env=environment, check=True, capture_output=True, cwd="/",
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert in_time(partial(served, hub, chain))
        # A lineage that certbot has left half done changes nothing.
        (lineage / "privkey.pem").unlink()
        done = subprocess.run([script], env=environment, check=False, capture_output=True)
        assert done.returncode != 0
        assert b"privkey.pem: No such file" in done.stderr
        assert served(hub, chain)
