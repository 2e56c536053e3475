"""docs/mx.md: its files are what the programs that read them take, and its hook installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from metad.config.parse import load
from tests.support.hub import HOSTNAME, METAD, Hub
from tests.support.pages import files
from tests.support.wide_hub import certificate

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


def test_the_hook_of_an_acme_client_installs_the_certificate(tmp_path: Path) -> None:
    hook = FILES["/etc/letsencrypt/renewal-hooks/deploy/metad"]
    with Hub(["ann"]) as hub:
        lineage = hub.home / "lineage"
        lineage.mkdir()
        for name, text in zip(("fullchain", "privkey"), certificate(HOSTNAME), strict=True):
            (lineage / f"{name}.pem").write_text(text)
        script = hub.home / "hook"
        program = f"{METAD} tls install --config '{hub.config}'"
        assert "metad tls install" in hook
        script.write_text(hook.replace("metad tls install", program))
        script.chmod(0o755)
        environment = {**os.environ, "RENEWED_LINEAGE": str(lineage)}
        subprocess.run([script], env=environment, check=True, capture_output=True)
        assert [one.suffix for one in (hub.data / "tls").iterdir()]
