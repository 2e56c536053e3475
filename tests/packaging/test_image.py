"""The container image: built from the Containerfile by buildah, run by podman, as the page says.

METAD_TEST_IMAGE=1 runs these: Debian's engines are brought from its mirror, and it takes minutes.
The base image is our Debian's tree, because no registry of images is asked; pip finds wheels in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import TREE, Debian, need_tree
from tests.support.guest import Guest, python, wait_until
from tests.support.install_page import commands
from tests.support.machine import prepare
from tests.support.namespace import Namespace, need_namespaces
from tests.support.packages import Built, checkout, wheels_to_build

pytestmark = pytest.mark.skipif(
    os.environ.get("METAD_TEST_IMAGE") != "1", reason="METAD_TEST_IMAGE=1 is not set"
)
BASE = "docker.io/library/debian:12-slim"
# Nothing but what an image has: no kernel, no caches.
LEFT_OUT = ("boot", "proc", "sys", "usr/lib/modules", "lib/modules", "var/cache/apt")
ENGINES = f"""
apt-get -q update
apt-get -q -y install --no-install-recommends podman buildah crun
mkdir -p /etc/containers
printf '[storage]\\ndriver = "overlay"\\n' >/etc/containers/storage.conf
printf 'graphroot = "/mnt/storage"\\nrunroot = "/run/storage"\\n' >>/etc/containers/storage.conf
export BUILDAH_ISOLATION=chroot
base=$(buildah from scratch)
buildah add --quiet $base /mnt/base.tar /
buildah add --quiet $base /mnt/wheels /wheels
printf '[global]\\nno-index = true\\nfind-links = /wheels\\n' >/mnt/pip.conf
buildah add --quiet $base /mnt/pip.conf /etc/pip.conf
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $base
buildah commit --quiet $base {BASE}
buildah rm $base
"""
# Without the right to raise limits or to load a filter of devices, as a sandbox has it.
OPTIONS = (
    "-d --name hub --network=host --runtime=crun --cgroups=disabled "
    "--ulimit=nofile=$(ulimit -Hn):$(ulimit -Hn) "
    "--ulimit=nproc=$(awk '/^Max processes/ {print $4 \":\" $4}' /proc/self/limits)"
)
# Beside the hub.  Not by podman exec: below a chroot an engine cannot make its root the real one.
INSIDE = (
    "nsenter --target $(podman inspect -f '{{.State.Pid}}' hub) --all --root --wd "
    "setpriv --reuid=900 --regid=900 --clear-groups env METAD_DATA=/var/lib/metad "
)
ANY_PORT = (
    "mount -o remount,bind,rw /proc/sys; echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start; "
    "mount -o remount,bind,ro /proc/sys"
)
SEND = """
import smtplib
with smtplib.SMTP("127.0.0.1", 25) as client:
    client.sendmail("a@b.example", ["ann@example.org"], "Subject: x\\r\\n\\r\\n")
"""


@pytest.fixture(scope="module")
def guest(packages: Built) -> Iterator[Guest]:
    """Booted, with the image in its storage."""
    need_tree()
    need_namespaces()
    build, _ = commands("A container")
    with tempfile.TemporaryDirectory(prefix="metad image ") as directory:
        debian = Debian(Path(directory))
        stage(debian, packages)
        debian.run(ENGINES)
        build = build.replace("podman build", "buildah bud --pull=never")
        debian.run(f"cd /mnt/source; export BUILDAH_ISOLATION=chroot; {build}")
        prepare(debian, with_agent=False)
        machine = Namespace(debian)
        try:
            machine.boot()
            yield machine
        finally:
            machine.run("umount -l /mnt/storage/overlay || :")
            machine.close()


def stage(debian: Debian, packages: Built) -> None:
    """The source, the tree of the base image, and wheels for a pip without an index."""
    checkout(debian.hand / "source")
    wheels_to_build(packages, debian.hand / "wheels")
    excluded = [f"--exclude=./{name}" for name in LEFT_OUT]
    subprocess.run(["tar", "-C", str(TREE), *excluded, "-cf", str(debian.hand / "base.tar"), "."],
                   check=True)  # fmt: skip


def test_the_pages_command_runs_the_image_without_any_right(guest: Guest) -> None:
    _, run = commands("A container")
    # The namespaces' own loopback stands for an engine's network, where 25 is anybody's port.
    run = re.sub(r"-p \S+ ", "", run).replace("podman run", f"podman run {OPTIONS}")
    guest.run(f"{ANY_PORT}; {run}")
    wait_until(guest, f"{INSIDE} metad status")
    guest.run(f"echo secret | {INSIDE} metad user add ann@example.org --password-stdin")
    python(guest, SEND)
    assert guest.run(f"{INSIDE} metad mail list ann@example.org").count("\n") == 2
    pid = guest.run("podman inspect -f '{{.State.Pid}}' hub").strip()
    status = guest.run(f"cat /proc/{pid}/status")
    assert set(re.findall(r"^Cap\w+:\t(\w+)$", status, re.MULTILINE)) == {"0" * 16}
    assert re.search(r"^Uid:\t900\t", status, re.MULTILINE)
    guest.run(f"{INSIDE} touch /var/lib/metad/x")
    guest.run(f"{INSIDE.replace('=900', '=0')} touch /usr/x", code=1)


def test_it_carries_a_health_check_and_sigterm_drains_it(guest: Guest) -> None:
    check = guest.run("podman inspect -f '{{.Config.Healthcheck.Test}}' hub")
    assert check.strip() == "[CMD metad status]"
    guest.run("podman stop --time 60 hub")
    assert guest.run("podman inspect -f '{{.State.ExitCode}}' hub").strip() == "0"
    assert "draining" in guest.run("podman logs hub 2>&1")
