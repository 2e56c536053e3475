"""In a test's virtual machine: runs the scripts that come over the virtio port, one at a time.

Standard library only; tests.support.machine is the other end.
"""

from __future__ import annotations

import json
import os
import subprocess

PORT = "/dev/virtio-ports/test.agent"


def run(script: str, seconds: float) -> dict[str, object]:
    """What it printed and its exit code."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-ec", script],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {"code": -1, "out": f"no end within {seconds} s: {error.output!r}"}
    return {"code": done.returncode, "out": done.stdout.decode("utf-8", "replace")}


def main() -> None:
    with open(os.open(PORT, os.O_RDWR), "r+b", buffering=0) as port:
        port.write(b'\n{"hello": true}\n')
        rest = b""
        while data := port.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                given = json.loads(line)
                answer = run(given["script"], given["seconds"])
                answer["id"] = given["id"]
                port.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
