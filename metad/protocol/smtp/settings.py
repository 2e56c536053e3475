"""The settings shared by the SMTP sessions of a listener, made once.

Rules of this file:

* Replies common to all sessions are encoded here, not in each session.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from metad import limits
from metad.errors import Reply


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """The settings shared by a listener's sessions.

    `message_size` in octets; `recipients` per transaction; `errors`: replies 500 to 504 after which
    the session ends; `idle_commands`: commands without a message in between, after which the
    session ends; `command_line` in octets with its CR LF; `bare_line_ends`: "refuse" or "repair";
    `strict`: addresses must be in angle brackets, right after the colon.
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
    strict: bool = False
    greeting: Reply = field(init=False)
    helo: Reply = field(init=False)
    help: Reply = field(init=False)
    ehlo: bytes = field(init=False)  # the reply to EHLO and LHLO, as sent
    ehlo_tls: bytes = field(init=False)  # the same under TLS

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
