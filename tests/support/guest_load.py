"""In a test's virtual machine: sends mail without a pause, and tells what came of it.

    guest_load.py OUTPUT STOP_FILE

Some threads send sessions of a few messages each until STOP_FILE is there.  OUTPUT is JSON: the
Message-IDs that were acknowledged, and every error by kind.  Standard library only.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import smtplib
import sys
import threading
import time

SENDERS = 4
MESSAGES = 3
MAILBOX = "alice@example.org"
_serial = itertools.count()


class Tally:
    """What all senders saw."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.errors: collections.Counter[str] = collections.Counter()

    def session(self) -> None:
        """One connection; how it failed, if it did, is counted."""
        phase = "connect"
        try:
            with smtplib.SMTP("127.0.0.1", 25, timeout=60) as client:
                phase = "session"
                # smtplib would try HELO after a 421 to EHLO, and report the end of the connection.
                code, reply = client.ehlo()
                if code != 250:
                    raise smtplib.SMTPResponseException(code, reply)
                for _ in range(MESSAGES):
                    name = f"<{os.getpid()}.{next(_serial)}@load.example>"
                    text = f"Message-ID: {name}\r\nSubject: load\r\n\r\n{'x' * 500}\r\n"
                    client.sendmail("a@load.example", [MAILBOX], text)
                    self.acknowledged.append(name)
        except smtplib.SMTPResponseException as error:
            self.errors[f"{phase} {error.smtp_code}"] += 1
        except (OSError, smtplib.SMTPException) as error:
            self.errors[f"{phase} {type(error).__name__}"] += 1
            time.sleep(0.05)


def main() -> None:
    output, stop = sys.argv[1:]
    tally = Tally()

    def send() -> None:
        while not os.path.exists(stop):
            tally.session()

    threads = [threading.Thread(target=send) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(f"{output}.new", "w", encoding="ascii") as file:
        json.dump({"acknowledged": tally.acknowledged, "errors": tally.errors}, file)
    os.rename(f"{output}.new", output)


if __name__ == "__main__":
    main()
