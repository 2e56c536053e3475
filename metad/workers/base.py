"""What every child of the master does first and last.

Rules of this file:

* After the fork: signals reset, the wakeup descriptor dropped, `random` reseeded, what is not the
  child's closed; then a watch on the parent's death, and a look whether it came before the watch.
* A child leaves by `os._exit`, with a code that says why.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from metad.errors import EX_SOFTWARE, MetadError
from metad.loglines import LogLines

PR_SET_PDEATHSIG = 1
# A child that cannot begin its work (no log, no index, no sockets): starting it again at once
# would only loop.
EXIT_BOOT = 3


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent is gone, so that no orphan goes on acknowledging.

    To be called after the last change of credentials, which clears the setting.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EX_SOFTWARE)


def run_child(parent: int, close: Callable[[], None], main: Callable[[], int]) -> None:
    """The whole life of a forked child; never returns."""
    code = EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(parent)
        close()
        random.seed()
        code = main()
    except MetadError as error:
        LogLines().line("worker", f"fatal: {error}")
        code = EXIT_BOOT
    except BaseException as error:
        LogLines().line("worker", f"panic: {error!r}")
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
