"""The memory of verified logins: what it forgets, and when."""

import pytest

from metad.users.account import DISABLED, Account
from metad.users.login_cache import LoginMemory

ANN = Account(2, "ann@example.org", 0, 1)


class Accounts(dict):
    """The users database, as far as the memory needs it."""

    def account(self, address):
        return self.get(address)


@pytest.fixture
def accounts():
    return Accounts({ANN.address: ANN})


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def memory(accounts, clock):
    made = LoginMemory(accounts, seconds=600, entries=3, clock=lambda: clock[0])
    made.remember(ANN.address, b"secret", ANN)
    return made


def test_a_remembered_login_is_recalled(memory):
    assert memory.recall(ANN.address, b"secret") == ANN


@pytest.mark.parametrize("password", [b"", b"Secret", b"secret "])
def test_another_password_is_not(memory, password):
    assert memory.recall(ANN.address, password) is None


def test_another_address_is_not(memory):
    assert memory.recall("bob@example.org", b"secret") is None


def test_bytes_do_not_move_between_address_and_password(memory):
    assert memory.recall("ann@example.or", b"gsecret") is None


def test_it_is_forgotten_after_its_time(memory, clock):
    clock[0] += 599
    assert memory.recall(ANN.address, b"secret") == ANN
    clock[0] += 1
    assert memory.recall(ANN.address, b"secret") is None
    assert len(memory) == 0


@pytest.mark.parametrize(
    "changed",
    [ANN._replace(password_version=2), ANN._replace(id=3), ANN._replace(flags=DISABLED), None],
)
def test_a_changed_account_is_forgotten_at_once(memory, accounts, changed):
    accounts[ANN.address] = changed
    assert memory.recall(ANN.address, b"secret") is None
    accounts[ANN.address] = ANN
    assert memory.recall(ANN.address, b"secret") is None


def test_the_recalled_account_is_the_present_one(memory, accounts):
    accounts[ANN.address] = ANN._replace(flags=2)
    assert memory.recall(ANN.address, b"secret") == ANN._replace(flags=2)


def test_the_oldest_goes_when_there_is_no_room(memory):
    for password in (b"1", b"2", b"3"):
        memory.remember(ANN.address, password, ANN)
    assert len(memory) == 3
    assert memory.recall(ANN.address, b"secret") is None
    assert memory.recall(ANN.address, b"1") == ANN


def test_one_remembered_again_is_the_youngest(memory):
    memory.remember(ANN.address, b"1", ANN)
    memory.remember(ANN.address, b"secret", ANN)
    for password in (b"2", b"3"):
        memory.remember(ANN.address, password, ANN)
    assert memory.recall(ANN.address, b"secret") == ANN
    assert memory.recall(ANN.address, b"1") is None


def test_neither_password_nor_address_is_kept(memory):
    kept = repr(vars(memory)["_logins"])
    assert "secret" not in kept
    assert "example" not in kept


def test_two_memories_have_different_keys(accounts):
    one, other = LoginMemory(accounts), LoginMemory(accounts)
    assert vars(one)["_key"] != vars(other)["_key"]
