"""The master as the nanny starts it: `main(["CONFIG_FD", "READY_FD", "NANNY_PID", "DATA"])`.

It is the configured user already, with no capability but the one for the chroot.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from metad import privileges
from metad.errors import EX_OSERR, MetadError
from metad.master.options import Options, SnapshotFile
from metad.master.preload import preload
from metad.master.start import start


def prepare() -> None:
    """What has to be done while files can still be read."""
    preload()


def main(arguments: list[str]) -> int:
    """The exit code.  What goes wrong is one line on standard error."""
    config_fd, ready_fd, nanny = map(int, arguments[:3])
    if not privileges.die_with_parent(nanny, signal.SIGKILL):
        return EX_OSERR
    for fd in (config_fd, ready_fd):
        os.set_inheritable(fd, False)

    def ready() -> None:
        os.write(ready_fd, b"R")
        os.close(ready_fd)

    snapshot = SnapshotFile(config_fd)
    try:
        config = snapshot.read().parse(Path(arguments[3]))
        return start(config, Options(nanny=nanny, snapshot=snapshot, ready=ready))
    except MetadError as error:
        print(f"metad: fatal: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
