"""One damaged release file, the newest, stops neither readers nor recovery."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.history import DAY_S
from support.tiny_release import ReleaseMaker, bare_release, publish_bare, unit_vectors

from indexing import LiveRelease, open_release
from indexing.errors import ConfigError, DamagedError, PublishConflict, UntrustedError
from indexing.release.commit import commit_release, newest_valid_release, read_release, release_numbers
from indexing.release.manifest import Release, parse_release, release_key, release_to_bytes
from indexing.release.retention import plan_prune
from indexing.release.rollback import roll_back
from indexing.release.seal import seal
from indexing.release.signing import sign_release
from indexing.store import Store, open_store
from jobs.__main__ import main

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))
IDS = ["a", "b", "c", "d"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Releases 1 and 2, valid, and 3, which has one altered byte."""
    store = open_store(f"file://{tmp_path}/store")
    for seed in (1, 2, 3):
        publish(store, tmp_path, seed)
    damage(store, 3)
    return store


def publish(store: Store, folder: Path, seed: int) -> Release:
    maker = ReleaseMaker(folder / f"seed-{seed}")
    maker.folder.mkdir()
    return maker.publish(store, maker.collection("tracks", IDS, unit_vectors(4, seed=seed)))


def damage(store: Store, number: int) -> None:
    """Another valid name, so that only the digest reveals it."""
    store.put(release_key(number), store.get(release_key(number)).replace(b'"name":"tiny"', b'"name":"tinz"'))


def test_a_new_release_file_has_its_own_digest_and_an_older_file_none() -> None:
    older, sealed = bare_release(1), seal(bare_release(1))
    assert b"digest" not in release_to_bytes(older)
    assert parse_release(release_to_bytes(sealed)) == sealed
    assert seal(sealed) == sealed
    assert sign_release(older, KEY).digest == sealed.digest


@pytest.mark.case(25)
@pytest.mark.parametrize("is_signed", [False, True])
def test_every_flipped_bit_of_a_release_file_is_found(tmp_path: Path, is_signed: bool) -> None:
    release = bare_release(1)
    data = publish_bare(open_store(f"file://{tmp_path}"), sign_release(release, KEY) if is_signed else release)
    end = data.index(b'"signature"') if is_signed else len(data)  # what follows, only a key can check
    for position in range(8 * end):
        place, bit = divmod(position, 8)
        with pytest.raises(DamagedError):
            parse_release(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])


@pytest.mark.case(25)
def test_a_reader_starts_on_the_newest_valid_release_and_names_the_damaged_one(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"cache_dir": tmp_path / "cache"}
    assert open_release(store.url, **options).release.number == 2
    assert LiveRelease(store.url, **options).release.number == 2
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "00003.json: digest: expected" in warnings[0].message
    with pytest.raises(DamagedError, match=r"00003\.json"):
        open_release(store.url, 3, **options)


@pytest.mark.case(25)
def test_a_live_release_serves_a_valid_release_before_a_damaged_one(store: Store, tmp_path: Path) -> None:
    live = LiveRelease(store.url, cache_dir=tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"00003\.json"):
            live.refresh()
    roll_back(store, 1)
    publish(store, tmp_path, 5)
    damage(store, 5)
    assert live.refresh()
    assert live.release.number == 4


def test_where_no_release_is_valid_the_newest_is_named(store: Store) -> None:
    for number in (1, 2):
        damage(store, number)
    with pytest.raises(DamagedError, match=r"00003\.json"):
        newest_valid_release(store)


@pytest.mark.case(25)
def test_a_rollback_skips_a_damaged_release(store: Store) -> None:
    assert main(["rollback", store.url, "--to", "1"]) == 0
    release = read_release(store)
    assert (release.number, release.parent, release.kind) == (4, 3, "rollback")
    assert release.collections == read_release(store, 1).collections


def test_a_rollback_to_a_damaged_release_is_refused(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 4)
    with pytest.raises(DamagedError, match=r"00003\.json"):
        roll_back(store, 3)
    assert release_numbers(store) == [1, 2, 3, 4]


def test_a_commit_on_a_damaged_release_is_fine_and_one_before_it_a_conflict(store: Store) -> None:
    collections = read_release(store, 2).collections
    with pytest.raises(PublishConflict, match="release 3 is, and its file is damaged"):
        commit_release(store, bare_release(3))
    assert commit_release(store, bare_release(4, collections=collections)) == read_release(store)


@pytest.mark.case(25)
def test_releases_shows_a_damaged_one_with_the_reason(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases", store.url, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["number"], row["kind"], row["num_items"]) for row in rows] == [
        (1, "build", 4),
        (2, "build", 4),
        (3, "damaged", None),
    ]
    assert [row["problem"] is None for row in rows] == [True, True, False]
    assert rows[0].keys() == rows[2].keys()
    assert main(["releases", store.url]) == 0
    assert "damaged" in (table := capsys.readouterr().out)
    assert "00003.json: digest: expected" in table


def test_a_prune_deletes_nothing_and_names_the_damaged_file(store: Store) -> None:
    with pytest.raises(DamagedError, match=r"00003\.json: digest"):
        plan_prune(store, keep_last=1, min_age_s=DAY_S)


@pytest.fixture
def signed_store(tmp_path: Path) -> Store:
    """Release 1 without signature, 2 signed by OTHER, 3 and 4 by KEY; all of the same content."""
    store, maker = open_store(f"file://{tmp_path}/store"), ReleaseMaker(tmp_path)
    tracks = maker.collection("tracks", IDS, unit_vectors(4))
    maker.publish(store, tracks)
    for number, key in ((2, OTHER), (3, KEY), (4, KEY)):
        commit_release(store, sign_release(bare_release(number, collections=(tracks,)), key))
    return store


@pytest.mark.case(26)
def test_a_rollback_signs_only_what_a_trusted_key_has_signed(signed_store: Store) -> None:
    for number in (1, 2):
        with pytest.raises(UntrustedError):
            roll_back(signed_store, number, signing_key=KEY)
    assert release_numbers(signed_store) == [1, 2, 3, 4]
    roll_back(signed_store, 2, signing_key=KEY, trusted_keys=[OTHER.public_key()])
    roll_back(signed_store, 3, signing_key=KEY)
    assert read_release(signed_store, None, [KEY.public_key()]).number == 6


def test_the_command_takes_older_keys_for_the_target_and_only_with_a_signing_key(
    signed_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "older.pem"
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    to_second = ["rollback", signed_store.url, "--to", "2"]
    assert main([*to_second, "--trusted-key", str(public)]) == 2
    assert "expected --signing-key with it" in capsys.readouterr().err
    assert main([*to_second, "--signing-key", str(private)]) == 3
    assert main([*to_second, "--signing-key", str(private), "--trusted-key", str(public)]) == 0
    assert read_release(signed_store, None, [KEY.public_key()]).number == 5


@pytest.mark.case(26)
def test_a_rollback_without_the_key_is_refused_where_readers_expect_a_signature(signed_store: Store) -> None:
    signature = read_release(signed_store).signature
    assert signature is not None
    with pytest.raises(ConfigError, match=f"signed by the key {signature.key_id}.*--signing-key"):
        roll_back(signed_store, 3)
    assert release_numbers(signed_store) == [1, 2, 3, 4]
