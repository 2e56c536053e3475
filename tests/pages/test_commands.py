"""Every command line of README and docs/ is run: here, by another test, or not, for a reason."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator

import pytest

from tests.pages.stage import DOMAIN, OLD, USERS, Stage
from tests.support.hub import Hub
from tests.support.pages import PAGES, PROGRAMS, ROOT, blocks, command_lines, variants
from tests.support.wide_hub import WideHub, certificate

# Lines that begin like this are run by that test, or by none because …
ELSEWHERE: dict[str, dict[str, str]] = {
    "README.md": {
        "sh tools/demo": "tests/tools/test_demo.py",
        "sh tools/test": "none: it runs these tests",
        ". .venv/bin/activate": "tests/tools/test_venv.py",
    },
    "CONTRIBUTING.md": {
        "git clone": "none: the address is the reader's",
        "sh tools/venv": "tests/tools/test_venv.py",
        ". .venv/bin/activate": "tests/tools/test_venv.py",
        "pip install pre-commit": "none: it changes the checkout; tools/test runs the same checks",
    },
    "cluster.md": {
        "apt-get": "none: tools/packages brings them",
        "metad cluster restore-directory": "tests/e2e/test_directory.py",
        "metad cluster remove": "tests/e2e/test_cluster_etcd.py",
        "metad cluster drain": "tests/e2e/test_cluster_etcd.py",
        "metad cluster alone": "tests/e2e/test_cluster_commands.py",
        "metad cluster init": "tests/e2e/test_cluster_commands.py",
        "metad cluster join": "tests/e2e/test_cluster_commands.py",
        "metad cluster status": "tests/e2e/test_cluster_commands.py",
        "metad cluster token": "tests/e2e/test_cluster_commands.py",
        "metad start": "tests/e2e/test_cluster_commands.py",
        "metad stop": "tests/e2e/test_cluster_commands.py",
        "curl": "tests/e2e/test_cluster_page.py",
        "kill": "tests/e2e/test_cluster_page.py",
        "metad user add": "tests/e2e/test_cluster_page.py",
        "mkdir": "tests/e2e/test_cluster_page.py",
        "printf": "tests/e2e/test_cluster_page.py",
        "rm -r": "tests/e2e/test_cluster_page.py",
        "sed": "tests/e2e/test_cluster_page.py",
        "systemctl": "tests/e2e/test_cluster_page.py",
    },
    "testing.md": {"sh tools/test": "none: it runs these tests"},
    "store-model.md": {
        ".venv/bin/python -m pytest": "tests/model/test_store_model.py",
        "METAD_TEST_SCALE=1": "tests/model/test_store_model.py",
        ".venv/bin/python -m tests.model": "tests/model/test_store_model.py",
    },
    "operating.md": {"metad trace": "tests/e2e/test_trace.py", "metad top": "tests/cli/test_top.py",
                     "metad doctor": "tests/e2e/test_doctor.py"},
    "simulation.md": {
        ".venv/bin/python": "tests/sim/test_sim.py",
        "METAD_TEST_SCALE": "tests/sim/test_sim.py",
    },
    "spam.md": {"": "tests/packaging/test_spam_page.py"},
    "upgrade.md": {"apt-get": "tests/packaging/test_debian.py",
                   "metad cluster status": "tests/e2e/test_cluster_releases.py",
                   "metad reload": "tests/processes/test_takeover.py"},
    "install.md": {
        "apt-get": "tests/packaging/test_machine.py",
        "sh tools/deb": "tests/packaging/test_machine.py",
        "metad tls self-signed": "tests/packaging/test_machine.py",
        "metad tls install": "tests/pages/test_mx.py",
        "metad user add": "tests/packaging/test_machine.py",
        "systemctl": "tests/packaging/test_machine.py",
        "install -d": "tests/packaging/test_machine.py",
        "mkdir": "tests/packaging/test_machine.py",
        "printf": "tests/packaging/test_machine.py",
        "python3 -m venv /opt/metad": "tests/packaging/test_without_package.py",
        "/opt/metad/bin/pip": "tests/packaging/test_without_package.py",
        "ln -s": "tests/packaging/test_without_package.py",
        "cp": "tests/packaging/test_without_package.py",
        "systemd-sysusers": "tests/packaging/test_without_package.py",
        "pipx": "tests/packaging/test_without_package.py",
        "metad start": "tests/packaging/test_without_package.py",
        "podman": "tests/packaging/test_image.py",
    },
    "mx.md": {"certbot": "none: it asks a server on the Internet; test_mx.py runs the hook",
              "journalctl": "tests/packaging/test_machine.py"},
}  # fmt: skip
# Lines run on a stage: what a line must find before it, and what stands for its placeholders.
STOPPED = ("metad store rebuild", "metad fsck --repair", "metad store restore")
PLACES = {
    "--config FILE": "--config metad.toml",
    "backup DIR": "backup backup-{number}",
    "restore DIR --data NEW": "restore backup-0 --data new-{number}",
    "--incremental OLD": "--incremental backup-0",
    "ADDRESS": f"alice@{DOMAIN}",
    "you@example.org": f"you@{DOMAIN}",
}
# Lines that end with another code than 0: the stage has no such sessions, ids or messages, and the
# old server knows nothing of users whom the page has added or renamed before.
CODES: dict[str, dict[str, int]] = {
    "operating.md": {"metad kick": 65, "metad mail trace 0006": 65, "metad mail delete": 65,
                     "metad mail copy": 65},
    "users.md": {"metad mail import --all --from maildir:": 71,
                 "metad mail import --all --from pop3s:": 76},
}  # fmt: skip


def elsewhere(page: str, line: str) -> str | None:
    for beginning, what in ELSEWHERE.get(page, {}).items():
        if line.startswith(beginning):
            return what
    return None


def lines_of_stage(page: str) -> list[str]:
    return [line for line in command_lines(page) if elsewhere(page, line) is None]


ON_STAGE = sorted(page for page in PAGES if lines_of_stage(page))


@contextlib.contextmanager
def on_stage(users: Iterable[str]) -> Iterator[Stage]:
    hub = Hub([])
    try:
        stage = Stage(hub)
        with hub:
            stage.fill(users)
            yield stage
    finally:
        shutil.rmtree(hub.home, ignore_errors=True)


@pytest.mark.long
@pytest.mark.parametrize("page", ON_STAGE)
def test_the_commands_of_a_page_do_what_it_says(page: str) -> None:
    lines = lines_of_stage(page)
    missing = [one for one in USERS if not any(f"user add {one}@" in line for line in lines)]
    with on_stage(missing) as stage:
        follow(stage, page, lines)


def follow(stage: Stage, page: str, lines: list[str]) -> None:
    with old_server(stage) if any(OLD in line for line in lines) else contextlib.nullcontext():
        for line in lines:
            for number, one in enumerate(variants(line)):
                run(stage, one, number, expected(page, line))


def expected(page: str, line: str) -> int:
    codes = CODES.get(page, {}).items()
    return next((code for beginning, code in codes if line.startswith(beginning)), 0)


def run(stage: Stage, line: str, number: int, code: int) -> None:
    for word, place in PLACES.items():
        line = line.replace(word, place.format(number=number))
    if line.startswith("metad user add ") and "--password-stdin" not in line:
        line += " --password-stdin"  # there is no terminal here
    stop = line.startswith(STOPPED) and stage.hub.process is not None
    if stop:
        stage.hub.stop()
    stage.run(line, code)
    if stop:
        stage.hub.start()


@contextlib.contextmanager
def old_server(stage: Stage) -> Iterator[None]:
    """The server that mail is moved from: a hub with a master user and a trusted certificate."""
    kinds = ["pop3", "pop3s"]
    settings = f'[pop3]\nmaster_users = ["admin@{DOMAIN}"]\ndefault_domain = "{DOMAIN}"'
    old = WideHub(kinds, ["ann"], settings)
    for name in ("admin", "alice", "ann", "bob"):
        old.run_forked("user", "add", f"{name}@{DOMAIN}", "--password-stdin", given="secret\n")
    trusted = stage.path("old-server.pem")
    trusted.write_text(certificate("localhost")[0])
    old.install("localhost")
    stage.environment["SSL_CERT_FILE"] = str(trusted)
    with old:
        stage.replace(("--master admin", f"--master admin@{DOMAIN}"))
        stage.replace((f"pop3://{OLD}", f"pop3://127.0.0.1:{old.places['pop3'][1]}"))
        stage.replace((f"pop3s://{OLD}", f"pop3s://localhost:{old.places['pop3s'][1]}"))
        yield


def test_what_is_run_elsewhere_is() -> None:
    """Every exception is of a line that is there, and names a test that is there or a reason."""
    for page, exceptions in ELSEWHERE.items():
        lines = command_lines(page)
        for beginning, what in exceptions.items():
            assert any(line.startswith(beginning) for line in lines), (page, beginning)
            assert what.startswith("none: ") or (ROOT / what).is_file(), what
    for page, codes in CODES.items():
        for beginning in codes:
            assert any(line.startswith(beginning) for line in command_lines(page)), beginning


def test_every_block_of_commands_is_known_as_one() -> None:
    """No line of a block `sh` begins with a program that the tests would not see."""
    unknown = {
        (page, line)
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
        if line and line.split()[0] not in PROGRAMS
    }
    assert unknown == set()
    assert sum(len(command_lines(page)) for page in PAGES) > 80
