"""The sort layer: where mail goes, and what happens when the disk fails."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.errors import NoSpaceError, RefusedError, SyncFailedError
from metad.layers.sort import TEMPLATE, Places, SortLayer, UnsafeAddressError
from metad.layers.testing import HEADER, Bench, Conformance
from metad.system.osio import Osio


class Suite(Conformance):
    layer = SortLayer
    serves = False


@pytest.fixture
def bench():
    with Bench(Suite()) as made:
        yield made


def files(bench, part="new"):
    return sorted(bench.data.glob(f"maildirs/*/*/{part}/*"))


# --- Places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "place"),
    [(TEMPLATE, "example.org/ann"), ("{address}", "ann@example.org"), ("{id}", "7"),
     ("{domain}/{hash}/{local}/Maildir", "example.org/20/ann/Maildir"),
     ("m-{id}", "m-7")],
)  # fmt: skip
def test_a_template_says_where(template, place):
    found = Places(Path("/mail"), template).directory(7, "ann@example.org")
    if "{hash}" in template:
        assert found.startswith("/mail/example.org/")
        assert found.endswith("/ann/Maildir")
    else:
        assert found == f"/mail/{place}"


@pytest.mark.parametrize(
    "template",
    ["", "{local}", "{domain}", "Maildir", "../{address}", "/{address}", "{address}/", "a//{id}",
     "{domain}/../{local}/{domain}", "./{id}", "{id}/.", "{address!r}", "{address:>99}", "{0}",
     "{}", "{address.x}", "{user}/{address}", "{address", "{id}\n", "{address[0]}"],
)  # fmt: skip
def test_a_template_that_leads_elsewhere_or_joins_mailboxes_is_refused(template):
    with pytest.raises(ValueError, match="template"):
        SortLayer.check_options({"template": template}, Path("/data"))


@pytest.mark.parametrize("options", [{"root": "mail"}, {"root": 5}, {"template": 1}, {"x": "y"},
                                     {"root": "/a\nb"}])  # fmt: skip
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SortLayer.check_options(options, Path("/data"))


@pytest.mark.parametrize("address", ["a/b@x.org", "../../etc@x.org", '"../x"@x.org', "/@x.org",
                                     "a@[IPv6:::1]/x", "x" * 256 + "@y"])  # fmt: skip
def test_an_address_that_would_lead_out_is_refused(address):
    with pytest.raises(UnsafeAddressError):
        Places(Path("/mail"), TEMPLATE).directory(2, address)


@pytest.mark.slow
@given(
    st.text(), st.text(min_size=1), st.sampled_from([TEMPLATE, "{address}", "u/{local}/{domain}"])
)
def test_no_address_whatever_leads_out_of_the_root(local, domain, template):
    places = Places(Path("/mail"), template)
    try:
        found = places.directory(2, f"{local}@{domain}")
    except (UnsafeAddressError, UnicodeEncodeError):
        return
    assert os.path.normpath(found) == found
    assert found.startswith("/mail/")
    assert found.count("/") == 2 + template.count("/")


def test_an_address_without_a_directory_costs_that_recipient(bench):
    layer = bench.its_layer
    layer._address_of = {2: "a/b@x.org", 3: "ann@x.org"}.get
    layer.check_space()
    layer.check_mailbox(3)
    for mailbox in (2, 4):
        with pytest.raises(RefusedError):
            layer.check_mailbox(mailbox)


# --- Failures -------------------------------------------------------------------------------------


class FailingOsio(Osio):
    """Fails the call of this kind with this number; counts all of them."""

    def __init__(self, kind, number, error):
        self.kind, self.number, self.error, self.calls = kind, number, error, 0

    def _maybe(self, kind):
        if kind == self.kind:
            self.calls += 1
            if self.calls == self.number:
                raise OSError(self.error, os.strerror(self.error))

    def open(self, path, flags, mode=0o600):
        if "/tmp/" in path and flags & os.O_CREAT:
            self._maybe("create")
        return super().open(path, flags, mode)

    def pwrite(self, fd, data, offset):
        self._maybe("write")
        return super().pwrite(fd, data, offset)

    def fsync(self, fd):
        self._maybe("sync")
        super().fsync(fd)

    def rename(self, old, new):
        self._maybe("rename")
        super().rename(old, new)

    def fsync_directory(self, path):
        if path.endswith("/new"):
            self._maybe("directory")
        super().fsync_directory(path)

    def mkdir(self, path, mode=0o700):
        self._maybe("mkdir")
        super().mkdir(path, mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [("create", 2), ("write", 4), ("sync", 2), ("rename", 2), ("directory", 2), ("mkdir", 8)],
)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failure_anywhere_leaves_nothing_of_the_message(bench, kind, count, error):
    """Two recipients: the message is in both Maildirs or in none, and nothing stays in tmp."""
    for number in range(1, count + 1):
        bench.its_layer._sorter._osio = FailingOsio(kind, number, error)
        sent = bench.send([10 + number, 50 + number], HEADER)
        bench.loop.run_until(lambda sent=sent: sent.calls > 0)
        wanted = NoSpaceError if error == errno.ENOSPC else SyncFailedError
        assert isinstance(sent.error, wanted), (kind, number)
        assert files(bench) == files(bench, "tmp") == []
    bench.its_layer._sorter._osio = Osio()
    bench.put([2], HEADER)
    assert len(files(bench)) == 1


def test_a_failure_costs_its_message_alone(bench):
    bench.its_layer._sorter._osio = FailingOsio("rename", 2, errno.EIO)
    sent = [bench.send([mailbox], HEADER) for mailbox in (2, 3, 4)]
    bench.loop.run_until(lambda: all(one.calls for one in sent))
    assert sorted(one.error is None for one in sent) == [False, True, True]
    assert len(files(bench)) == 2


def test_a_maildir_that_was_removed_is_made_again(bench):
    bench.put([2], HEADER)
    (path,) = files(bench)
    path.unlink()
    for part in ("new", "cur", "tmp"):
        (path.parents[1] / part).rmdir()
    path.parents[1].rmdir()
    bench.put([2], HEADER)
    assert len(files(bench)) == 1


@pytest.mark.slow
def test_under_load_many_messages_share_the_sync_of_a_directory(bench):
    osio = FailingOsio("directory", 0, errno.EIO)
    bench.its_layer._sorter._osio = osio
    sent = [bench.send([2], HEADER) for _ in range(100)]
    bench.loop.run_until(lambda: all(one.calls for one in sent))
    assert len(files(bench)) == 100
    assert osio.calls < 60


def test_names_differ_between_processes_and_messages(bench):
    for _ in range(3):
        bench.put([2, 3], HEADER)
    names = [path.name for path in files(bench)]
    assert len(set(names)) == 6
    assert all(f"P{os.getpid()}Q" in name and ".hub.example.org,S=" in name for name in names)


def test_nothing_is_readable_by_others(bench):
    bench.put([2], HEADER)
    (path,) = files(bench)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parents[1].stat().st_mode & 0o077 == 0
