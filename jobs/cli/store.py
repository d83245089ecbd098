"""The commands that read a store and its releases, or change which one is current. None of them needs Ray."""

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from indexing.errors import ConfigError, DamagedError
from indexing.release.commit import read_release, release_numbers
from indexing.release.lease import hold_lease
from indexing.release.manifest import Release
from indexing.release.report import lowest_recall
from indexing.release.retention import pin, pinned_numbers, unpin
from indexing.release.signing import load_private_key, load_trusted_keys
from indexing.store import Store as StoreOf
from indexing.store import open_store
from indexing.store.preflight import preflight
from jobs.cli.options import AsJson, ReleaseNumber, Store, TrustedKeys, paths_of, whole_number
from jobs.cli.output import output_of, print_json
from jobs.report.terminal import print_table

OPTIONAL_COLUMNS = ("holds", "problem")
"""Columns of `releases` that are left out where no release has a value."""
Number = Annotated[int, typer.Argument(metavar="N", parser=whole_number, help="The number of the release.")]
To = Annotated[int, typer.Option("--to", metavar="N", parser=whole_number, help="The release to go back to.")]
SigningKey = Annotated[
    str | None, typer.Option("--signing-key", metavar="PEM", help="Sign the new release with this private key.")
]
SignedBy = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-key",
        metavar="PEM",
        help="With --signing-key: an older public key that may have signed the old release.",
    ),
]


def releases(store: Store, as_json: AsJson = False) -> None:
    """List the releases of a store."""
    opened = open_store(store)
    pinned = set(pinned_numbers(opened))
    rows = [describe_number(opened, number, number in pinned) for number in release_numbers(opened)]
    if as_json:
        return print_json(rows)
    if not rows:
        raise ConfigError(f"no release in {opened.url}: run nightly first")
    shown = [name for name in rows[0] if name not in OPTIONAL_COLUMNS or any(row[name] for row in rows)]
    print_table([name.replace("_", " ") for name in shown], [[cell(name, row[name]) for name in shown] for row in rows])
    print_hold(rows[-1]["holds"], opened.url)


def print_hold(numbers: list[int], url: str) -> None:
    """The holds of the current release, and how to lift them."""
    if numbers:
        names = " and ".join(map(str, numbers))
        print(
            f"nightly does not publish again what release {names} was made from; lift the hold: nightcrate resume {url}"
        )


def cell(name: str, value: Any) -> str:
    if value in (None, []):
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if name == "size_bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,}" if name == "num_items" else str(value)


def describe_number(store: StoreOf, number: int, is_pinned: bool) -> dict[str, Any]:
    """As `describe_release`; a release whose file is damaged has a number and a problem."""
    try:
        return describe_release(read_release(store, number), is_pinned)
    except DamagedError as error:
        names = ("number", "created_at", "kind", "num_items", "encoder", "recall_at_10", "size_bytes")
        known = {"number": number, "kind": "damaged", "holds": [], "is_pinned": is_pinned, "problem": str(error)}
        return {**dict.fromkeys(names), **known}


def describe_release(release: Release, is_pinned: bool) -> dict[str, Any]:
    """What `releases` shows of one; `recall_at_10` is that of the collection where it is lowest."""
    recall = lowest_recall(release.validation)
    return {
        "number": release.number,
        "created_at": release.created_at,
        "kind": release.kind,
        "num_items": release.num_items,
        "encoder": release.encoder.digest[:12] if release.encoder else None,
        "recall_at_10": None if recall is None else round(recall, 4),
        "size_bytes": release.size_bytes,
        "holds": numbers_held(release),
        "is_pinned": is_pinned,
        "problem": None,
    }


def numbers_held(release: Release) -> list[int]:
    return [hold.release for hold in release.holds or ()]


def verify(
    context: typer.Context,
    store: Store,
    release: ReleaseNumber = None,
    trusted_key: TrustedKeys = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a release back, check every digest, load every shard."""
    from indexing.release.verify import verify_release

    opened = open_store(store)
    found = read_release(opened, release, load_trusted_keys(paths_of(trusted_key)))
    with output_of(context).progress().stage("verify", found.size_bytes, "bytes") as bar:
        report = verify_release(opened, found, on_blob=lambda blob: bar.advance(blob.size_bytes))
    if as_json:
        return print_json({"release": found.number, **asdict(report)})
    print(
        f"release {found.number} is valid: {report.num_blobs} blobs, {report.size_bytes / 1e6:,.1f} MB, "
        f"{report.num_items:,} items"
    )


def rollback(
    context: typer.Context,
    store: Store,
    to: To,
    signing_key: SigningKey = None,
    trusted_key: SignedBy = None,
    as_json: AsJson = False,
) -> None:
    """Verify an old release in full, then publish its content as the next release.

    nightly does not publish again what was rolled back from, until resume lifts
    this hold.
    """
    from indexing.release.rollback import roll_back

    opened = open_store(store)
    target = read_release(opened, to)
    key, older = load_keys(signing_key, trusted_key)
    preflight(opened)
    progress = output_of(context).progress()
    with (
        hold_lease(opened, owner_name("rollback"), wait=False) as lease,
        progress.stage("verify", target.size_bytes, "bytes") as bar,
    ):
        release = roll_back(
            opened,
            to,
            lambda blob: bar.advance(blob.size_bytes),
            check=lease.check,
            signing_key=key,
            trusted_keys=older,
        )
    if as_json:
        record = {"release": release.number, "rolled_back_to": to, "holds": numbers_held(release)}
        return print_json({**record, "store": opened.url})
    print(f"release {release.number} is current and serves what release {to} did: {opened.url}")
    print_hold(numbers_held(release), opened.url)


def resume(store: Store, signing_key: SigningKey = None, trusted_key: SignedBy = None, as_json: AsJson = False) -> None:
    """Let nightly publish again what was rolled back from.

    Publishes the current release as the next one, without what it holds back.
    """
    from indexing.release.rollback import resume as lift_hold

    opened = open_store(store)
    key, older = load_keys(signing_key, trusted_key)
    preflight(opened)
    with hold_lease(opened, owner_name("resume"), wait=False) as lease:
        release = lift_hold(opened, check=lease.check, signing_key=key, trusted_keys=older)
    if as_json:
        return print_json({"release": release.number, "store": opened.url})
    print(f"release {release.number} is current and has no hold: {opened.url}")


def load_keys(
    signing_key: str | None, trusted_key: list[str] | None
) -> tuple[Ed25519PrivateKey | None, Sequence[Ed25519PublicKey]]:
    """Of --signing-key and --trusted-key. Raises ConfigError for the second without the first."""
    key = load_private_key(Path(signing_key)) if signing_key else None
    older = load_trusted_keys(paths_of(trusted_key)) or ()
    if older and key is None:
        raise ConfigError("--trusted-key: expected --signing-key with it, got none")
    return key, older


def pin_release(store: Store, number: Number, as_json: AsJson = False) -> None:
    """Keep a release from being pruned."""
    pin(open_store(store), number)
    if as_json:
        return print_json({"release": number, "is_pinned": True})
    print(f"release {number} is pinned: prune keeps all of it")


def unpin_release(store: Store, number: Number, as_json: AsJson = False) -> None:
    """Let a pinned release be pruned again."""
    unpin(open_store(store), number)
    if as_json:
        return print_json({"release": number, "is_pinned": False})
    print(f"release {number} is no longer pinned")


def owner_name(command: str) -> str:
    return f"{command}, process {os.getpid()} on {socket.gethostname()}"
