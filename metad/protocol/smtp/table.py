"""The SMTP machine as data: its states, what each verb does in each, and the replies.

Rules of this file:

* (state, verb) -> a check of the argument, an action, the states that can follow.  A verb that is
  not in a state's rows is an error there.
* The machine takes every next state from here, and the diagram in docs/protocols.md is made from
  here (tools/diagrams).
* `refuse` is an action too: its reply names the command that is missing.
* Replies use Postfix's wording, because people and programs know it.
* No code that moves the machine: an action `x` is the method `_do_x` of commands.py or message.py.

RFC 5321 section 4.1.4 defines the order of commands; RFC 3030 adds BDAT to it; RFC 2033 is LMTP.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from metad.errors import Reply
from metad.protocol.smtp.arguments import BDAT_SYNTAX, MAIL_SYNTAX, RCPT_SYNTAX

# RFC 3463: bad connection, as in the session's timeouts.
TIMEOUT_CODE: Final = "4.4.2"
# Replies queued before the machine waits until they are taken: a client that pipelines and never
# reads must not fill our memory with replies.  A group of RFC 2920 with some thousand recipients
# stays within it; this many replies to EHLO, the longest, are a megabyte.
REPLY_LIMIT: Final = 4_096


class State:
    """The state of a session.

    `transaction`: a sender is accepted, and its message is not yet answered; `message`: some of the
    message has arrived or may arrive.
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
REFUSED: Final = State("REFUSED", transaction=True)  # a sender; every recipient was refused
RCPT: Final = State("RCPT", transaction=True)  # a recipient is accepted
DATA: Final = State("DATA", transaction=True, message=True)  # lines belong to the message
CHUNKS: Final = State("CHUNKS", transaction=True, message=True)  # from the first BDAT on
CLOSED: Final = State("CLOSED")  # nothing more is read

STATES: Final = (START, IDLE, MAIL, REFUSED, RCPT, DATA, CHUNKS, CLOSED)

# Not a verb, because no verb has a blank in it: the message is complete and was answered.
END: Final = b"end of message"


class Rule(NamedTuple):
    """One row.

    `argument`: True if one is required, False if none may be given, None if it does not matter;
    a command that breaks this gets `reply`.
    `done`: the state that follows the action; `refused`: the state that follows if the session
    refuses the sender, recipient or message.  None stands for the row's own state.
    """

    argument: bool | None
    action: str
    reply: Reply
    done: State | None = None
    refused: State | None = None


OK: Final = Reply(250, "2.0.0", "Ok")
SENDER_OK: Final = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK: Final = Reply(250, "2.1.5", "Ok")
GO_AHEAD: Final = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE: Final = Reply(221, "2.0.0", "Bye")
CANNOT_VERIFY: Final = Reply(252, "2.0.0", "Cannot VRFY user, but will accept mail for it")
START_TLS: Final = Reply(220, "2.0.0", "Ready to start TLS")

EARLY_TALK: Final = Reply(554, "5.5.0", "Error: you sent data before the greeting")
UNKNOWN: Final = Reply(500, "5.5.2", "Error: command not recognized")
NOT_IMPLEMENTED: Final = Reply(502, "5.5.1", "Error: command not implemented")
LINE_TOO_LONG: Final = Reply(500, "5.5.2", "Error: line too long")
BARE_IN_COMMAND: Final = Reply(500, "5.5.2", "Error: bare <CR>, <LF> or <NUL> in a command")
FLOOD: Final = Reply(421, "4.7.0", "Error: line does not end")
TOO_MANY_ERRORS: Final = Reply(421, "4.7.0", "Error: too many errors")
TOO_MANY_IDLE: Final = Reply(421, "4.7.0", "Error: too many commands without mail")
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Error: too many recipients")
TOO_LARGE: Final = Reply(552, "5.3.4", "Message size exceeds fixed limit")
NO_HTTP: Final = Reply(554, "5.5.1", "Error: this is not a web server")
AFTER_START_TLS: Final = Reply(554, "5.5.0", "Error: data before the TLS handshake")

_SEND_HELLO: Final = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
_SEND_LHLO: Final = Reply(503, "5.5.1", "Error: send LHLO first")
_NEED_MAIL: Final = Reply(503, "5.5.1", "Error: need MAIL command")
_NEED_RCPT: Final = Reply(503, "5.5.1", "Error: need RCPT command")
_NESTED_MAIL: Final = Reply(503, "5.5.1", "Error: nested MAIL command")
_NO_RECIPIENTS: Final = Reply(554, "5.5.1", "Error: no valid recipients")
_NO_LMTP_RECIPIENTS: Final = Reply(503, "5.5.1", "Error: no valid recipients")
_IN_CHUNKS: Final = Reply(503, "5.5.1", "Error: the message is being sent by BDAT")
_IN_TRANSACTION: Final = Reply(503, "5.5.1", "Error: MAIL transaction in progress")
_TLS_ACTIVE: Final = Reply(554, "5.5.1", "Error: TLS already active")


def _syntax(text: str) -> Reply:
    return Reply(501, "5.5.4", f"Syntax: {text}")


# RFC 2034 section 4: no enhanced code in any reply to EHLO or HELO.
_EHLO_SYNTAX: Final = Reply(501, "", "Syntax: EHLO hostname")
_HELO_SYNTAX: Final = Reply(501, "", "Syntax: HELO hostname")
_LHLO_SYNTAX: Final = Reply(501, "", "Syntax: LHLO hostname")

_EHLO: Final = {
    b"EHLO": Rule(True, "ehlo", _EHLO_SYNTAX, IDLE),
    b"HELO": Rule(True, "helo", _HELO_SYNTAX, IDLE),
}
_LHLO: Final = {b"LHLO": Rule(True, "ehlo", _LHLO_SYNTAX, IDLE)}

_HTTP: Final = (b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS", b"DELETE", b"PATCH")
# RFC 5321 (section 3.5.3, appendix F), RFC 1985 and RFC 4954 define these; they are not
# implemented.
_ABSENT: Final = (b"EXPN", b"TURN", b"SEND", b"SOML", b"SAML", b"ETRN", b"AUTH")


def _refuse(reply: Reply) -> Rule:
    return Rule(None, "refuse", reply)


def _skip(reply: Reply) -> Rule:
    """BDAT out of order: its octets arrive anyway (RFC 3030 section 2), then the refusal is
    sent."""
    return Rule(True, "skip_chunk", reply)


_ALWAYS: Final = {
    b"RSET": Rule(False, "reset", _syntax("RSET"), IDLE),
    b"NOOP": Rule(None, "say", OK),
    b"HELP": Rule(None, "help", OK),
    b"VRFY": Rule(True, "verify", _syntax("VRFY address")),
    b"QUIT": Rule(False, "quit", _syntax("QUIT"), CLOSED),
    **{verb: _refuse(NOT_IMPLEMENTED) for verb in _ABSENT},
    **{verb: Rule(None, "http", NO_HTTP, CLOSED) for verb in _HTTP},
}

_FIRST_RCPT: Final = Rule(True, "rcpt", RCPT_SYNTAX, RCPT, REFUSED)
_DATA: Final = Rule(False, "data", _syntax("DATA"), DATA)
_BDAT: Final = Rule(True, "chunk", BDAT_SYNTAX, CHUNKS)
_END: Final = Rule(None, "end", OK, IDLE, IDLE)

_TRANSACTION: Final[dict[State, dict[bytes, Rule]]] = {
    START: {
        b"MAIL": _refuse(_SEND_HELLO),
        b"RCPT": _refuse(_SEND_HELLO),
        b"DATA": _refuse(_SEND_HELLO),
        b"BDAT": _skip(_SEND_HELLO),
        b"STARTTLS": _refuse(_SEND_HELLO),
        b"RSET": _ALWAYS[b"RSET"]._replace(done=START),
    },
    IDLE: {
        b"MAIL": Rule(True, "mail", MAIL_SYNTAX, MAIL, IDLE),
        b"RCPT": _refuse(_NEED_MAIL),
        b"DATA": _refuse(_NEED_RCPT),
        b"BDAT": _skip(_NEED_RCPT),
        b"STARTTLS": Rule(False, "start_tls", _syntax("STARTTLS"), START),
    },
    MAIL: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _FIRST_RCPT,
        b"DATA": _refuse(_NEED_RCPT),
        b"BDAT": _skip(_NEED_RCPT),
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
    REFUSED: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _FIRST_RCPT,
        b"DATA": _refuse(_NO_RECIPIENTS),
        b"BDAT": _skip(_NO_RECIPIENTS),
        b"STARTTLS": _refuse(_IN_TRANSACTION),
    },
    RCPT: {
        b"MAIL": _refuse(_NESTED_MAIL),
        b"RCPT": _FIRST_RCPT._replace(refused=RCPT),
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
        END: _END,
    },
}
# In DATA every line belongs to the message, and in CLOSED none is read.
_SILENT: Final[dict[State, dict[bytes, Rule]]] = {DATA: {END: _END}, CLOSED: {}}


# RFC 2033 section 4.2: without an accepted recipient DATA must fail with 503.
_LMTP_REPLIES: Final = {_SEND_HELLO: _SEND_LHLO, _NO_RECIPIENTS: _NO_LMTP_RECIPIENTS}


def _for_lmtp(rule: Rule) -> Rule:
    """LMTP has another greeting, and another code where every recipient was refused."""
    return rule._replace(reply=_LMTP_REPLIES.get(rule.reply, rule.reply))


def table(*, lmtp: bool, starttls: bool, tls: bool) -> dict[State, dict[bytes, Rule]]:
    """The rows of a session, without a None among the states that follow.

    `starttls`: it is offered; `tls`: it is active already.
    """
    no_tls = {b"STARTTLS": _refuse(_TLS_ACTIVE if tls else NOT_IMPLEMENTED)}
    found = dict(_SILENT)
    for state, rules in _TRANSACTION.items():
        rows = {**_ALWAYS, **(_LHLO if lmtp else _EHLO), **rules}
        rows.update(no_tls if tls or not starttls else {})
        found[state] = {verb: _for_lmtp(rule) for verb, rule in rows.items()} if lmtp else rows
    return found


# All verbs known in any state of any protocol.
VERBS: Final = frozenset((b"LHLO", *_EHLO, *_ALWAYS, *_TRANSACTION[IDLE]))

# Rows whose action asks the session, which answers yes or no.
ASKING: Final = frozenset({"mail", "rcpt", "end"})


def answered(*, accepted: bool) -> dict[State, State]:
    """State -> the state that follows when the session accepts, or refuses, the sender, the
    recipient or the message that it was asked about.  No state asks two of these."""
    return {
        state: (rule.done if accepted else rule.refused) or state
        for state, rules in table(lmtp=False, starttls=False, tls=False).items()
        for rule in rules.values()
        if rule.action in ASKING
    }
