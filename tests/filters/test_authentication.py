"""Authentication-Results: which fields are ours, and those made from rspamd's symbols."""

from __future__ import annotations

import pytest

from metad.filters.authentication import is_ours, results
from metad.filters.results import Symbol


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.org; spf=pass\r\n", b"MX.example.ORG;none\r\n", b" mx.example.org\r\n",
        b"\r\n\tmx.example.org 1; spf=pass\r\n", b' "mx.example.org" ; x\r\n',
        b"(a)(b (c \\) d)) mx.example.org; x\r\n", b' "mx.\\example.org"; x\r\n',
        b" mx.example.org.; x\r\n", b" mx.example.org(x); y\r\n",
        b'(c) "mx.example.org"(d); x\r\n', b"\tmx.example.org\t;x\r\n", b"\r\n MX.example.org\r\n",
        # An unparseable field counts as ours.
        b' "mx.example.org"x; y\r\n', b' mx."example.org"; x\r\n', b' "never ends; x\r\n',
        b" mx.example.org); x\r\n",
        b" (never ends mx.other.example; x\r\n", b" ; x\r\n", b"\r\n", b"",
    ],
)  # fmt: skip
def test_a_field_that_claims_to_be_ours(value: bytes) -> None:
    assert is_ours(value, "mx.example.org")


@pytest.mark.parametrize(
    "value",
    [
        b" other.example; spf=pass\r\n", b" mx.example.org.evil; x\r\n", b" xmx.example.org; x\r\n",
        b" (mx.example.org) other.example; x\r\n", b' "mx.example.org x"; y\r\n',
    ],
)  # fmt: skip
def test_a_field_of_others(value: bytes) -> None:
    assert not is_ours(value, "mx.example.org")


def symbol(*options: str) -> Symbol:
    return Symbol(0.0, options)


@pytest.mark.parametrize(
    ("symbols", "shown"),
    [
        ({}, None),
        ({"BAYES_SPAM": symbol()}, None),
        ({"R_SPF_NA": symbol()}, "spf=none smtp.mailfrom=a@b.example"),
        ({"R_SPF_SOFTFAIL": symbol("~all")}, "spf=softfail smtp.mailfrom=a@b.example"),
        ({"R_DKIM_NA": symbol()}, "dkim=none"),
        ({"R_DKIM_REJECT": symbol("b.example:s=x", "c.example")},
         "dkim=fail header.d=b.example header.s=x; dkim=fail header.d=c.example"),
        ({"R_DKIM_ALLOW": symbol("b.example:s=x"), "R_DKIM_TEMPFAIL": symbol("c.example:s=y")},
         "dkim=pass header.d=b.example header.s=x; dkim=temperror header.d=c.example header.s=y"),
        ({"R_DKIM_ALLOW": symbol("b; spf=pass", "c\r\nd")}, "dkim=pass"),
        ({"DMARC_POLICY_REJECT": symbol("b.example : No valid SPF, No valid DKIM", "reject")},
         "dmarc=fail (p=reject) header.from=b.example"),
        ({"DMARC_POLICY_ALLOW": symbol("b.example", "nonsense")},
         "dmarc=pass header.from=b.example"),
        ({"DMARC_NA": symbol("No From header")}, "dmarc=none"),
        ({"ARC_ALLOW": symbol("x")}, "arc=pass"),
    ],
)  # fmt: skip
def test_symbols_become_results(symbols: dict[str, Symbol], shown: str | None) -> None:
    found = results("mx.example.org", symbols, "a@b.example", "helo.example")
    if shown is None:
        assert found is None
    else:
        assert found == ("Authentication-Results", f"mx.example.org; {shown}")


def test_a_bounce_is_checked_by_its_helo() -> None:
    found = results("mx", {"R_SPF_ALLOW": symbol()}, "", "helo.example")
    assert found == ("Authentication-Results", "mx; spf=pass smtp.helo=helo.example")


def test_an_address_that_could_forge_is_not_copied() -> None:
    found = results("mx", {"R_SPF_ALLOW": symbol()}, '"x; dkim=pass"@b.example', "helo")
    assert found == ("Authentication-Results", "mx; spf=pass")
