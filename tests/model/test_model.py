"""Reliability row 12: random operations on the whole store against a dict.

Hypothesis prints how to reproduce a failure.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)  # fmt: skip

from metad.errors import RefusedError
from tests.support import power_campaign
from tests.support.osio_kit import SEED, FakeClock, Faults, KitOsio
from tests.support.sizes import reached, sized
from tests.support.store_kit import Sent, StoreKit

STEPS = 40
BOXES = st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True)
BODIES = st.one_of(st.binary(max_size=300), st.integers(0, 3000).map(lambda n: b"z" * n))


class StoreMachine(RuleBasedStateMachine):
    """The store, and its expected contents: mailbox -> id -> body."""

    messages = Bundle("messages")
    steps = 0  # of all that ran

    def __init__(self) -> None:
        super().__init__()
        self.data = power_campaign.scratch()
        self.clock = FakeClock()
        self.kit = StoreKit(self.data, KitOsio(clock=self.clock), size=power_campaign.SIZE)
        self.kit.eager = False
        self.model: dict[int, dict[bytes, bytes]] = {box: {} for box in range(1, 5)}

    def teardown(self) -> None:
        self.kit.crash()
        shutil.rmtree(self.data)

    @initialize(writers=st.integers(1, 3))
    def begin(self, writers: int) -> None:
        self.writers = writers
        self.kit.start(writers)

    # -- mail

    @rule(target=messages, boxes=BOXES, body=BODIES, slot=st.integers(0, 2))
    def put(self, boxes: list[int], body: bytes, slot: int) -> Any:
        sent = self.kit.put(boxes, body, slot % self.writers)
        return self.entered(sent, boxes, body)

    def entered(self, sent: Sent, boxes: list[int], body: bytes) -> Any:
        if sent.error is not None:
            return multiple()
        for box in boxes:
            self.model[box][sent.id] = body
        return sent.id

    @rule(target=messages, group=st.lists(st.tuples(BOXES, BODIES), min_size=2, max_size=8))
    def put_group(self, group: list[tuple[list[int], bytes]]) -> Any:
        sent = [self.kit.submit(boxes, body) for boxes, body in group]
        self.kit.run()
        made = [self.entered(s, *g) for s, g in zip(sent, group, strict=True)]
        return multiple(*[each for each in made if isinstance(each, bytes)])

    @rule(message=messages, box=st.integers(1, 4), slot=st.integers(0, 2))
    def delete(self, message: bytes, box: int, slot: int) -> None:
        """Including messages that the mailbox never had, or deleted before."""
        assert self.kit.delete(box, [message], slot % self.writers).acked
        self.model[box].pop(message, None)

    @rule(box=st.integers(1, 4), slot=st.integers(0, 2))
    def delete_all(self, box: int, slot: int) -> None:
        if self.model[box]:
            assert self.kit.delete(box, list(self.model[box]), slot % self.writers).acked
            self.model[box].clear()

    @rule(message=messages)
    def read(self, message: bytes) -> None:
        bodies = [box[message] for box in self.model.values() if message in box]
        if bodies:
            assert bytes(self.kit.stored(message).body) == bodies[0]
            pieces = list(self.kit.reader.stream(message))[1:]
            assert b"".join(pieces) == bodies[0]  # type: ignore[arg-type]

    # -- time and trouble

    @rule()
    def background(self) -> None:
        self.kit.background()

    @rule(kind=st.sampled_from(["sync", "write"]), boxes=BOXES, body=BODIES, short=st.booleans())
    def fail(self, kind: str, boxes: list[int], body: bytes, short: bool) -> None:
        """A write or sync fails: the message is refused, and not in the mailbox until a restart
        decides."""
        self.kit.osio.faults = Faults(kind, 1, short=short and kind == "write")
        sent = self.kit.put(boxes, body)
        self.kit.osio.faults = None
        assert sent.error is None or isinstance(sent.error, RefusedError)
        assert not self.kit.osio.retried
        self.entered(sent, boxes, body)

    @rule(jump=st.sampled_from([-86_400, -1, 0, 1, 86_400]))
    def jump(self, jump: int) -> None:
        self.clock.real += jump * 10**9

    @rule(clean=st.booleans(), index=st.sampled_from(["kept", "removed", "boot"]),
          writers=st.integers(1, 3))  # fmt: skip
    def restart(self, clean: bool, index: str, writers: int) -> None:
        self.kit.stop() if clean else self.kit.crash()
        if index == "removed":
            self.kit.drop_index()
        elif index == "boot":
            self.kit.boot += "x"
        self.writers = writers
        self.kit.start(writers)
        self.settle()

    def settle(self) -> None:
        """Refused, undecided messages may appear with the restart: accept either."""
        for box, model in self.model.items():
            for message_id, _ in self.kit.listing(box):
                if message_id not in model and message_id not in self.kit.ledger.acked:
                    model[message_id] = bytes(self.kit.stored(message_id).body)

    # -- invariants

    @invariant()
    @precondition(lambda self: hasattr(self, "writers"))
    def mailboxes_are_as_the_model_says(self) -> None:
        StoreMachine.steps += 1
        for box, model in self.model.items():
            listing = self.kit.listing(box)
            assert [each for each, _ in listing] == sorted(model)
            assert self.kit.index.usage(box).messages == len(model)

    @rule()
    def everything_is_right(self) -> None:
        self.kit.check()


def examples(count: int, number: int) -> int:
    """`count` runs of the machine, by a seed of their own; the steps they took."""
    run_state_machine_as_test(
        seed(number)(StoreMachine),
        settings=settings(
            max_examples=count,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return StoreMachine.steps


@pytest.mark.long
def test_the_store_is_as_the_model_says() -> None:
    """Its assertions are those of the machine's rules and invariants."""
    count = sized(20, 750)
    steps = power_campaign.spread(lambda job: examples(count, SEED + job), 2)
    reached("row 12, the store against a dict: steps", steps)
    assert steps > 2 * 20 * count
