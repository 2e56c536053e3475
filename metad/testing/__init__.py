"""A hub for the tests of other programs: a real one, on free ports, with any recipient.

    from metad.testing import Hub

    with Hub() as hub:
        send_mail(*hub.smtp, to="ann@example.test")
        (message,) = hub.wait_for("ann@example.test")
        assert message["Subject"] == "hello"

pytest has it as the fixture `metad_hub`.  docs/testing-with-metad.md is the reference.
"""

from metad.testing.hub import Address, Hub, HubError

__all__ = ["Address", "Hub", "HubError"]
