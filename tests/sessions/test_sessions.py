"""Sessions by the clock: deadlines, caps, delays, and ends at which the last reply arrives."""

from __future__ import annotations

import pytest

from metad import limits
from metad.system.shared_memory import Cell
from metad.users.account import Account
from tests.support.session_kit import Connected, World

WRONG = b"USER bob\r\nPASS wrong\r\n"
EHLO = b"EHLO c\r\n"
TO_DATA = EHLO + b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"


def test_an_idle_smtp_session_ends_with_421_after_five_minutes() -> None:
    world = World()
    client = world.smtp()
    assert client.transport.take().startswith(b"220 ")
    client.send(EHLO)
    world.pass_time(limits.SMTP_IDLE)
    assert client.transport.take() == b""
    world.pass_time(2)
    assert client.transport.take() == b"421 4.4.2 Error: timeout exceeded\r\n"
    assert client.transport.half_closed


def test_half_commands_buy_no_time() -> None:
    """One octet every nine seconds (reliability.md, row 16), in the command phase."""
    world = World()
    client = world.smtp()
    client.send(EHLO)
    for _ in range(limits.SMTP_IDLE // 9 + 1):
        client.send(b"N")
        world.pass_time(9)
    assert b"421 4.4.2" in client.transport.take()


def test_commands_buy_time_and_the_session_has_no_deadline() -> None:
    world = World()
    client = world.smtp()
    client.send(EHLO)
    for _ in range(50):
        world.pass_time(limits.SMTP_IDLE - 10, 10)
        assert client.send(b"NOOP\r\n").startswith(b"250")


def test_a_message_that_drips_ends_after_an_hour() -> None:
    """One octet every nine seconds (row 16), within the data."""
    world = World()
    client = world.smtp()
    assert client.send(TO_DATA).endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n")
    started = world.loop.now
    while not client.transport.half_closed:
        assert world.loop.now - started < 2 * limits.TRANSACTION_GRACE
        client.send(b"x")
        world.pass_time(9, 9)
    assert client.transport.take() == b"421 4.4.2 Error: the message arrives too slowly\r\n"
    assert world.loop.now - started > limits.TRANSACTION_GRACE


def test_a_slow_message_that_keeps_the_rate_is_never_cut() -> None:
    world = World()
    client = world.smtp()
    client.send(TO_DATA)
    for _ in range(3 * limits.TRANSACTION_GRACE // 60):
        client.send((b"x" * 998 + b"\r\n") * 31)
        world.pass_time(60, 20)
    assert client.send(b".\r\n").startswith(b"250")


def test_a_busy_sender_of_many_messages_is_not_one_long_transaction() -> None:
    """At every check it is in a transaction, but each time a different one."""
    world = World()
    client = world.smtp()
    client.send(EHLO)
    for _ in range(limits.TRANSACTION_GRACE // 60 * 2):
        client.send(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
        world.pass_time(60, 60)
        assert client.send(b"A: b\r\n\r\n.\r\n").startswith(b"250")


def test_a_crowd_lets_slow_transactions_go_after_a_minute() -> None:
    world = World(connections=10, of_network=10)
    clients = [world.smtp() for _ in range(9)]
    slow = clients[0]
    slow.send(TO_DATA)
    world.pass_time(limits.CROWDED_GRACE - 5)
    assert not slow.transport.half_closed
    world.pass_time(10)
    assert slow.transport.take().endswith(b"421 4.4.2 Error: the message arrives too slowly\r\n")
    # Clients that are idle between transactions are not slow.
    assert not any(other.transport.half_closed for other in clients[1:])


def test_a_client_that_does_not_read_its_replies_is_dropped_not_waited_for() -> None:
    world = World()
    client = world.smtp()
    client.session.pause_writing()
    world.pass_time(limits.SMTP_IDLE + 2)
    assert client.transport.aborted


def test_pop3_has_a_minute_before_login() -> None:
    world = World()
    client = world.pop3()
    client.transport.take()
    for _ in range(7):
        client.send(b"N")
        world.pass_time(9)
    assert client.transport.take() == b"-ERR session timed out\r\n"
    assert client.transport.half_closed


def test_a_pop3_client_that_takes_what_it_is_sent_is_not_idle() -> None:
    world = World()
    client = world.pop3()
    client.session.pause_writing()
    for left in range(40, 0, -1):
        client.transport.unsent = left
        world.pass_time(limits.POP3_LOGIN_IDLE - 5, 5)
    assert not client.transport.aborted
    world.pass_time(limits.POP3_LOGIN_IDLE + 2, 2)
    assert client.transport.aborted


def test_over_the_cap_a_client_hears_so_and_is_not_read() -> None:
    world = World(of_network=2)
    kept = [world.smtp(), world.smtp()]
    turned = world.smtp()
    assert turned.transport.take() == b"421 too many\r\n"
    assert turned.transport.closed
    turned.lose()
    assert world.smtp("192.0.2.2").transport.take().startswith(b"220")
    kept[0].lose()
    assert world.smtp().transport.take().startswith(b"220")
    assert world.limiter.connections == 3


def test_every_connection_is_counted_out_once() -> None:
    world = World()
    client = world.smtp()
    client.send(b"QUIT\r\n")
    assert client.transport.closed
    client.lose()
    client.session.connection_lost(None)
    assert world.limiter.connections == 0
    assert world.context.sessions == set()


def test_who_is_not_on_the_list_is_turned_away() -> None:
    world = World()
    assert world.smtp("192.0.2.1", ("192.0.2.0/24",)).transport.take().startswith(b"220")
    other = world.smtp("198.51.100.1", ("192.0.2.0/24",))
    assert other.transport.take() == b"554 not listed\r\n"
    assert other.transport.closed
    assert world.limiter.connections == 1


def test_after_our_last_words_a_bounded_amount_is_read_on() -> None:
    world = World()
    client = world.smtp()
    client.transport.take()
    assert client.send(b"GET / HTTP/1.1\r\n").startswith(b"554 5.5.1")
    assert client.transport.half_closed
    assert not client.transport.is_closing()
    assert client.send(b"x" * limits.LINGER_OCTETS) == b""
    assert not client.transport.is_closing()
    client.send(b"x")
    assert client.transport.aborted
    client.lose()
    assert world.context.sessions == set()
    assert world.limiter.connections == 0


def test_after_our_last_words_a_bounded_time_passes() -> None:
    world = World()
    client = world.smtp()
    client.send(b"CONNECT a:25 HTTP/1.1\r\n")
    world.pass_time(limits.LINGER - 1)
    assert not client.transport.is_closing()
    world.pass_time(3)
    assert client.transport.aborted


def test_a_quit_needs_no_lingering() -> None:
    world = World()
    client = world.smtp()
    client.transport.take()
    assert client.send(b"QUIT\r\n") == b"221 2.0.0 Bye\r\n"
    assert client.transport.closed
    assert not client.transport.half_closed


def test_too_much_mail_of_a_network_is_deferred() -> None:
    world = World(rate=1)
    client, other = world.smtp(), world.smtp("192.0.2.2")
    for one in (client, other):
        one.transport.take()
        one.send(EHLO)
    assert client.send(b"MAIL FROM:<a@b.example>\r\nRSET\r\n").startswith(b"250 2.1.0")
    assert client.send(b"MAIL FROM:<a@b.example>\r\n").startswith(b"450 4.7.1")
    assert other.send(b"MAIL FROM:<a@b.example>\r\n").startswith(b"250 2.1.0")
    world.pass_time(61)
    assert client.send(b"MAIL FROM:<a@b.example>\r\n").startswith(b"250 2.1.0")


# --- logins ---


def fail(client: object, world: World) -> None:
    client.send(b"USER bob\r\nPASS wrong\r\n")  # type: ignore[attr-defined]
    world.threads.run()


def answered_after(one: Connected, world: World, password: bytes = b"wrong") -> float:
    """Seconds until a login is answered, with no password checked before its time."""
    one.transport.take()
    began = world.loop.now
    one.send(b"USER bob\r\nPASS " + password + b"\r\n")
    while b"[AUTH]" not in one.transport.written:
        assert world.loop.now < began + 60
        world.threads.run()
        world.loop.advance(0.25)
    one.transport.take()
    return round(world.loop.now - began)


def test_a_network_waits_longer_and_longer_before_its_passwords_are_checked() -> None:
    world = World()
    client, near, far = world.pop3(), world.pop3(), world.pop3("192.0.2.2")
    took = [answered_after(one, world) for one in (client, near, client, near)]
    assert took == [1, 2, 3, 5]
    assert answered_after(far, world) == 1
    client.send(b"USER bob\r\nPASS wrong\r\n")
    world.loop.advance(7.9)
    assert not world.threads.work
    world.loop.advance(0.2)
    assert len(world.threads.work) == 1


@pytest.mark.parametrize("stage", ["waiting for its turn", "waiting", "being checked", "checked"])
def test_a_client_that_hangs_up_before_the_answer_has_failed(stage: str) -> None:
    """Regression: USER and PASS pipelined and then a reset: 340 guesses a second, none of them
    counted."""
    world = World()
    others = [world.pop3() for _ in range(limits.LOGIN_CHECKS)]
    if stage == "waiting for its turn":
        for one in others:
            one.send(b"USER bob\r\nPASS wrong\r\n")
    if stage == "waiting":
        world.limiter.login_failed("192.0.2.1", world.loop.now)
    failures = world.context.row.cells[Cell.LOGIN_FAILURES]
    client = world.pop3()
    client.send(b"USER bob\r\nPASS right\r\n" if stage == "being checked" else WRONG)
    if stage == "checked":
        world.threads.run()
    client.lose()
    assert world.context.row.cells[Cell.LOGIN_FAILURES] == failures + 1
    assert world.limiter.login_delay("192.0.2.1", world.loop.now) >= 1
    assert any("login failed" in line for line in world.lines)
    for _ in range(limits.LOGIN_CHECKS + 1):
        world.threads.run()
        world.loop.advance(16)
    assert world.limiter._checks == {}


def test_a_password_that_is_checked_for_a_client_that_hung_up_keeps_its_turn() -> None:
    """Otherwise hanging up would put any number of checks into the threads."""
    world = World()
    for _ in range(3 * limits.LOGIN_CHECKS):
        client = world.pop3()
        client.send(WRONG)
        client.lose()
    assert len(world.threads.work) <= limits.LOGIN_CHECKS


def test_a_remembered_login_waits_for_nothing() -> None:
    world = World()
    for _ in range(10):
        world.limiter.login_failed("192.0.2.1", world.loop.now)
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore[assignment]
    client = world.pop3()
    assert client.send(b"USER bob\r\nPASS right\r\n").endswith(b"+OK 0 messages (0 octets)\r\n")


def test_a_mailbox_in_use_is_waited_for_some_seconds() -> None:
    """Two devices of one person polled at the same time: one got an error, and asked for the
    password."""
    world = World()
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore[assignment]
    layer = world.context.layer
    layer.in_use = True  # type: ignore[attr-defined]
    client = world.pop3()
    client.transport.take()
    assert client.send(b"USER bob\r\nPASS right\r\n") == b"+OK send the password\r\n"
    world.loop.advance(limits.IN_USE_PATIENCE - 0.5)
    assert client.transport.take() == b""
    layer.in_use = False  # type: ignore[attr-defined]
    world.loop.advance(limits.IN_USE_RETRY)
    assert client.transport.take().startswith(b"+OK 0 messages")


def test_a_mailbox_that_stays_in_use_is_refused() -> None:
    world = World()
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore[assignment]
    world.context.layer.in_use = True  # type: ignore[attr-defined]
    client, other = world.pop3(), world.pop3()
    for one in (client, other):
        one.send(b"USER bob\r\nPASS right\r\n")
    other.lose()
    world.pass_time(limits.IN_USE_PATIENCE + 1, limits.IN_USE_RETRY)
    assert client.transport.take().endswith(b"-ERR [IN-USE] mailbox is open in another session\r\n")
    assert not world.loop.later


def test_mail_that_is_not_ready_is_waited_for() -> None:
    world = World()
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore[assignment]
    layer = world.context.layer
    asked: list[int] = []
    ready: list[bool] = []

    def is_behind(mailbox: int, asked_ns: int) -> bool:
        asked.append(asked_ns)
        return not ready

    layer.is_behind = is_behind  # type: ignore[method-assign]
    client = world.pop3()
    client.transport.take()
    client.send(b"USER bob\r\nPASS right\r\n")
    for _ in range(5):
        world.loop.advance(limits.BEHIND_RETRY_MOST)
    assert client.transport.take() == b""
    ready.append(True)
    world.loop.advance(limits.BEHIND_RETRY_MOST)
    assert client.transport.take().startswith(b"+OK 0 messages")
    assert len(asked) > 3
    assert len(set(asked)) == 1, "it waits for mail that comes while it waits"


def test_mail_that_does_not_get_ready_is_no_reason_to_list_without_it() -> None:
    world = World()
    world.context.logins.recall = lambda user, password: Account(2, user)  # type: ignore[assignment]
    world.context.layer.behind = True  # type: ignore[attr-defined]
    client, other = world.pop3(), world.pop3()
    for one in (client, other):
        one.send(b"USER bob\r\nPASS right\r\n")
    other.lose()
    world.pass_time(limits.BEHIND_PATIENCE + 1, limits.BEHIND_RETRY_MOST)
    answer = client.transport.take()
    assert answer.endswith(b"-ERR [SYS/TEMP] new mail is not ready yet, try again\r\n")
    assert not world.loop.later


def test_a_session_that_waits_for_its_refusal_is_neither_idle_nor_harmed_by_its_end() -> None:
    world = World()
    client = world.pop3()
    for _ in range(6):
        answered_after(client, world)
    fail(client, world)
    client.lose()
    world.loop.advance(16)
    assert world.limiter.connections == 0


def test_a_fault_of_ours_is_no_failure_of_theirs() -> None:
    world = World()
    client = world.pop3()
    client.transport.take()
    client.send(b"USER bob\r\nPASS broken\r\n")
    world.threads.run()
    assert client.transport.take().endswith(b"-ERR [SYS/TEMP] temporary failure\r\n")


def test_few_passwords_of_a_network_are_checked_at_once() -> None:
    world = World()
    many = [world.pop3() for _ in range(limits.LOGIN_CHECKS + 2)]
    for one in many:
        one.send(b"USER bob\r\nPASS wrong\r\n")
    assert len(world.threads.work) == limits.LOGIN_CHECKS
    other = world.pop3("192.0.2.2")
    other.send(b"USER bob\r\nPASS wrong\r\n")
    assert len(world.threads.work) == limits.LOGIN_CHECKS + 1
    many[-1].lose()  # while it waits
    world.threads.run()
    world.loop.advance(limits.MAX_LOGIN_FAILURE_DELAY)
    assert len(world.threads.work) == 1
    world.threads.run()
    assert world.threads.work == []


def test_a_connection_that_is_lost_before_its_acceptor_looks_is_counted_out_once() -> None:
    world = World()
    client = world.smtp()
    client.lose()
    client.lose()
    assert client.session.has_begun
    assert world.limiter.connections == 0


def test_a_retired_worker_waits_for_the_last_session_and_for_a_handshake_under_way() -> None:
    world = World()
    ended: list[str] = []
    context = world.context
    context.on_idle = lambda: ended.append("idle")
    client = world.smtp()
    assert context.limiter.enter("192.0.2.9")  # admitted; its handshake is under way
    context.retired = True
    client.lose()
    assert not ended
    context.draining = True  # in its last seconds the hub waits for no handshake
    context.check_idle()
    assert ended == ["idle"]
    context.draining = False
    context.limiter.leave("192.0.2.9")
    context.check_idle()
    assert ended == ["idle", "idle"]


def test_a_login_whose_outcome_fails_is_answered() -> None:
    """Regression: the error went to the loop, and the client waited until its session timed out."""
    world = World()

    def broken(address: str) -> Account:
        raise RuntimeError("a bug")

    world.context.users.account = broken  # type: ignore[method-assign]
    client = world.pop3()
    client.transport.take()
    client.send(b"USER admin\r\nPASS wrong\r\n")
    world.threads.run()
    assert b"-ERR" in client.transport.take()
    assert any("a bug" in line for line in world.lines)
