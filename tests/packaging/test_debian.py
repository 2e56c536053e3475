"""The Debian package in a Debian of its own: installed, upgraded, removed, purged; what stays."""

from __future__ import annotations

import shutil

import pytest

from tests.support.debian import ROOT, Debian
from tests.support.packages import LATER, Built

USER = {"/etc/passwd", "/etc/passwd-", "/etc/group", "/etc/group-", "/etc/shadow", "/etc/shadow-",
        "/etc/gshadow", "/etc/gshadow-", "/etc/.pwd.lock"}  # fmt: skip
MADE = """
metad user add alice@example.test --password-stdin <<'EOF'
a password
EOF
metad user list
"""


@pytest.fixture
def system(debian: Debian, packages: Built) -> Debian:
    """Both packages lie in /mnt."""
    shutil.copy(packages.deb, debian.hand / "metad.deb")
    shutil.copy(packages.later, debian.hand / "later.deb")
    return debian


def install(system: Debian, name: str = "metad.deb", *options: str) -> str:
    return system.run(f"apt-get -q -y {' '.join(options)} install /mnt/{name}")


def facts(system: Debian, *paths: str) -> list[str]:
    return system.run(f"stat -c '%n %a %U %G' {' '.join(paths)}").splitlines()


def test_it_installs_a_user_directories_units_and_manuals_and_starts_nothing(system):
    said = install(system)
    assert "warning" not in said.lower().replace("apt does not have a stable", "")
    directories = ("/etc/metad", "/var/lib/metad", "/var/log/metad")
    assert facts(system, *directories, "/etc/metad/metad.toml") == [
        "/etc/metad 750 root metad",
        "/var/lib/metad 700 metad metad",
        "/var/log/metad 750 metad adm",
        "/etc/metad/metad.toml 644 root root",
    ]
    shell = system.run("getent passwd metad").strip()
    assert shell.split(":")[5:] == ["/var/lib/metad", "/usr/sbin/nologin"]
    for path in (
        "/usr/share/man/man5/metad-log.5.gz",
        "/usr/share/man/man5/metad.toml.5.gz",
        "/usr/share/man/man7/metad-layers.7.gz",
        "/usr/share/man/man8/metad.8.gz",
        "/usr/share/man/man8/metad-mail.8.gz",
        "/usr/share/man/man8/metad-store.8.gz",
        "/usr/share/man/man8/metad-user.8.gz",
        "/usr/share/metad/monitoring/metad.rules.yml",
        "/usr/lib/systemd/system/metad.service",
        "/usr/share/bash-completion/completions/metad",
        "/usr/share/doc/metad/docs/install.md",
        "/etc/logrotate.d/metad",
    ):
        assert (system.upper / path[1:]).is_file(), path
    assert system.run("systemctl is-enabled metad.service || :").strip() == "disabled"


def test_its_commands_run_as_the_hubs_user_with_bytecode_that_is_there(system):
    install(system)
    assert system.run("metad --version").startswith("metad ")
    assert "alice@example.test" in system.run(MADE)
    assert facts(system, "/var/lib/metad/users") == ["/var/lib/metad/users 700 metad metad"]
    caches = "find /usr/lib/metad -name '*.py' | wc -l; find /usr/lib/metad -name '*.pyc' | wc -l"
    sources, compiled = map(int, system.run(caches).split())
    assert sources == compiled > 300
    system.run("metad tls self-signed mx1.example.org")
    system.run("metad config check --config /etc/metad/metad.toml")


def test_dpkg_finds_every_file_as_it_was_packaged(system):
    install(system)
    system.run(MADE)
    assert system.run("dpkg --verify metad") == ""


def test_the_logrotate_file_rotates_a_log_of_the_hubs(system):
    install(system)
    log = "/var/log/metad/metad.log"
    system.run(f"su -s /bin/sh -c 'echo line >{log}' metad; logrotate --force /etc/logrotate.conf")
    assert facts(system, f"{log}.1") == [f"{log}.1 644 metad adm"]
    assert system.run(f"cat {log}.1; wc -c <{log}").split() == ["line", "0"]


def test_an_upgrade_keeps_mail_users_and_what_was_configured(system):
    install(system)
    system.run(MADE)
    system.run("echo '# mine' >>/etc/metad/metad.toml; systemctl enable metad.service")
    install(system, "later.deb", "-o", "Dpkg::Options::=--force-confdef")
    assert system.run("metad --version") == f"metad {LATER}\n"
    assert "alice@example.test" in system.run("metad user list")
    assert system.run("tail -n 1 /etc/metad/metad.toml") == "# mine\n"
    assert system.run("systemctl is-enabled metad.service") == "enabled\n"


def test_a_removal_leaves_configuration_and_mail_and_a_purge_leaves_the_mail(system):
    install(system)
    system.run(MADE)
    system.run("systemctl enable metad.service metad-smtp.socket; dpkg --remove metad")
    left = set(system.changes())
    assert "/etc/metad/metad.toml" in left
    assert not [name for name in left if name.startswith("/usr/")]
    said = system.run("dpkg --purge metad")
    assert "rm -r /var/lib/metad" in said
    left = set(system.changes())
    assert "/var/lib/metad/users" in left
    assert {name for name in left if not name.startswith("/var/lib/metad")} <= USER


def test_a_purge_of_an_unused_package_leaves_nothing_but_the_user(system):
    install(system)
    system.run("dpkg --purge metad")
    assert set(system.changes()) <= USER
    # The comparison does see what is left.
    system.run("mkdir /var/spool/left; touch /etc/left; chmod 700 /srv")
    assert set(system.changes()) - USER == {"/var/spool/left", "/etc/left", "/srv"}


def test_it_can_be_installed_again_after_a_purge_with_mail_in_place(system):
    install(system)
    system.run(MADE)
    system.run("dpkg --purge metad")
    install(system)
    assert "alice@example.test" in system.run("metad user list")


def test_the_package_is_built_by_one_command_in_a_bare_debian(system, packages):
    """Built inside: the bare system has python3-venv, and the wheels come from a directory."""
    shutil.copytree(packages.wheels, system.hand / "wheels")
    source = system.hand / "metad"
    source.mkdir()
    for name in ("tools", "packaging"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "LICENSE", source)
    said = system.run("cd /mnt/metad && WHEELS=/mnt/wheels COMPRESSION=none sh tools/deb /mnt/dist")
    path = said.strip().splitlines()[-1]
    assert path.endswith(".deb")
    system.run(f"apt-get -q -y install {path}; metad --version")
