"""Nodes of a cluster over real logs, without processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster_bench import ClusterBench


@pytest.fixture
def two() -> Iterator[ClusterBench]:
    with ClusterBench(2) as bench:
        yield bench


@pytest.fixture
def three() -> Iterator[ClusterBench]:
    with ClusterBench(3) as bench:
        yield bench
