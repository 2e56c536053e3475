"""A users database whose passwords cost little."""

import pytest

from metad.users import passwords
from metad.users.database import UserDatabase


@pytest.fixture(autouse=True)
def quick_hashing(monkeypatch):
    make = passwords.make
    monkeypatch.setattr(passwords, "make", lambda password, iterations=0: make(password, 10))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users"


@pytest.fixture
def users(path):
    with UserDatabase(path, create=True) as made:
        yield made
