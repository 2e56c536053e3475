"""Common programs, against a real hub.  A test is skipped, with a reason, if its program is
missing.

Each program changes messages in its own way: most have LF line ends on disk.
"""

import subprocess
from pathlib import Path

import pytest

from tests.support.clients import SENDER, bodies, deliver, digest, fetch, message, without_trace
from tests.support.hub import DEADLINE, PASSWORD, address

TEST = Path(__file__).parents[2] / ".test"
# Lines that no program should change: no trailing blanks, no octets above 127.
PLAIN = b".\r\n..two dots\r\n.one\r\nsome text\r\n\r\nlast line\r\n"


def run(*command, given=b"", status=0, **options):
    done = subprocess.run(
        command, input=given, capture_output=True, timeout=DEADLINE, check=False, **options
    )
    assert done.returncode == status, f"{command}: {done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout


@pytest.fixture
def home(tmp_path):
    """A home directory for a program's own files; those with a password are private."""

    def write(name: str, *lines: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join([*lines, ""]))
        path.chmod(0o600)
        return str(path)

    write.path = tmp_path  # type: ignore[attr-defined]
    return write


# --- Sending --------------------------------------------------------------------------------------


def test_curl_sends(hub, mailbox, program):
    sent = message()
    url = f"smtp://127.0.0.1:{hub.smtp_port}/client.example.test"
    envelope = ("--mail-from", SENDER, "--mail-rcpt", address(mailbox))
    run(program("curl"), "-sS", url, *envelope, "-T", "-", given=sent)
    assert [digest(one) for one in bodies(hub, mailbox)] == [digest(sent)]


def test_swaks_sends(hub, mailbox, program):
    sent = message(PLAIN)
    run(
        program("swaks"),
        *("--server", f"127.0.0.1:{hub.smtp_port}", "--ehlo", "client.example.test"),
        *("--from", SENDER, "--to", address(mailbox), "--data", "-"),
        given=sent.replace(b"\r\n", b"\n").removesuffix(b"\n"),  # swaks adds one
    )
    assert bodies(hub, mailbox) == [sent]


def test_swaks_sends_pipelined_to_several(hub, mailbox, boxes, program):
    other = next(boxes)
    run(
        program("swaks"),
        *("--server", f"127.0.0.1:{hub.smtp_port}", "--ehlo", "client.example.test", "--pipeline"),
        *("--from", SENDER, "--to", f"{address(mailbox)},{address(other)}"),
    )
    assert len(fetch(hub, mailbox)) == len(fetch(hub, other)) == 1


def test_swaks_hears_that_a_user_is_unknown(hub, program):
    heard = run(
        program("swaks"),
        *("--server", f"127.0.0.1:{hub.smtp_port}", "--ehlo", "client.example.test"),
        *("--from", SENDER, "--to", address("nobody")),
        status=24,
    )
    assert b"550 5.1.1" in heard


def test_msmtp_sends(hub, mailbox, program, home):
    sent = message()
    run(
        program("msmtp"),
        *("--file", home("msmtprc"), "--host", "127.0.0.1", "--port", str(hub.smtp_port)),
        *("--from", SENDER, "--tls=off", "--auth=off", "--domain", "client.example.test"),
        address(mailbox),
        given=sent.replace(b"\r\n", b"\n"),
    )
    assert [digest(one) for one in bodies(hub, mailbox)] == [digest(sent)]


NODEMAILER = """
const [port, from, to] = process.argv.slice(1);
const transport = require("nodemailer").createTransport({
    host: "127.0.0.1", port: Number(port), ignoreTLS: true, name: "client.example.test",
});
const raw = require("fs").readFileSync(0);
transport.sendMail({envelope: {from, to: [to]}, raw}, (error, info) => {
    if (error) { console.error(error); process.exit(1); }
    console.log(info.response);
    transport.close();
});
"""


def test_nodemailer_sends(hub, mailbox, program):
    if not (TEST / "npm/node_modules/nodemailer").is_dir():
        pytest.skip("nodemailer is not here (sh tools/test --full brings it)")
    sent = message()
    arguments = (str(hub.smtp_port), SENDER, address(mailbox))
    heard = run(program("node"), "-e", NODEMAILER, *arguments, given=sent, cwd=TEST / "npm")
    assert heard.startswith(b"250 2.0.0")
    assert [digest(one) for one in bodies(hub, mailbox)] == [digest(sent)]


def test_smtp_source_sends_many_over_many_connections(hub, mailbox, program):
    source = (program("smtp-source"), "-s", "20", "-m", "200", "-l", "500", "-f", SENDER)
    run(*source, "-t", address(mailbox), f"127.0.0.1:{hub.smtp_port}")
    assert len(fetch(hub, mailbox)) == 200


# --- Fetching -------------------------------------------------------------------------------------


def test_curl_lists_and_fetches(hub, mailbox, program):
    sent = message()
    deliver(hub, sent, mailbox)
    url = f"pop3://127.0.0.1:{hub.pop3_port}/"
    login = ("-sS", "-u", f"{address(mailbox)}:{PASSWORD}")
    found = run(program("curl"), *login, f"{url}1")
    assert digest(without_trace(found, recipient=mailbox)) == digest(sent)
    assert run(program("curl"), *login, url).split() == [b"1", str(len(found)).encode()]


def test_curl_logs_in_by_sasl_plain(hub, mailbox, program):
    deliver(hub, message(), mailbox)
    url = f"pop3://127.0.0.1:{hub.pop3_port}/"
    login = ("-u", f"{address(mailbox)}:{PASSWORD}", "--login-options", "AUTH=PLAIN")
    assert run(program("curl"), "-sS", *login, url).startswith(b"1 ")


def test_fetchmail_fetches_and_deletes(hub, mailbox, program, home):
    fetchmail = program("fetchmail")
    sent = message()
    deliver(hub, sent, mailbox)
    into = home.path / "fetched"
    rc = home(
        "fetchmailrc",
        "set invisible",
        f"poll 127.0.0.1 protocol POP3 port {hub.pop3_port} uidl no dns",
        f'user "{address(mailbox)}" password "{PASSWORD}" sslproto ""',
        f"no rewrite no mimedecode fetchall mda \"cat >>'{into}'\"",
    )
    command = (fetchmail, "-f", rc, "--nodetach", "--nosyslog", "--pidfile", f"{home.path}/pid")
    run(
        *command,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home.path), "FETCHMAILHOME": str(home.path)},
    )
    found = into.read_bytes().replace(b"\n", b"\r\n")
    assert digest(without_trace(found, recipient=mailbox)) == digest(sent)
    assert fetch(hub, mailbox) == []


def test_mpop_fetches_what_is_new(hub, mailbox, program, home):
    mpop = program("mpop")
    sent = message()
    deliver(hub, sent, mailbox)
    into = home.path / "fetched"
    rc = home(
        "mpoprc",
        *("account default", "host 127.0.0.1", f"port {hub.pop3_port}", "tls off", "auth user"),
        *(f"user {address(mailbox)}", f"password {PASSWORD}", "keep on", "received_header off"),
        *(f"uidls_file {home.path}/uidls", f"delivery mda \"cat >>'{into}'\""),
    )
    for _ in range(2):  # the second time there is nothing new, according to the UIDLs
        run(mpop, "-q", "-C", rc)
    found = into.read_bytes().replace(b"\n", b"\r\n")
    assert digest(without_trace(found, recipient=mailbox)) == digest(sent)


def test_getmail_fetches_and_deletes(hub, mailbox, program, home):
    getmail = program("getmail")
    sent = message(PLAIN)
    deliver(hub, sent, mailbox)
    into = home.path / "fetched"
    home(
        "getmailrc",
        *("[retriever]", "type = SimplePOP3Retriever", "server = 127.0.0.1"),
        *(f"port = {hub.pop3_port}", f"username = {address(mailbox)}", f"password = {PASSWORD}"),
        *("[destination]", "type = MDA_external", "path = /bin/sh", "allow_root_commands = true"),
        f"arguments = ('-c', 'cat >>{into}')",
        *("[options]", "delete = true", "delivered_to = false", "received = false"),
    )
    run(getmail, "--quiet", "--getmaildir", str(home.path))
    found = into.read_bytes().replace(b"\n", b"\r\n")
    assert digest(without_trace(found, recipient=mailbox)) == digest(sent)
    assert fetch(hub, mailbox) == []
