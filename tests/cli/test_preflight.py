"""`metad config check` examines the machine too: user, directory, certificates, ports."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket

import pytest

from metad.errors import EX_CONFIG, EX_OK


@pytest.fixture
def check(run, tmp_path):
    """check(TEXT) -> (exit code, standard error) for a configuration with a data directory."""

    def command(text: str, data: str = "data") -> tuple[int, str]:
        file = tmp_path / "m.toml"
        user = 'user = "nobody"\n' if os.geteuid() == 0 and "user" not in text else ""
        file.write_text(f'{user}data = "{tmp_path / data}"\n{text}')
        code, _, err = run("config", "check", "--config", file)
        return code, err

    return command


def listen(port: int, more: str = "") -> str:
    return f'[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:{port}"\n{more}'


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_what_could_start_is_ok(check):
    assert check(listen(free())) == (EX_OK, "")


def test_a_user_that_does_not_exist(check):
    code, err = check(f'user = "no-such-user"\n{listen(free())}')
    assert code == EX_CONFIG
    assert (
        "metad: error: user: no such system user: no-such-user (useradd --system no-such-user)"
        in err
    )


def test_root_as_the_user(check):
    code, err = check(f'user = "root"\n{listen(free())}')
    assert code == EX_CONFIG
    assert "does not run as root" in err


def test_a_port_in_use_and_not_if_the_hub_of_this_directory_has_it(check, taken, tmp_path):
    code, err = check(listen(taken))
    assert code == EX_CONFIG
    assert "is another program listening there? (ss -ltnp shows what has it" in err
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.geteuid() == 0:
            shutil.chown(tmp_path / "data", "nobody")
        assert check(listen(taken))[0] == EX_OK


def test_a_listener_that_needs_a_certificate(check):
    code, err = check(listen(free(), 'tls = "implicit"'))
    assert code == EX_CONFIG
    assert "metad tls install" in err


def test_a_data_directory_that_is_a_file(check, tmp_path):
    (tmp_path / "file").write_text("")
    code, err = check(listen(free()), data="file")
    assert code == EX_CONFIG
    assert "is not a directory" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_data_directory_of_another_user(check, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store.json").write_text("")
    os.chown(tmp_path / "data", 54321, 54321)
    code, err = check(listen(free()))
    assert code == EX_CONFIG
    assert re.search(r"belongs to uid 54321, not to uid \d+ \(chown -R \S+ /", err)


def test_a_unix_socket_in_no_directory(check):
    code, err = check('[[listen]]\nprotocol = "lmtp"\naddress = "unix:/no/such/lmtp"\n')
    assert code == EX_CONFIG
    assert "no directory /no/such" in err


def test_warnings_do_not_count(check):
    code, err = check('[[listen]]\nprotocol = "pop3"\naddress = "0.0.0.0:0"\n')
    assert code == EX_OK
    assert "metad: warning: listen 0.0.0.0:" in err
