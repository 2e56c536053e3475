"""Whatever answers in etcd's place: it is read, or it is an EtcdError."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.cluster import etcd_json
from metad.cluster.etcd_json import (
    Change,
    Changes,
    CompactedError,
    EtcdError,
    Row,
    changes_of,
    outcome_of,
    revision_of,
    rows_of,
)

NAMES = ["header", "revision", "kvs", "kv", "key", "value", "mod_revision", "lease", "type",
         "responses", "response_range", "succeeded", "events", "canceled", "compact_revision",
         "cancel_reason", "fragment"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["7", "eA==", "DELETE", "x"])
ANY = st.recursive(
    LEAVES | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
    max_leaves=20,
)
ANSWERS = st.dictionaries(st.sampled_from(NAMES), ANY)


@pytest.mark.slow
@pytest.mark.parametrize("read", [rows_of, outcome_of, changes_of, revision_of])
@given(answer=ANSWERS)
def test_any_answer_is_read_or_refused(read, answer):
    with suppress(EtcdError):
        read(json.loads(json.dumps(answer)))


def test_keys_and_prefixes():
    assert etcd_json.end_of_prefix("/a/") == "/a0"
    assert base64.b64decode(etcd_json.text("/ü")).decode() == "/ü"


def test_what_is_left_out_is_zero_or_empty():
    kv = {"key": "eA==", "mod_revision": "7"}
    assert rows_of({"kvs": [kv]}) == [Row("x", b"", 7, 0)]
    assert rows_of({}) == []
    header = {"header": {"revision": "9"}}
    assert outcome_of(header) == etcd_json.Outcome(False, 9, [])
    gone = changes_of({**header, "events": [{"type": "DELETE", "kv": kv}]})
    assert gone == Changes(9, [Change("x", None, 7)], more=False)


def test_a_watch_that_was_ended():
    with pytest.raises(CompactedError) as told:
        changes_of({"canceled": True, "compact_revision": "5"})
    assert told.value.revision == 5
    with pytest.raises(EtcdError, match="no leader"):
        changes_of({"canceled": True, "cancel_reason": "no leader"})
