"""Random and mutated input (reliability.md, row 13): nothing raises, and no cut matters.

The corpus is kept: every input that once failed stays in it.  METAD_TEST_SEED repeats a run;
campaign.py runs for hours.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import WORDS, corpus, mutants
from tests.fuzz.targets import TARGETS
from tests.support.sizes import SEED, reached, sized

# Inputs of each target: about a third of a second's worth, and ten seconds' in CI.
COUNTS = {
    "smtp": 1000,
    "repair": 600,
    "lmtp": 600,
    "pop3": 2000,
    "proxy": 4000,
    "settings": 4000,
    "http": 2500,
    "rspamd": 8000,
    "milter": 700,
    "mbox": 3000,
    "maildir": 1000,
    "pop3-source": 5000,
    "frames": 6000,
    "link": 1000,
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_taken(target: str) -> None:
    known = corpus(target)
    assert len(known) >= 3
    for octets in known:
        TARGETS[target](octets)


@pytest.mark.parametrize("target", TARGETS)
@given(pieces=st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=30))
@settings(max_examples=sized(30, 1000), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_taken(target: str, pieces: list[bytes]) -> None:
    TARGETS[target](b"".join(pieces))


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_mutants_of_the_corpus_are_taken(target: str) -> None:
    tried, second = 0, COUNTS.get(target, 10_000)
    count = sized(second // 3, 10 * second)
    for octets in mutants(target, SEED, count):
        try:
            TARGETS[target](octets)
        except Exception as error:
            pytest.fail(f"{target}: {octets!r} (METAD_TEST_SEED={SEED}): {error!r}")
        tried += 1
    assert tried == count
    reached(f"row 13, random and mutated input: {target}", tried)


def test_mutants_are_the_same_for_the_same_seed() -> None:
    assert list(mutants("smtp", 7, 20)) == list(mutants("smtp", 7, 20))
    assert list(mutants("smtp", 7, 20)) != list(mutants("smtp", 8, 20))


def test_a_fault_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses its position when input is cut between CR and LF must not pass."""
    from metad.protocol.lines import LineBuffer

    def forgetful(self: LineBuffer, data: bytes) -> None:
        self.data = data
        self.position = self.searched = 0
        self.end = len(data)

    monkeypatch.setattr(LineBuffer, "push", forgetful)
    with pytest.raises(AssertionError):
        for octets in corpus("smtp"):
            TARGETS["smtp"](octets)
