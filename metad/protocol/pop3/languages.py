"""The texts of POP3's answers, in each language (RFC 6856 section 3).

Rules of this file:

* The English text is the key; a text without a translation is sent in English.
* A response code ([AUTH], [IN-USE] …) comes first in every language and is never translated:
  programs read it.
* English is ASCII.  Others are UTF-8, and are sent only to a client that requested one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_CODE: Final = re.compile(r"(\[[A-Z/-]+\] )?(.*)", re.DOTALL)
# RFC 5646 section 2.1, only to recognise a tag.
_TAG: Final = re.compile(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")


@dataclass(frozen=True, slots=True)
class Language:
    """`summary` and `octets` are whole answers to format; `texts`: English -> this language."""

    tag: str
    name: str
    changed: str
    summary: bytes
    octets: bytes
    texts: Mapping[str, str]

    def say(self, text: str) -> str:
        """`text` in this language, with its response code."""
        if not self.texts:
            return text
        code, words = _CODE.fullmatch(text).groups("")  # type: ignore[union-attr]
        return code + self.texts.get(words, words)


ENGLISH: Final = Language(
    "en",
    "English",
    "Language changed",
    b"+OK %d messages (%d octets)\r\n",
    b"+OK %d octets\r\n",
    {},
)

SWEDISH: Final = Language(
    "sv",
    "Svenska",
    "Språket är bytt",
    b"+OK %d meddelanden (%d oktetter)\r\n",
    b"+OK %d oktetter\r\n",
    {
        # sessions
        "metad signing off": "metad avslutar",
        "send the password": "skicka lösenordet",
        "begin TLS negotiation": "börja TLS-förhandlingen",
        "UTF-8 enabled": "UTF-8 är påslaget",
        "language listing follows": "språklistan följer",
        "capability list follows": "förmågorna följer",
        "unknown language": "okänt språk",
        "message deleted": "meddelandet är raderat",
        # refusals
        "new mail is not ready yet, try again": "ny post är inte klar än, försök igen",
        "authentication failed": "inloggningen misslyckades",
        "plaintext authentication is refused on this connection": (
            "lösenord i klartext tas inte emot på denna förbindelse"
        ),
        "USER comes first": "USER kommer först",
        "unknown authentication mechanism": "okänd inloggningsmekanism",
        "no such message": "det meddelandet finns inte",
        "that message is deleted": "det meddelandet är raderat",
        "some deleted messages not removed": "vissa raderade meddelanden är inte borttagna",
        "unknown command": "okänt kommando",
        "command not valid in this state": "kommandot är inte tillåtet i detta läge",
        "TLS is not offered here": "TLS erbjuds inte här",
        "TLS is active already": "TLS är redan på",
        "STLS comes before UTF8": "STLS kommer före UTF8",
        "data before the TLS handshake": "data före TLS-handskakningen",
        # arguments
        "this command takes no argument": "kommandot tar inget argument",
        "a message number is needed": "ett meddelandenummer behövs",
        "TOP needs a message number and a number of lines": (
            "TOP behöver ett meddelandenummer och ett antal rader"
        ),
        "a user name is needed": "ett användarnamn behövs",
        "a password is needed": "ett lösenord behövs",
        "not a language tag": "det är ingen språkkod",
        # lines and limits
        "a line with a NUL or bare CR": "en rad med NUL eller ensamt CR",
        "line too long": "raden är för lång",
        "too many errors": "för många fel",
        "too many commands before login": "för många kommandon före inloggning",
        # SASL
        "authentication cancelled": "inloggningen avbröts",
        "the response is not base64": "svaret är inte base64",
        "not a PLAIN message": "detta är inget PLAIN-meddelande",
        "not a SCRAM message": "detta är inget SCRAM-meddelande",
        "the user name is not UTF-8": "användarnamnet är inte UTF-8",
        "the user name has control characters": "användarnamnet har styrtecken",
        "not a user name": "detta är inget användarnamn",
        "one user cannot act for another": "en användare kan inte handla för en annan",
        "channel binding is not supported": "kanalbindning stöds inte",
        "the response answers another challenge": "detta är svar på en annan utmaning",
        "not base64": "inte base64",
        # from the hub
        "temporary failure": "tillfälligt fel",
        "insufficient storage": "otillräckligt utrymme",
        "could not make the deletions durable": "raderingarna kunde inte göras varaktiga",
        "service shutting down": "tjänsten stängs",
        "session timed out": "sessionens tid har gått ut",
        "mailbox is open in another session": "brevlådan är öppen i en annan session",
        "this message is damaged in the store": "detta meddelande är skadat i lagret",
        "minimum time between logins has not passed": (
            "minsta tiden mellan inloggningar har inte gått"
        ),
        "too many connections": "för många förbindelser",
    },
)

LANGUAGES: Final = {language.tag: language for language in (ENGLISH, SWEDISH)}


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def find(tag: str) -> Language | None:
    """The language of a tag, by lookup (RFC 4647 section 3.4): sv-SE is sv; "*" the default."""
    if tag == "*":
        return ENGLISH
    parts = tag.lower().split("-")
    while parts:
        found = LANGUAGES.get("-".join(parts))
        if found is not None:
            return found
        parts.pop()
    return None


def listing() -> bytes:
    """The lines of the answer to LANG without an argument, with the final dot line."""
    lines = [f"{language.tag} {language.name}\r\n" for language in LANGUAGES.values()]
    return "".join([*lines, ".\r\n"]).encode()
