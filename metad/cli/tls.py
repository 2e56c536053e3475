"""`metad tls`: the certificates of a hub.

Rules of this file:

* The caller's files are read as the caller, before the command becomes the owner of DATA: those of
  an ACME client belong to root.
* A running hub loads new certificates by itself within seconds: nothing is restarted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, hub_options, json_option
from metad.config.checks import domain
from metad.errors import DataError, UnavailableError
from metad.protocol.address import fold_domain
from metad.store.identity import refuse_newer
from metad.system.osio import Osio
from metad.tls import store as tls_store

SELF_SIGNED_DAYS = 90
OPENSSL_SECONDS = 60


@click.group(name="tls")
def group() -> None:
    """Certificates: install, list, remove, make a self-signed one.

    \b
    Example:
      metad tls self-signed mx1.example.org
    """


@group.command()
@hub_options
@click.option(
    "--cert",
    "certificate",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="The certificate and its chain (PEM).",
)
@click.option(
    "--key",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="The private key (PEM); default: in the file of the certificate.",
)
@click.option(
    "--name", metavar="NAME", help="Name of the certificate in the hub (default: its first domain)."
)
@json_option
def install(
    place: HubLocation, certificate: Path, key: Path | None, name: str | None, as_json: bool
) -> None:
    """Check a certificate and its key, and install them.

    An ACME client calls it after each renewal.

    \b
    Example:
      metad tls install --cert fullchain.pem --key privkey.pem
    """
    chain, private = tls_store.read_pair(certificate, key)
    show(tls_store.install(_writable(place.make()), chain, private, name), as_json)


@group.command("self-signed")
@hub_options
@click.option(
    "--name", metavar="NAME", help="Name of the certificate in the hub (default: the first domain)."
)
@click.argument("domains", nargs=-1)
@json_option
def self_signed(
    place: HubLocation, name: str | None, domains: tuple[str, ...], as_json: bool
) -> None:
    """Make a self-signed certificate, to try TLS.

    It is valid for DOMAINS, or for the hub's own name.  Needs the program openssl.

    \b
    Example:
      metad tls self-signed mx1.example.org
    """
    names = [_domain(one) for one in domains] or [place.config.hostname]
    chain, private = make_self_signed(names)
    show(tls_store.install(_writable(place.make()), chain, private, name), as_json)


@group.command("list")
@hub_options
@json_option
def list_all(place: HubLocation, as_json: bool) -> None:
    """List the certificates with their domains and expiry dates.

    \b
    Example:
      metad tls list
    """
    config = place.config
    place.enter()
    contexts = tls_store.load_contexts(config)
    default = contexts.default if contexts else None
    found = [
        facts(one) | {"default": one.context is default}
        for one in (contexts.certificates if contexts else ())
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        tables.show_table("certificates", found)


@group.command()
@hub_options
@click.argument("name")
def remove(place: HubLocation, name: str) -> None:
    """Remove the certificate NAME.

    \b
    Example:
      metad tls remove mx1.example.org
    """
    config = place.config
    _writable(place.enter())
    tls_store.remove(config, name)


def _writable(data: Path) -> Path:
    """The same directory.  Raises DataError if it is of a newer release."""
    refuse_newer(Osio(), data)
    return data


def facts(certificate: tls_store.Certificate) -> dict[str, Any]:
    return {
        "name": certificate.name,
        "domains": " ".join(certificate.facts.names),
        "expires": f"{certificate.facts.not_after:%Y-%m-%d}",
    }


def show(certificate: tls_store.Certificate, as_json: bool) -> None:
    shown = facts(certificate)
    text = f"installed {shown['name']}: {shown['domains']}, expires {shown['expires']}"
    click.echo(json.dumps(shown) if as_json else text)
    warning = tls_store.expiry_warning(certificate, datetime.now(UTC))
    if warning is not None:
        click.echo(f"metad: warning: {warning}", err=True)


def make_self_signed(names: list[str], days: int = SELF_SIGNED_DAYS) -> tuple[str, str]:
    """(certificate, key) as PEM.  Raises UnavailableError (no openssl) and DataError."""
    program = shutil.which("openssl")
    if program is None:
        raise UnavailableError(
            "openssl not found, which makes the certificate", remedy="apt-get install openssl"
        )
    with tempfile.TemporaryDirectory() as directory:
        chain, key = (Path(directory, part) for part in ("cert", "key"))
        alternatives = ",".join(f"DNS:{name}" for name in names)
        done = subprocess.run(
            [
                program, "req", "-x509", "-nodes", "-newkey", "ec",
                "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", str(days),
                "-subj", f"/CN={names[0][:64]}", "-addext", f"subjectAltName={alternatives}",
                "-keyout", str(key), "-out", str(chain),
            ],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OPENSSL_SECONDS,
            check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(
                f"openssl: {reason}", remedy="metad tls self-signed --help shows what it takes"
            )
        return chain.read_text(), key.read_text()


def _domain(name: str) -> str:
    try:
        prefix = "*." if name.startswith("*.") else ""
        return prefix + domain(fold_domain(name.removeprefix("*.")))
    except ValueError as error:
        raise click.BadParameter(f"{name}: {error}") from None
