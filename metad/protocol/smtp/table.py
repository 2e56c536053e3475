"""The SMTP machine as data: its states, what each verb does in each, and its replies.

Rules of this file:

* (state, verb) -> a check of the argument, then the action.  What is not here is an error.
* `refuse` is an action too: its reply says what was to come first.
* Replies in Postfix's manner, because people and programs know them.
* No code that moves the machine: that is in smtp.py, where an action `x` is `Smtp._do_x`.

RFC 5321 section 4.1.4 is the order of commands; RFC 3030 what BDAT adds to it; RFC 2033 LMTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from metad import limits
from metad.errors import Reply
from metad.protocol.smtp.arguments import BDAT_SYNTAX, MAIL_SYNTAX, RCPT_SYNTAX

# Replies queued before the machine waits for somebody to take them: a client that pipelines
# and never reads must not fill our memory with answers.  A group of RFC 2920 with some thousand
# recipients is within it; the longest reply, EHLO's, that often is a megabyte.
REPLY_LIMIT: Final = 4_096


class State:
    """Where a session stands.

    `transaction`: a sender is accepted and its message not answered yet; `message`: octets of
    that have come, or may.
    """

    __slots__ = ("message", "name", "transaction")

    def __init__(self, name: str, *, transaction: bool = False, message: bool = False) -> None:
        self.name = name
        self.transaction = transaction
        self.message = message

    def __repr__(self) -> str:
        return self.name


START: Final = State("START")  # no EHLO, HELO or LHLO yet
IDLE: Final = State("IDLE")  # greeted, no transaction
MAIL: Final = State("MAIL", transaction=True)  # a sender, no recipient
REFUSED: Final = State("REFUSED", transaction=True)  # a sender, and only recipients refused
RCPT: Final = State("RCPT", transaction=True)  # a recipient is accepted
DATA: Final = State("DATA", transaction=True, message=True)  # lines are the message's
CHUNKS: Final = State("CHUNKS", transaction=True, message=True)  # from its first BDAT on

STATES: Final = (START, IDLE, MAIL, REFUSED, RCPT, DATA, CHUNKS)


class Rule(NamedTuple):
    """`argument`: True must be there, False must not, None either; else `reply` is given."""

    argument: bool | None
    action: str
    reply: Reply


OK: Final = Reply(250, "2.0.0", "Ok")
SENDER_OK: Final = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK: Final = Reply(250, "2.1.5", "Ok")
GO_AHEAD: Final = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE: Final = Reply(221, "2.0.0", "Bye")
CANNOT_VERIFY: Final = Reply(252, "2.0.0", "Cannot VRFY user, but will take mail for it")
START_TLS: Final = Reply(220, "2.0.0", "Ready to start TLS")

EARLY_TALK: Final = Reply(554, "5.5.0", "Error: you spoke before your turn")
UNKNOWN: Final = Reply(500, "5.5.2", "Error: command not recognized")
NOT_IMPLEMENTED: Final = Reply(502, "5.5.1", "Error: command not implemented")
LINE_TOO_LONG: Final = Reply(500, "5.5.2", "Error: line too long")
BARE_IN_COMMAND: Final = Reply(500, "5.5.2", "Error: bare <CR>, <LF> or <NUL> in a command")
FLOOD: Final = Reply(421, "4.7.0", "Error: line does not end")
TOO_MANY_ERRORS: Final = Reply(421, "4.7.0", "Error: too many errors")
TOO_MANY_IDLE: Final = Reply(421, "4.7.0", "Error: too many commands without mail")
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Error: too many recipients")
TOO_LARGE: Final = Reply(552, "5.3.4", "Message size exceeds fixed limit")
NO_HTTP: Final = Reply(554, "5.5.1", "Error: this is no web server")
AFTER_START_TLS: Final = Reply(554, "5.5.0", "Error: data before the TLS handshake")

_SEND_HELLO: Final = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
_SEND_LHLO: Final = Reply(503, "5.5.1", "Error: send LHLO first")
_NEED_MAIL: Final = Reply(503, "5.5.1", "Error: need MAIL command")
_NEED_RCPT: Final = Reply(503, "5.5.1", "Error: need RCPT command")
_NESTED_MAIL: Final = Reply(503, "5.5.1", "Error: nested MAIL command")
_NO_RECIPIENTS: Final = Reply(554, "5.5.1", "Error: no valid recipients")
_IN_CHUNKS: Final = Reply(503, "5.5.1", "Error: the message is being sent by BDAT")
_IN_TRANSACTION: Final = Reply(503, "5.5.1", "Error: MAIL transaction in progress")
_TLS_ACTIVE: Final = Reply(554, "5.5.1", "Error: TLS already active")


def _syntax(text: str) -> Reply:
    return Reply(501, "5.5.4", f"Syntax: {text}")


# RFC 2034 section 4: no enhanced code in any answer to EHLO or HELO.
_EHLO_SYNTAX: Final = Reply(501, "", "Syntax: EHLO hostname")
_HELO_SYNTAX: Final = Reply(501, "", "Syntax: HELO hostname")
_LHLO_SYNTAX: Final = Reply(501, "", "Syntax: LHLO hostname")

_EHLO: Final = {
    b"EHLO": Rule(True, "ehlo", _EHLO_SYNTAX),
    b"HELO": Rule(True, "helo", _HELO_SYNTAX),
}
_LHLO: Final = {b"LHLO": Rule(True, "ehlo", _LHLO_SYNTAX)}

_HTTP: Final = (b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS", b"DELETE", b"PATCH")
# Known to RFC 5321 (section 3.5.3, appendix F), RFC 1985 and RFC 4954, and not done here.
_ABSENT: Final = (b"EXPN", b"TURN", b"SEND", b"SOML", b"SAML", b"ETRN", b"AUTH")


def _refuse(reply: Reply) -> Rule:
    return Rule(None, "refuse", reply)


def _skip(reply: Reply) -> Rule:
    """BDAT out of turn: its octets come anyway (RFC 3030 section 2), then the refusal."""
    return Rule(True, "skip_chunk", reply)


_ALWAYS: Final = {
    b"RSET": Rule(False, "reset", _syntax("RSET")),
    b"NOOP": Rule(None, "say", OK),
    b"HELP": Rule(None, "help", OK),
    b"VRFY": Rule(True, "verify", _syntax("VRFY address")),
    b"QUIT": Rule(False, "quit", _syntax("QUIT")),
    **{verb: _refuse(NOT_IMPLEMENTED) for verb in _ABSENT},
    **{verb: Rule(None, "http", NO_HTTP) for verb in _HTTP},
}

_MAIL: Final = Rule(True, "mail", MAIL_SYNTAX)
_RCPT: Final = Rule(True, "rcpt", RCPT_SYNTAX)
_DATA: Final = Rule(False, "data", _syntax("DATA"))
_BDAT: Final = Rule(True, "chunk", BDAT_SYNTAX)

_TRANSACTION: Final[dict[State, dict[bytes, Rule]]] = {
    START: {
        b"MAIL": _refuse(_SEND_HELLO),
        b"RCPT": _refuse(_SEND_HELLO),
        b"DATA": _refuse(_SEND_HELLO),
        b"BDAT": _skip(_SEND_HELLO),
        b"STARTTLS": _refuse(_SEND_HELLO),
    },
    IDLE: {
        b"MAIL": _MAIL,
        b"RCPT": _refuse(_NEED_MAIL),
        b"DATA": _refuse(_NEED_RCPT),
        b"BDAT": _skip(_NEED_RCPT),
        b"STARTTLS": Rule(False, "start_tls", _syntax("STARTTLS")),
    },
    MAIL: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _RCPT,
        b"DATA": _refuse(_NEED_RCPT),
        b"BDAT": _skip(_NEED_RCPT),
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
    REFUSED: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _RCPT,
        b"DATA": _refuse(_NO_RECIPIENTS),
        b"BDAT": _skip(_NO_RECIPIENTS),
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
    RCPT: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _RCPT,
        b"DATA": _DATA,
        b"BDAT": _BDAT,
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
    CHUNKS: {
        b"MAIL": _refuse(_IN_CHUNKS),
        b"RCPT": _refuse(_IN_CHUNKS),
        b"DATA": _refuse(_IN_CHUNKS),
        b"BDAT": _BDAT,
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
}


def _start(rules: dict[bytes, Rule], *, lmtp: bool) -> dict[bytes, Rule]:
    """LMTP asks for another greeting, and says so."""
    if not lmtp:
        return {**_ALWAYS, **_EHLO, **rules}
    renamed = {
        verb: rule._replace(reply=_SEND_LHLO) if rule.reply is _SEND_HELLO else rule
        for verb, rule in rules.items()
    }
    return {**_ALWAYS, **_LHLO, **renamed}


def table(*, lmtp: bool, starttls: bool, tls: bool) -> dict[State, dict[bytes, Rule]]:
    """The rules of a session.  `starttls`: offered; `tls`: it runs already."""
    rules = {state: _start(of, lmtp=lmtp) for state, of in _TRANSACTION.items()}
    if tls or not starttls:
        refusal = _refuse(_TLS_ACTIVE if tls else NOT_IMPLEMENTED)
        for of in rules.values():
            of[b"STARTTLS"] = refusal
    return {**rules, DATA: {}}


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """What a listener's sessions have in common.

    `message_size` in octets; `recipients` per transaction; `errors`: how many replies of
    500-504 end the session; `idle_commands`: how many that lead to no message do, between two
    messages; `command_line` in octets with its CR LF; `bare_line_ends`: "refuse" or "repair".
    """

    hostname: str
    message_size: int
    recipients: int
    errors: int = limits.SMTP_ERRORS
    lmtp: bool = False
    starttls: bool = False
    bare_line_ends: str = "refuse"
    idle_commands: int = limits.SMTP_IDLE_COMMANDS
    command_line: int = limits.SMTP_COMMAND_LINE
    greeting: Reply = field(init=False)
    helo: Reply = field(init=False)
    help: Reply = field(init=False)
    ehlo: bytes = field(init=False)  # the answer to EHLO and LHLO, as it goes out
    ehlo_tls: bytes = field(init=False)  # the same once TLS runs

    def __post_init__(self) -> None:
        if self.bare_line_ends not in {"refuse", "repair"}:
            raise ValueError(f"bare_line_ends: {self.bare_line_ends!r}")
        protocol = "LMTP" if self.lmtp else "ESMTP"
        verbs = "LHLO" if self.lmtp else "EHLO HELO"
        verbs += " MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"
        verbs += " STARTTLS" if self.starttls else ""
        object.__setattr__(self, "greeting", Reply(220, "", f"{self.hostname} {protocol} metad"))
        object.__setattr__(self, "helo", Reply(250, "", self.hostname))
        object.__setattr__(self, "help", Reply(214, "2.0.0", f"Commands: {verbs}"))
        object.__setattr__(self, "ehlo", self._extensions(starttls=self.starttls))
        object.__setattr__(self, "ehlo_tls", self._extensions(starttls=False))

    def _extensions(self, *, starttls: bool) -> bytes:
        keywords = [
            self.hostname,
            "PIPELINING",  # RFC 2920
            f"SIZE {self.message_size}",  # RFC 1870
            "8BITMIME",  # RFC 6152
            "SMTPUTF8",  # RFC 6531
            "ENHANCEDSTATUSCODES",  # RFC 2034
            *(("STARTTLS",) if starttls else ()),  # RFC 3207
            f"LIMITS RCPTMAX={self.recipients}",  # RFC 9422
            "CHUNKING",  # RFC 3030
        ]
        lines = [f"250-{keyword}\r\n" for keyword in keywords[:-1]]
        return "".join([*lines, f"250 {keywords[-1]}\r\n"]).encode()
