"""The error tree, and the SMTP and POP3 reply of each error.

Rules of this file:

* Every error that can reach a client carries its SMTP reply and its POP3 response.
* `ours`: True if the hub is at fault (disk, index), False if the client is.
* Every error that can end a command carries its exit code (sysexits.h), and says three things in
  one line: where and what went wrong (its text), and what to do next (its `remedy`):

      metad: fatal: /srv/mail: no such data directory (metad user add makes it)

  A remedy names a command, an option, a setting, or what must be changed.  A class may have a
  general one, the code that raises an error a better one.

Reply codes: RFC 5321 section 4.2; enhanced codes: RFC 3463; POP3 response codes: RFC 2449
section 8 and RFC 3206.
"""

from __future__ import annotations

import errno
from typing import Self

EX_OK = 0
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_NOUSER = 67
EX_NOHOST = 68
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_OSERR = 71
EX_OSFILE = 72
EX_CANTCREAT = 73
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_PROTOCOL = 76
EX_NOPERM = 77
EX_CONFIG = 78


class Reply:
    """An SMTP reply of one line, encoded once: `wire` is sent to the socket."""

    __slots__ = ("code", "enhanced", "text", "wire")

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        self.code = code
        self.enhanced = enhanced
        self.text = text
        middle = f"{enhanced} " if enhanced else ""
        self.wire = f"{code} {middle}{text}\r\n".encode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        return self.code < 400

    def __repr__(self) -> str:
        return f"Reply({self.wire[:-2].decode('utf-8', 'replace')!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and other.wire == self.wire

    def __hash__(self) -> int:
        return hash(self.wire)


class QueuedReply(Reply):
    """The reply to a stored message.  One is made per message, so it avoids the general
    constructor."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        self.code = 250
        self.enhanced = "2.0.0"
        self.text = f"Ok: queued as {name}"
        self.wire = f"250 2.0.0 {self.text}\r\n".encode()


# What to do about a full disk, and about an error of the system.
SPACE = "free some space on this disk: df shows it"
_REMEDIES = {
    errno.EACCES: "run this as root or as the owner of the file",
    errno.EPERM: "run this as root or as the owner of the file",
    errno.ENOENT: "give a path that exists",
    errno.ENOTDIR: "give a path below directories",
    errno.EISDIR: "give a file, not a directory",
    errno.EEXIST: "give a path that does not exist",
    errno.ENOTEMPTY: "give a directory that is empty",
    errno.ELOOP: "it is a symbolic link: name its target",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOSPC: SPACE,
    errno.EDQUOT: "free some space: this user's share of the disk is used up",
    errno.EFBIG: "raise the limit of the size of files: ulimit -f",
    errno.EROFS: "mount it for writing, or give another path",
    errno.EIO: "the disk may be failing: dmesg shows it",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "raise the system's limit of open files: sysctl fs.file-max",
    errno.ENOMEM: "free some memory: free shows it",
    errno.EAGAIN: "raise the limit of processes: ulimit -u",
    errno.EADDRINUSE: "ss -ltnp shows what has it: end that, or set another address",
    errno.EADDRNOTAVAIL: "set an address of this machine: ip address shows them",
    errno.ECONNREFUSED: "start the server, or correct its address",
    errno.ETIMEDOUT: "see whether the server and the network work",
    errno.EHOSTUNREACH: "see whether the server and the network work",
    errno.ENETUNREACH: "see whether the server and the network work",
}
_UNKNOWN = "metad doctor examines the machine"


def remedy_for(error: OSError) -> str:
    """What to do about an error of the system."""
    return _REMEDIES.get(error.errno or 0, _UNKNOWN)


class MetadError(Exception):
    """The root.  `str()` says what went wrong, `remedy` what to do next; `line` is both."""

    exit_code = EX_SOFTWARE
    ours = True
    remedy = ""

    def __init__(self, text: object = "", *, remedy: str = "") -> None:
        super().__init__(text)
        if remedy:
            self.remedy = remedy

    @classmethod
    def of(cls, error: OSError, place: object) -> Self:
        """An error of the system at `place`, with its remedy."""
        return cls(f"{place}: {error.strerror or error}", remedy=remedy_for(error))

    @property
    def line(self) -> str:
        """One line for a log or a terminal."""
        return f"{self} ({self.remedy})" if self.remedy else str(self)


class UsageError(MetadError):
    """Bad arguments.  Without a remedy of its own, the command adds its --help."""

    exit_code = EX_USAGE
    ours = False


class ConfigError(MetadError):
    """A bad configuration: names file, key and reason."""

    exit_code = EX_CONFIG
    ours = False
    remedy = "metad.toml(5) describes every setting"


class DataError(MetadError):
    """Bad data, stored or given (exit 65).  Its text says what good data is, or it has a remedy."""

    exit_code = EX_DATAERR


class NotPermittedError(MetadError):
    exit_code = EX_NOPERM
    ours = False
    remedy = "run this as root or as the owner of the data directory"


class UnavailableError(MetadError):
    """A service is unavailable: no hub is running, or one is running already (exit 69)."""

    exit_code = EX_UNAVAILABLE
    remedy = "metad status shows whether a hub is running"


class TemporaryError(MetadError):
    """Not possible now; a retry may succeed (exit 75)."""

    exit_code = EX_TEMPFAIL
    remedy = "try again later"


class OsError(MetadError):
    """A system error: a port in use, no memory, no permission (exit 71)."""

    exit_code = EX_OSERR
    remedy = _UNKNOWN


class CannotCreateError(MetadError):
    exit_code = EX_CANTCREAT


class NoSuchUserError(MetadError):
    exit_code = EX_NOUSER
    ours = False
    remedy = "metad user list shows those that exist"


class ClusterError(MetadError):
    """What another node sent, or a file has, is not as the cluster's protocol wants it."""

    exit_code = EX_PROTOCOL
    remedy = "metad cluster status shows the nodes"


class RefusedError(MetadError):
    """A command or message is refused; the session goes on.

    `smtp` is the reply in an SMTP session, `pop3` the text after `-ERR ` in a POP3 one.
    """

    smtp = Reply(451, "4.3.0", "Temporary failure")
    pop3 = "[SYS/TEMP] temporary failure"
    exit_code = EX_TEMPFAIL
    remedy = "the hub's log says why"


class UnknownUserError(RefusedError):
    smtp = Reply(550, "5.1.1", "User unknown")
    ours = False


class ForeignDomainError(RefusedError):
    smtp = Reply(550, "5.7.1", "Relay access denied")
    ours = False


class UsersLostError(RefusedError):
    """An unknown address, while the users database was lost: its user may come back."""

    smtp = Reply(451, "4.3.0", "The users database is being restored, try again later")


class DisabledUserError(RefusedError):
    smtp = Reply(550, "5.2.1", "Mailbox disabled")
    ours = False


class MessageTooLargeError(RefusedError):
    smtp = Reply(552, "5.3.4", "Message size exceeds fixed limit")
    ours = False


class OverQuotaError(RefusedError):
    smtp = Reply(452, "4.2.2", "Mailbox full")
    ours = False


class TooMuchMailError(RefusedError):
    smtp = Reply(450, "4.7.1", "Error: too much mail from this client, try again later")
    ours = False


class MailboxFullError(OverQuotaError):
    """By configuration, or because the message is larger than the whole quota."""

    smtp = Reply(552, "5.2.2", "Mailbox full")


class MixedRecipientsError(RefusedError):
    """Filters treat this recipient differently from earlier ones: it needs its own message."""

    smtp = Reply(452, "4.5.3", "Recipient needs a transaction of its own")
    ours = False


class HeaderTooLargeError(RefusedError):
    smtp = Reply(552, "5.3.4", "Message header too large")
    ours = False


class TooManyMailboxesError(RefusedError):
    """With aliases expanded, the recipients are more mailboxes than one message may have."""

    smtp = Reply(452, "4.5.3", "Error: too many recipients")
    ours = False


class MailLoopError(RefusedError):
    smtp = Reply(554, "5.4.6", "Too many hops")
    ours = False


class NoSpaceError(RefusedError):
    """No space for new mail; stored mail is still served."""

    remedy = "metad status shows the space that is needed and that is left"

    smtp = Reply(452, "4.3.1", "Insufficient system storage")
    pop3 = "[SYS/TEMP] insufficient storage"


class SyncFailedError(RefusedError):
    """A write or sync failed: the message was not accepted, and the client must retry."""

    smtp = Reply(451, "4.3.0", "Could not make the message durable, try again")
    pop3 = "[SYS/TEMP] could not make the deletions durable"


class DrainingError(RefusedError):
    smtp = Reply(421, "4.3.2", "Service shutting down")
    pop3 = "[SYS/TEMP] service shutting down"


class LoginDelayError(RefusedError):
    """The user logged in a moment ago (RFC 2449 section 8.1.1)."""

    pop3 = "[LOGIN-DELAY] minimum time between logins has not passed"
    ours = False


class MailboxInUseError(RefusedError):
    pop3 = "[IN-USE] mailbox is open in another session"
    ours = False


class BehindError(RefusedError):
    """Mail of this mailbox is acknowledged but not yet listed: its worker died or hangs."""

    pop3 = "[SYS/TEMP] new mail is not ready yet, try again"


class DamagedError(RefusedError):
    """A stored message does not verify: it is quarantined and reported, never served.

    `log`: the number of a log that contains it; 0: none.
    """

    log = 0
    pop3 = "[SYS/PERM] this message is damaged in the store"
    exit_code = EX_DATAERR
    remedy = "metad fsck names everything that is damaged"
