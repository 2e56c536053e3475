"""What a worker's store does each second."""

from __future__ import annotations

import os

from metad.layers.bench import Bench
from metad.layers.logs import LogLayer
from metad.store.log.header import log_path
from tests.layers.test_conformance import TestLog as Log


def test_a_log_that_is_gone_is_not_kept_open() -> None:
    """Found on a full disk: the collector had removed logs, and workers that had read them kept
    their blocks."""
    with Bench(Log()) as bench:
        layer = bench.its_layer
        assert isinstance(layer, LogLayer)
        bench.put([1], b"Subject: x\r\n\r\nx\r\n")
        list(bench.open(1).fetch(1, 1 << 20))
        (number,) = layer.reader._open
        fd = layer.reader._open[number].fd
        layer.tick()
        assert os.fstat(fd).st_nlink == 1
        os.unlink(log_path(layer.store.logs, number))
        layer.tick()
        assert not layer.reader._open
