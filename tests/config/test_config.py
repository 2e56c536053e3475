"""The configuration: defaults, its sources, and the error for every fault."""

import os
from pathlib import Path, PosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad import limits
from metad.config import checks
from metad.config import model as config_model
from metad.config import parse as config_parse
from metad.config.inside import inside
from metad.config.line_numbers import find_line
from metad.config.model import Config, Listener
from metad.config.parse import parse
from metad.config.settings import SETTINGS
from metad.errors import EX_CONFIG, ConfigError

HOME = {"HOME": "/home/ann"}


def refused(content: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(content, Path("/etc/m.toml"), None, HOME)
    assert caught.value.exit_code == EX_CONFIG
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_system_file(monkeypatch, tmp_path):
    monkeypatch.setattr(config_parse, "SYSTEM_FILE", tmp_path / "none.toml")


def test_without_a_file_everything_has_its_default(no_system_file):
    loaded = config_parse.load(None, Path("/srv/m"), HOME)
    assert loaded.listen == (
        Listener("smtp", "127.0.0.1:2525", "127.0.0.1", 2525, None),
        Listener("pop3", "127.0.0.1:1110", "127.0.0.1", 1110, None),
    )
    assert loaded == Config(
        hostname=config_parse.machine_name(),
        user=None,
        data=Path("/srv/m"),
        listen=loaded.listen,
        store=config_model.StoreConfig(),
        limits=config_model.Limits(),
        smtp=config_model.SmtpConfig(),
        pop3=config_model.Pop3Config(),
        source=None,
    )


def test_every_key_of_a_file_is_taken(tmp_path):
    file = tmp_path / "metad.toml"
    file.write_text(
        'hostname = "MX1.Example.ORG"\nuser = "metad"\ndata = "/var/mail/metad"\n'
        '[[listen]]\nprotocol = "smtp"\naddress = "[::]:25"\ntls = "none"\nproxy = false\n'
        'trusted_proxies = []\n[[listen]]\nprotocol = "pop3"\naddress = "0.0.0.0:110"\n'
        '[store]\nlayer = "null"\nworkers = 64\nlog_size = 8388608\nsync = false\nalign = 4096\n'
        '[limits]\nmessage_size = "2 MiB"\nrecipients = 100\nsmtp_errors = 1\n'
        "command_line = 4096\n"
        '[smtp]\nbare_line_ends = "refuse"\n'
        '[pop3]\nplaintext = "never"\ndefault_domain = "example.org"\n'
    )
    loaded = config_parse.load(file, None, HOME)
    assert loaded == Config(
        hostname="mx1.example.org",
        user="metad",
        data=Path("/var/mail/metad"),
        listen=(
            Listener("smtp", "[::]:25", "::", 25, None),
            Listener("pop3", "0.0.0.0:110", "0.0.0.0", 110, None),
        ),
        store=config_model.StoreConfig("null", 64, 8 << 20, False, 4096, None),
        limits=config_model.Limits(2 << 20, 100, 1, 4096),
        smtp=config_model.SmtpConfig("refuse"),
        pop3=config_model.Pop3Config("never", "example.org"),
        source=file,
    )


def test_the_systems_file_is_read_when_none_is_named(monkeypatch, tmp_path):
    file = tmp_path / "system.toml"
    file.write_text('hostname = "mx.example.org"\n')
    monkeypatch.setattr(config_parse, "SYSTEM_FILE", file)
    loaded = config_parse.load(None, None, HOME)
    assert (loaded.hostname, loaded.source) == ("mx.example.org", file)


@pytest.mark.parametrize(
    ("given", "in_file", "environ", "expected"),
    [
        ("/a", "/c", {"METAD_DATA": "/b", **HOME}, "/a"),
        (None, "/c", {"METAD_DATA": "/b", **HOME}, "/b"),
        (None, "/c", HOME, "/c"),
        (None, "/c", {"STATE_DIRECTORY": "/s", **HOME}, "/c"),
        (None, None, {"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x", **HOME}, "/s"),
        (None, None, {"STATE_DIRECTORY": "/s:/t", **HOME}, "/s"),
        (None, None, {"XDG_STATE_HOME": "/x", **HOME}, "/x/metad"),
        (None, None, {"XDG_STATE_HOME": "x", **HOME}, "/home/ann/.local/state/metad"),
        (None, None, HOME, "/home/ann/.local/state/metad"),
    ],
)
def test_the_data_directory_comes_from_the_first_that_names_it(
    monkeypatch, given, in_file, environ, expected
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = config_parse.data_directory(given and Path(given), in_file and Path(in_file), environ)
    assert found == Path(expected)


def test_the_data_directory_of_root_is_the_systems(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config_parse.data_directory(None, None, HOME) == config_parse.SYSTEM_DATA


def test_a_relative_data_directory_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert config_parse.data_directory(Path("d"), None, {}) == tmp_path / "d"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("workers = 2\n", "/etc/m.toml:1: workers: unknown key"),
        ("[store]\n\nworker = 2\n", "m.toml:3: store.worker: unknown key; did you mean workers?"),
        ("[stroe]\nworkers = 2\n", "/etc/m.toml:1: stroe: unknown key; did you mean store?"),
        ("[store]\nworkers = 0\n", "/etc/m.toml:2: store.workers: must be from 1 to 64"),
        ("[store]\nworkers = true\n", "/etc/m.toml:2: store.workers: must be a whole number"),
        ("store.sync = true\nstore.workers = 65\n", "m.toml:2: store.workers: must be from 1"),
        ("store = {workers = 65}\n", "/etc/m.toml:1: store.workers: must be from 1 to 64"),
        ("store = 1\n", "/etc/m.toml:1: store: must be a table: [store]"),
        ("[listen]\n", "/etc/m.toml:1: listen: must be a list of tables: [[listen]]"),
        ("listen = []\n", "/etc/m.toml:1: listen: must name at least one address"),
        ("listen = [1]\n", "/etc/m.toml:1: listen: must be a list of tables: [[listen]]"),
        ('[[listen]]\nprotocol = "smtp"\n', "/etc/m.toml:1: listen[1]: address is missing"),
        ('[[listen]]\naddress = "[::1]:25"\n', "/etc/m.toml:1: listen[1]: protocol is missing"),
        ('"a\\nb" = 1\n', "/etc/m.toml: 'a\\nb': unknown key"),
        ("hostname = \n", "/etc/m.toml:1: Invalid value"),
        ('user = "a b"\n', "/etc/m.toml:1: user: must be the name of a system user"),
        ('data = "here"\n', "/etc/m.toml:1: data: must be an absolute path"),
        ("[store]\nsync = 1\n", "/etc/m.toml:2: store.sync: must be true or false"),
        ("[store]\nalign = 1024\n", "/etc/m.toml:2: store.align: must be 512 or 4096 or 8192"),
        ('[store]\nlog_size = "1MiB 1"\n', "/etc/m.toml:2: store.log_size: must be a size such as"),
        ("[store]\nlog_size = 1048577\n", "store.log_size: must be a multiple of 4,096 bytes"),
        ('[store]\nlog_size = "3GiB"\n', "store.log_size: must be from 1MiB to 2GiB"),
        ('[pop3]\nplaintext = "yes"\n', '"never" or "loopback" or "always"'),
        (
            '[store]\nlog_size = "8MiB"\n[limits]\nmessage_size = "30MiB"\n',
            "/etc/m.toml:4: limits.message_size: at most a quarter of store.log_size, 2MiB",
        ),
        ('[store]\nsize_limit = "512MiB"\n', "/etc/m.toml:2: store.size_limit: at least 896MiB"),
        (
            "[collector]\nlow_space = 20\nenough_space = 20\n",
            "/etc/m.toml:3: collector.enough_space: must be more than collector.low_space",
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_file_line_key_and_reason(content, error):
    assert error in refused(content)


@pytest.mark.parametrize(
    "address",
    ["", "25", ":25", "localhost:25", "::1:25", "[127.0.0.1]:25", "1.2.3.4:65536",
     "1.2.3.4:+25", "1.2.3.4: 25", "1.2.3.4:2_5", "1.2.3.4:٢٥", "1.2.3.4", "unix:rel",
     "unix:/" + "x" * 107],
)  # fmt: skip
def test_an_address_that_is_no_ip_and_port_is_refused(address):
    with pytest.raises(ValueError, match=r"must|at most|stands"):
        checks.address(address)


def test_a_unix_address_is_its_path():
    assert checks.address("unix:/run/m") == checks.Address("unix:/run/m", "", None, "/run/m")


def test_two_listeners_on_one_address_are_refused():
    one = '[[listen]]\nprotocol = "smtp"\naddress = "%s"\n'
    error = refused(one % "[::1]:25" + one % "[0::1]:25")
    assert error == "/etc/m.toml:6: listen[2].address: [0::1]:25 is listened on already"


def test_the_default_message_size_gives_way_to_a_small_log():
    parsed = parse('[store]\nlog_size = "8MiB"\n', None, None, HOME)
    assert parsed.limits.message_size == 2 << 20


@pytest.mark.parametrize("name", ["a b", "-a.org", "a-.org", "a..org", "", "ä.org", "x" * 64, 5])
def test_a_hostname_that_is_no_domain_is_refused(name):
    with pytest.raises(ValueError, match="must"):
        checks.domain(name)


def test_the_machines_name_is_replaced_if_it_is_no_domain(monkeypatch):
    monkeypatch.setattr(config_parse.socket, "gethostname", lambda: "my_machine")  # type: ignore[attr-defined]
    assert config_parse.machine_name() == "localhost"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda file: None, "No such file"),
        (lambda file: file.mkdir(), "Is a directory"),
        (lambda file: file.write_bytes(b"# 1\n# \xff\n"), ":2: not UTF-8"),
        (lambda file: file.write_bytes(b"#" * (limits.CONFIG_FILE + 1)), "larger than 1MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, error):
    file = tmp_path / "metad.toml"
    make(file)
    with pytest.raises(ConfigError, match=error) as caught:
        config_parse.load(file, None, HOME)
    assert str(caught.value).startswith(str(file))


@pytest.mark.slow
@given(st.integers(1, 1 << 62))
def test_a_size_shown_is_read_again_as_the_same(octets):
    assert checks.size(0, 1 << 62)(checks.show_size(octets)) == octets


@pytest.mark.parametrize(
    ("listener", "reason"),
    [
        ('protocol = "lmtp"\naddress = "[::1]:25"', "RFC 2033"),
        ('protocol = "smtp"\naddress = "[::1]:25"\nproxy = true', "needs trusted_proxies"),
        ('protocol = "smtp"\naddress = "[::1]:25"\ntrusted_proxies = ["::1"]', "proxy = true"),
    ],
)
def test_a_listener_that_makes_no_sense_is_refused(listener, reason):
    assert reason in refused(f"[[listen]]\n{listener}\n")


def test_listeners_of_every_kind_are_read():
    content = """
        [[listen]]
        protocol = "lmtp"
        address = "unix:/run/metad/lmtp"
        [[listen]]
        protocol = "smtp"
        address = "[::]:25"
        tls = "starttls"
        proxy = true
        trusted_proxies = ["192.0.2.0/24", "2001:db8::1"]
        [[listen]]
        protocol = "pop3"
        address = "0.0.0.0:995"
        tls = "implicit"
    """
    lmtp, smtp, pop3 = parse(content, None, None, HOME).listen
    assert (lmtp.path, lmtp.port) == ("/run/metad/lmtp", None)
    assert smtp.trusted_proxies == ("192.0.2.0/24", "2001:db8::1/128")
    assert (pop3.tls, pop3.proxy) == ("implicit", False)


@pytest.mark.slow
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(content):
    try:
        assert isinstance(parse(content, None, None, HOME), Config)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_deeply_nested_input_is_refused():
    assert "nested" in refused("a = " + "[" * 100_000)


def test_every_default_passes_its_own_check():
    for setting in SETTINGS:
        if setting.default is not None:
            setting.check(setting.default)


def test_the_line_of_a_key_not_in_the_file_is_that_of_its_table():
    assert find_line("\n[store]\nsync = true\n", "store.workers") == 2
    assert find_line("\n", "store.workers") is None


CLUSTER = '[cluster]\naddress = "10.0.0.1:7525"\npeers = ["10.0.0.2:7525"]\n'


def test_a_node_of_a_cluster_listens_for_the_other():
    loaded = parse(CLUSTER, None, Path("/srv/m"), HOME)
    assert loaded.cluster == config_model.ClusterConfig("10.0.0.1:7525", ("10.0.0.2:7525",))
    assert loaded.listeners == (
        *loaded.listen,
        Listener("peer", "10.0.0.1:7525", "10.0.0.1", 7525, None),
    )
    alone = parse("", None, Path("/srv/m"), HOME)
    assert alone.listeners == alone.listen


ETCD = """[cluster]
address = "10.0.0.1:7525"
etcd = ["https://10.0.0.1:2379/", "http://[fd00::2]:2379"]
etcd_ca = "/etc/metad/etcd-ca.pem"
etcd_certificate = "/etc/metad/etcd.pem"
etcd_key = "/etc/metad/etcd.key"
absent_after = "1min"
"""


def test_a_node_of_a_cluster_knows_etcd():
    cluster = parse(ETCD, None, Path("/srv/m"), HOME).cluster
    assert cluster.etcd == ("https://10.0.0.1:2379", "http://[fd00::2]:2379")
    assert (cluster.peers, cluster.absent_after) == ((), 60)
    names = ["etcd-ca.pem", "etcd.pem", "etcd.key"]
    assert cluster.etcd_files == tuple(Path("/etc/metad") / name for name in names)
    assert parse(CLUSTER, None, Path("/srv/m"), HOME).cluster.etcd_files == ()


def test_the_files_for_etcd_are_below_the_chroot_and_seen_from_inside():
    chroot = 'chroot = "/srv"\n' + ETCD
    with pytest.raises(ConfigError, match=r"cluster.etcd_ca: .*not below the chroot"):
        parse(chroot, None, Path("/srv/m"), HOME)
    config = inside(parse(chroot.replace("/etc/metad", "/srv/tls"), None, Path("/srv/m"), HOME))
    assert config.data == Path("/m")
    names = ["etcd-ca.pem", "etcd.pem", "etcd.key"]
    assert config.cluster.etcd_files == tuple(Path("/tls") / name for name in names)
    alone = parse('chroot = "/srv"\n', None, Path("/srv/m"), HOME)
    assert inside(alone).cluster.etcd_files == ()
    assert inside(parse("", None, Path("/srv/m"), HOME)).data == Path("/srv/m")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('[cluster]\netcd = ["http://10.0.0.2:2379"]\n', "cluster.etcd: means nothing without"),
        (ETCD + 'peers = ["10.0.0.2:7525"]\n', "cluster.peers: means nothing with cluster.etcd"),
        (ETCD.replace("https://", "ftp://"), "cluster.etcd: must be a URL such as"),
        (ETCD.replace("https://10.0.0.1", "https://etcd.example"), "begin with an IP address"),
        (ETCD.replace("1:2379/", "1:2379/v3"), "cluster.etcd: must end in a port"),
        (ETCD.replace("https://10", "http://10"), "etcd_ca: means nothing without an https URL"),
        (ETCD.replace("etcd_ca", "#"), "cluster.etcd: an https URL needs cluster.etcd_ca"),
        (ETCD.replace("etcd_key", "#"), "cluster.etcd_certificate: needs cluster.etcd_key"),
        (ETCD.replace("etcd_certificate", "#"), "cluster.etcd_key: needs cluster.etcd_certificate"),
        (ETCD.replace("1min", "14s"), "cluster.absent_after: must be from 15s to 1w"),
        (ETCD.replace("1min", "8d"), "cluster.absent_after: must be from 15s to 1w"),
        ('[cluster]\npeers = ["10.0.0.2:7525"]\n', "cluster.peers: means nothing without"),
        ('[cluster]\naddress = "10.0.0.1:7525"\n', "must name the other node of a cluster of two"),
        (CLUSTER.replace("2:7525", '2:7525", "10.0.0.3:1'), "must name the other node"),
        (CLUSTER.replace("10.0.0.2", "10.0.0.1"), "cluster.peers: is the address of this node"),
        (CLUSTER.replace("10.0.0.1", "0.0.0.0"), "cluster.address: must be an IP address"),
        (CLUSTER.replace("10.0.0.1:7525", "10.0.0.1:0"), "cluster.address: must be an IP"),
        (CLUSTER.replace("10.0.0.1", "mail.example"), "cluster.address: must begin with an IP"),
        (CLUSTER.replace("10.0.0.1:7525", "unix:/run/x"), "cluster.address: must be an IP"),
        (CLUSTER + '[store]\nlayer = "null"\n', "store.layer: a cluster needs the layer log"),
        (
            CLUSTER + '[store]\nlog_size = "512MiB"\n[limits]\nmessage_size = "61MiB"\n',
            "limits.message_size: at most 60MiB in a cluster",
        ),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(content: str, error: str) -> None:
    assert error in refused(content)


def test_a_system_file_out_of_reach_is_told_with_what_to_do(monkeypatch):
    """An ordinary user on a server: /etc/metad is root's and the hub's."""

    class OutOfReach(PosixPath):
        def exists(self, **_options: object) -> bool:
            raise PermissionError

    monkeypatch.setattr(config_parse, "SYSTEM_FILE", OutOfReach("/etc/metad/metad.toml"))
    with pytest.raises(ConfigError) as raised:
        config_parse.load(None, None, {})
    assert "permission denied (run this as root, or give --config" in raised.value.line
