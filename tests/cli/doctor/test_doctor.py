"""Each check of metad doctor: good and bad findings, and that nothing crashes it."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from metad.cli.doctor import doctor, machine, mx, names, service
from metad.cli.doctor.mx import DnsError
from metad.cli.doctor.result import Level, Result, ok
from metad.config.model import Config
from metad.config.parse import parse
from metad.errors import EX_USAGE
from metad.store import machine as machine_note
from metad.store.identity import open_or_make_store
from metad.system.osio import Osio, read_file
from metad.users.database import UserDatabase


def texts(found, level):
    return [one.text for one in found if one.level == level]


def worst(found):
    return max(one.level for one in found)


@pytest.fixture
def store(data):
    data.mkdir(mode=0o700)
    return open_or_make_store(Osio(), data)


@pytest.fixture
def config(data) -> Config:
    return parse("", None, data)


# -- the command


def test_a_new_hub_is_told_what_it_lacks(run, data, store):
    code, out, err = run("doctor", "--data", data, "--no-dns")
    assert err == ""
    assert code == 1
    assert "no hub is running" in out
    assert "to do: metad start" in out
    assert "new mail is deferred below" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_json_has_everything_and_quiet_only_what_is_wrong(run, data, store):
    code, out, _ = run("doctor", "--data", data, "--no-dns", "--json")
    found = {(one["check"], one["level"]) for one in json.loads(out)}
    assert {check for check, _ in found} >= {"hub", "disk", "clock", "permissions", "clone"}
    _, out, _ = run("doctor", "--data", data, "--no-dns", "--json", "--quiet")
    quiet = json.loads(out)
    assert quiet
    assert all(one["level"] != "ok" and one["remedy"] for one in quiet)
    assert code == (2 if any(one["level"] == "error" for one in quiet) else 1)


def test_a_bad_configuration_is_a_finding(run, tmp_path):
    file = tmp_path / "m.toml"
    file.write_text("nonsense = 1\n")
    code, out, _ = run("doctor", "--config", file)
    assert code == 2
    assert "nonsense" in out


def test_a_check_that_fails_is_a_warning():
    def check():
        raise OSError(5, "Input/output error")

    [found] = doctor._done("disk", check)
    assert found.level == Level.WARNING
    assert "Input/output error" in found.text


def test_colours_can_be_turned_off(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    doctor.show(ok("disk", "well"))
    assert capsys.readouterr().out == "ok       disk: well\n"
    written: list[str] = []
    monkeypatch.setattr("click.echo", written.append)
    doctor.show(ok("disk", "well"))
    assert written == ["ok       disk: well"]


def test_an_unknown_option_is_a_usage_error(run):
    assert run("doctor", "--cure")[0] == EX_USAGE


# -- the hub and its ports


def test_the_hubs_own_problems_are_findings():
    facts = {"state": "refusing", "problems": [{"problem": "no space", "remedy": "free some"}]}
    assert list(service.check_hub(facts)) == [Result("hub", Level.ERROR, "no space", "free some")]
    facts["state"] = "degraded"
    assert worst(service.check_hub(facts)) == Level.WARNING
    assert worst(service.check_hub({"state": "serving", "problems": []})) == Level.OK


@pytest.mark.parametrize(
    ("greeting", "level"), [(b"220 mx ESMTP\r\n", Level.OK), (b"SSH-2.0\r\n", Level.ERROR)]
)
def test_a_port_has_to_greet_as_its_protocol_does(config, greeting, level):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            line, _ = server.accept()
            with line:
                line.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        facts = {"listen": [{"protocol": "smtp", "address": address}]}
        [found] = service.check_ports(config, facts)
        thread.join()
    assert found.level == level


def test_a_port_that_is_closed_is_an_error(config):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    [found] = service.check_ports(config, {"listen": [{"protocol": "pop3", "address": address}]})
    assert found.level == Level.ERROR
    assert "does not answer" in found.text


def test_any_address_means_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        service._connected(f"0.0.0.0:{server.getsockname()[1]}").close()


def test_without_certificates_tls_cannot_work(data, store):
    text = '[[listen]]\nprotocol = "pop3"\naddress = "127.0.0.1:1995"\ntls = "implicit"\n'
    [found] = service.check_certificates(parse(text, None, data))
    assert found.level == Level.ERROR
    assert "metad tls" in found.remedy


def test_a_certificate_for_another_name_and_the_right_one(run, data, store):
    text = '[[listen]]\nprotocol = "pop3"\naddress = "127.0.0.1:1995"\ntls = "implicit"\n'
    assert run("tls", "self-signed", "mx1.example.org", "--data", data)[0] == 0
    config = parse(f'hostname = "other.example.net"\n{text}', None, data)
    assert "mx1.example.org" in texts(service.check_certificates(config), Level.WARNING)[0]
    config = parse(f'hostname = "mx1.example.org"\n{text}', None, data)
    assert worst(service.check_certificates(config)) == Level.OK


# -- names


def test_without_a_public_listener_dns_does_not_matter(config):
    [found] = names.check_names(config, ["x.org"], is_mx=False)
    assert found.level == Level.OK


def test_a_host_name_without_a_dot_is_an_error(data):
    config = parse('hostname = "localhost"', None, data)
    [found] = names.check_names(config, [], is_mx=True)
    assert found.level == Level.ERROR


def test_a_name_that_leads_nowhere_here_and_back(monkeypatch):
    monkeypatch.setattr(names, "addresses_of", lambda host: [])
    assert worst(names.check_host("mx.x.org")) == Level.ERROR
    monkeypatch.setattr(names, "addresses_of", lambda host: ["127.0.0.1"])
    assert "/etc/hosts" in list(names.check_host("mx.x.org"))[-1].remedy
    monkeypatch.setattr(names, "addresses_of", lambda host: ["192.0.2.1"])
    monkeypatch.setattr(names, "name_of", lambda address: None)
    found = list(names.check_host("mx.x.org"))
    assert any("this machine's" in one.text for one in found)
    assert any(one.check == "PTR" for one in found)
    monkeypatch.setattr(names, "is_ours", lambda address: True)
    monkeypatch.setattr(names, "name_of", lambda address: "mx.x.org.")
    assert worst(names.check_host("mx.x.org")) == Level.OK


def test_addresses_are_the_systems():
    assert names.is_ours("127.0.0.1")
    assert not names.is_ours("192.0.2.1")
    assert names.addresses_of("127.0.0.1") == ["127.0.0.1"]
    assert names.addresses_of("does-not-exist.invalid") == []


def test_mx_right_wrong_missing_and_unknown():
    def exchangers(domain):
        if domain == "silent.org":
            raise DnsError("no answer")
        return {"good.org": [(10, "mx.x.org")], "away.org": [(10, "mx.other.org")]}.get(domain, [])

    found = list(
        names.check_mx("mx.x.org", ["good.org", "away.org", "none.org", "silent.org"], exchangers)
    )
    assert [one.level for one in found] == [
        Level.WARNING, Level.ERROR, Level.WARNING, Level.OK,
    ]  # fmt: skip
    assert "none.org. MX 10 mx.x.org." in found[1].remedy
    assert "no answer" in found[2].text
    assert found[3].text.startswith("1 of 4 domains")


def test_of_many_domains_only_some_are_looked_at():
    many = [f"d{number}.org" for number in range(30)]
    found = list(names.check_mx("mx.x.org", many, lambda domain: [(1, "mx.x.org")]))
    assert "more domains" in found[-1].text


def test_a_name_server_that_fails_is_a_finding(run, data, store, monkeypatch, tmp_path):
    monkeypatch.setattr(mx, "RESOLV_CONF", tmp_path / "none")
    file = tmp_path / "m.toml"
    file.write_text(
        f'hostname = "mx.does-not-exist.invalid"\ndata = "{data}"\n'
        '[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:25"\n'
    )
    with UserDatabase(data / "users", create=True) as database:
        database.add("ann@x.invalid", None)
    code, out, err = run("doctor", "--config", file)
    assert (code, err) == (2, "")
    assert "has no address in DNS" in out


# -- permissions


def test_what_others_may_read_is_an_error(data, store):
    assert worst(machine.check_permissions(data)) == Level.OK
    (data / "store.json").chmod(0o644)
    (data / "logs").chmod(0o755)
    found = texts(machine.check_permissions(data), Level.ERROR)
    assert len(found) == 2
    (data / "store.json").chmod(0o600)
    (data / "logs").chmod(0o711)
    assert worst(machine.check_permissions(data)) == Level.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_what_belongs_to_another_is_an_error(data, store):
    os.chown(data / "logs", 12345, 12345)
    [found] = machine.check_permissions(data)
    assert "12345" in found.text


# -- disk


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 20, Level.ERROR), (200 << 20, Level.WARNING), (1 << 40, Level.OK)]
)
def test_the_disk_has_what_is_needed_or_not(config, data, store, monkeypatch, free, level):
    monkeypatch.setattr(Osio, "free_space", lambda self, path: free)
    monkeypatch.setattr(Osio, "total_space", lambda self, path: 1 << 40)
    monkeypatch.setattr(machine, "file_system", lambda path: "ext4")
    found = list(machine.check_disk(config, data))
    assert worst(found) == level
    assert f"{free:,} bytes are free; new mail is deferred below" in found[0].text


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs"])
def test_a_file_system_that_keeps_nothing_is_an_error(config, data, store, monkeypatch, kind):
    monkeypatch.setattr(machine, "file_system", lambda path: kind)
    assert kind in texts(machine.check_disk(config, data), Level.ERROR)[-1]


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb /var/lib nfs4 rw 0 0\nc /with\\040blank tmpfs rw 0 0\n")
    at = type(tmp_path)
    assert machine.file_system(at("/var/lib/metad"), mounts) == "nfs4"
    assert machine.file_system(at("/var/log"), mounts) == "ext4"
    assert machine.file_system(at("/with blank/x"), mounts) == "tmpfs"
    assert machine.file_system(at("/x"), tmp_path / "none") is None


# -- clock


def test_the_clock():
    good = {"suspect": False, "clock_us": 0, "hub_time_us": 0}
    assert worst(machine.check_clock(good, 0)) == Level.OK
    assert worst(machine.check_clock(None, 0x40)) == Level.WARNING
    found = list(machine.check_clock(good | {"suspect": True}, 0))
    assert [one.level for one in found] == [Level.ERROR]
    assert "metad store time --accept" in found[0].remedy
    status = machine.clock_status()
    assert status is None or status >= 0


# -- leftovers


def test_what_a_killed_hub_left_is_named(data, store, tmp_path):
    shared = tmp_path / "shm"
    shared.mkdir()
    (data / "run" / "import-0").touch()  # a hub that ends by itself leaves it
    assert worst(machine.check_leftovers(store, running=False, shared=shared)) == Level.OK
    (data / "run" / "control").touch()
    (shared / f"metad-{store.store_id.hex()[:12]}-77").touch()
    (shared / "metad-000000000000-78").touch()
    [found] = machine.check_leftovers(store, running=False, shared=shared)
    assert found.level == Level.WARNING
    assert "run/control" in found.text
    assert "run/import-0" in found.text
    assert "-77" in found.text
    assert "-78" not in found.text
    assert worst(machine.check_leftovers(store, running=True, shared=shared)) == Level.OK


# -- a clone


def note(store, monkeypatch, tmp_path, name, machine_id):
    """The effect of a start on a machine with that name and id."""
    pretend(monkeypatch, tmp_path, name, machine_id)
    return machine_note.note(Osio(), store, machine_note.this_machine(store))


def pretend(monkeypatch, tmp_path, name, machine_id):
    file = tmp_path / "machine-id"
    file.write_text(machine_id)
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    defaults = (file,)
    monkeypatch.setattr(machine_note.this_machine, "__defaults__", defaults)


def test_a_clone_is_noticed_before_it_starts(store, monkeypatch, tmp_path):
    assert texts(machine.check_clone(store, running=False), Level.OK)
    assert note(store, monkeypatch, tmp_path, "one", "a" * 32) is None
    assert worst(machine.check_clone(store, running=False)) == Level.OK
    pretend(monkeypatch, tmp_path, "two", "b" * 32)
    [found] = machine.check_clone(store, running=False)
    assert found.level == Level.ERROR
    assert "another machine (one)" in found.text
    assert "metad store restore" in found.remedy


def test_a_start_on_another_machine_warns_once_and_is_remembered(store, monkeypatch, tmp_path):
    note(store, monkeypatch, tmp_path, "one", "a" * 32)
    assert "another machine (one)" in note(store, monkeypatch, tmp_path, "two", "b" * 32)
    assert note(store, monkeypatch, tmp_path, "two", "b" * 32) is None
    [found] = machine.check_clone(store, running=True)
    assert found.text.startswith("moved here from one")
    assert note(store, monkeypatch, tmp_path, "three", "b" * 32) is None  # renamed
    assert "moved here from one" in texts(machine.check_clone(store, running=True), Level.OK)[0]


def test_the_same_machine_id_with_another_name_may_be_a_clone(store, monkeypatch, tmp_path):
    note(store, monkeypatch, tmp_path, "one", "a" * 32)
    pretend(monkeypatch, tmp_path, "two", "a" * 32)
    [found] = machine.check_clone(store, running=False)
    assert found.level == Level.WARNING
    assert "metad store restore" in found.remedy


def test_without_a_machine_id_the_name_counts(store, monkeypatch, tmp_path):
    note(store, monkeypatch, tmp_path, "one", "")
    pretend(monkeypatch, tmp_path, "two", "")
    assert worst(machine.check_clone(store, running=False)) == Level.ERROR


def test_the_machines_id_itself_is_not_written(store, monkeypatch, tmp_path):
    note(store, monkeypatch, tmp_path, "one", "a" * 32)
    assert b"a" * 32 not in read_file(Osio(), str(store.data / machine_note.NAME))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\xff"])
def test_a_note_that_cannot_be_read_is_none(store, text):
    (store.data / machine_note.NAME).write_text(text, "latin-1")
    assert machine_note.read(Osio(), store) is None
