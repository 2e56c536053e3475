"""The master as a nanny or the release before (metad.master.takeover) executes it, with CONFIG_FD,
PID_FD, NANNY_PID (0: none), DATA and LOG_FILE.  Other releases rely on this command line.

It runs as the configured user already, with no capability but that for the chroot; and, if the user
cannot read Python itself, that to read files, until everything is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from metad.errors import EX_OSERR, EX_SOFTWARE, MetadError
from metad.master.options import Options, SnapshotFile
from metad.master.preload import preload, preload_for
from metad.master.start import start
from metad.system import privileges
from metad.system.log_file import LogFile
from metad.system.pidfile import PidFile
from metad.system.systemd import priority, to_journal

# The nanny tries again after it, even if this was the first master: it had been ready.
EXIT_CRASHED = 1


def main(arguments: list[str]) -> int:
    """The exit code.  What goes wrong is one line on standard error, or a bug's trace."""
    config_fd, pid_fd, nanny = map(int, arguments[:3])
    if nanny and not privileges.die_with_parent(nanny, signal.SIGKILL):
        return EX_OSERR
    preload()
    for fd in (config_fd, pid_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    announced: list[bool] = []
    snapshot = SnapshotFile(config_fd)
    try:
        config = snapshot.read().parse(Path(arguments[3]))
        preload_for(config)
        privileges.drop_capabilities((privileges.CAP_SYS_CHROOT,))
        pid_file = PidFile(fd=pid_fd)
        log_file = LogFile(Path(arguments[4]) if arguments[4] else None)
        options = Options(pid_file, log_file, nanny, snapshot, lambda: announced.append(True))
        return start(config, options)
    except MetadError as error:
        mark = priority("fatal:") if to_journal() else ""
        print(f"{mark}metad: fatal: {error.line}", file=sys.stderr)  # noqa: T201
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = EX_SOFTWARE
    return EXIT_CRASHED if announced else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
