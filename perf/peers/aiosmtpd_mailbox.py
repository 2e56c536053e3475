"""aiosmtpd with its own Mailbox handler, a Maildir per user; mailbox.Maildir syncs every message.

python aiosmtpd_mailbox.py PORT MAIL-DIRECTORY
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any


async def serve(port: int, mail: Path) -> None:
    # Installed only where it is measured.
    mailbox: Any = importlib.import_module("aiosmtpd.handlers").Mailbox
    smtp: Any = importlib.import_module("aiosmtpd.smtp").SMTP

    class PerUser:
        """One Mailbox handler for each recipient."""

        def __init__(self) -> None:
            self._boxes: dict[str, Any] = {}

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:  # noqa: N802
            user = envelope.rcpt_tos[0]
            if user not in self._boxes:
                self._boxes[user] = mailbox(str(mail / user))
            return await self._boxes[user].handle_DATA(server, session, envelope)

    handler = PerUser()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: smtp(handler, loop=loop, hostname="mx.perf.example"), "127.0.0.1", port, backlog=512
    )
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
