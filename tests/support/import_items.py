"""What an import reads, without the reports of how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metad.cli.mail.foreign import Item, Reached, SourceItem


def items_of(source: Iterable[SourceItem]) -> Iterator[Item]:
    """The items; what is reported of the way must never go back or beyond the end."""
    before = 0
    for one in source:
        if isinstance(one, Reached):
            assert before <= one.done <= one.total, one
            before = one.done
        else:
            yield one
