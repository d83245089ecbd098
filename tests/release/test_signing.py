"""A reader with a key accepts only releases that are as the key's owner signed them."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.tiny_release import ReleaseMaker, bare_release, make_release, publish_bare, send_files, unit_vectors

from indexing import LiveRelease, open_release
from indexing.errors import ConfigError, DamagedError, UntrustedError
from indexing.release.codec import encode_canonical
from indexing.release.commit import commit_release, newest_valid_release, read_release
from indexing.release.manifest import (
    MAX_RELEASE_BYTES,
    Release,
    Signature,
    parse_release,
    release_key,
    release_to_bytes,
)
from indexing.release.seal import seal
from indexing.release.signing import check_signed_bytes, key_id, load_private_key, load_public_key, sign_release
from indexing.store import open_store

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    maker = ReleaseMaker(tmp_path)
    return make_release(1, maker.collection("tracks", [f"t{i}" for i in range(20)], unit_vectors(20)))


def write_public(key: Ed25519PrivateKey, path: Path) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_a_signature_survives_the_file_and_is_deterministic(release: Release) -> None:
    signed = parse_release(release_to_bytes(sign_release(release, KEY)))
    check_signed_bytes(encode_canonical(signed), [KEY.public_key()])
    assert signed == sign_release(release, KEY)
    assert replace(signed, signature=None) == seal(release)


def test_an_unsigned_release_file_says_nothing_of_signatures(release: Release) -> None:
    assert b"signature" not in release_to_bytes(release)


@pytest.mark.case(12)
def test_unsigned_altered_and_foreign_releases_are_refused(release: Release) -> None:
    signed = sign_release(release, KEY)
    assert signed.signature is not None
    foreign_value = sign_release(release, OTHER).signature
    assert foreign_value is not None
    for wrong in (
        release,
        sign_release(release, OTHER),
        replace(signed, number=2, parent=1),
        replace(signed, writer_id="another"),
        replace(signed, signature=replace(signed.signature, ed25519=foreign_value.ed25519)),
        replace(signed, signature=replace(signed.signature, ed25519="zz")),
        replace(signed, signature=replace(signed.signature, ed25519="")),
    ):
        with pytest.raises(DamagedError, match="sign"):
            check_signed_bytes(encode_canonical(wrong), [KEY.public_key()])


def test_during_a_change_of_keys_readers_trust_both(release: Release) -> None:
    keys = [KEY.public_key(), OTHER.public_key()]
    for key in (KEY, OTHER):
        check_signed_bytes(encode_canonical(sign_release(release, key)), keys)


def test_open_release_with_a_key_refuses_what_it_did_not_sign(tmp_path: Path) -> None:
    store, maker = open_store(f"file://{tmp_path}/store"), ReleaseMaker(tmp_path)
    tracks = maker.collection("tracks", [f"t{i}" for i in range(20)], unit_vectors(20))
    send_files(store, maker.files)
    commit_release(store, sign_release(make_release(1, tracks), KEY))
    options = {"cache_dir": tmp_path / "cache"}
    trusted, foreign = write_public(KEY, tmp_path / "a.pem"), write_public(OTHER, tmp_path / "b.pem")
    assert open_release(store.url, trusted_keys=[trusted], **options).release == read_release(store)
    with pytest.raises(DamagedError, match="signed by"):
        open_release(store.url, trusted_keys=[foreign], **options)
    commit_release(store, make_release(2, tracks))
    with pytest.raises(UntrustedError, match="unsigned"):
        open_release(store.url, 2, trusted_keys=[trusted, foreign], **options)


def test_a_reader_with_a_key_skips_a_newer_release_without_signature_and_logs_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"file://{tmp_path}/store")
    publish_bare(store, sign_release(bare_release(1), KEY))
    publish_bare(store, bare_release(2))
    publish_bare(store, sign_release(bare_release(3), OTHER))
    assert newest_valid_release(store, [KEY.public_key()]).number == 1
    lines = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [("unsigned" in line.message, "the key" in line.message) for line in lines] == [(False, True), (True, False)]
    assert newest_valid_release(store).number == 3


def test_where_no_key_fits_any_release_the_newest_is_named(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    for number in (1, 2):
        publish_bare(store, sign_release(bare_release(number), KEY))
    with pytest.raises(UntrustedError, match=r"00002\.json: expected it signed by"):
        newest_valid_release(store, [OTHER.public_key()])


def test_an_empty_list_of_keys_is_an_error_and_not_trust_in_everybody(tmp_path: Path, release: Release) -> None:
    store = open_store(f"file://{tmp_path}/store")
    publish_bare(store, bare_release(1))
    for refused in (
        lambda: open_release(store.url, trusted_keys=[]),
        lambda: LiveRelease(store.url, trusted_keys=[]),
        lambda: check_signed_bytes(encode_canonical(sign_release(release, KEY)), []),
    ):
        with pytest.raises(ConfigError, match="trusted_keys: expected at least one public key"):
            refused()


def test_a_signature_is_looked_at_before_the_rest_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"file://{tmp_path}/store")
    publish_bare(store, sign_release(bare_release(1), KEY))
    parsed: list[bytes] = []
    monkeypatch.setattr(
        "indexing.release.commit.parse_release", lambda data: parsed.append(data) or parse_release(data)
    )
    with pytest.raises(UntrustedError):
        read_release(store, 1, [OTHER.public_key()])
    assert not parsed
    read_release(store, 1, [KEY.public_key()])
    assert len(parsed) == 1


@pytest.mark.case(12)
@pytest.mark.parametrize("is_signed", [False, True])
def test_a_file_that_no_trusted_key_has_signed_costs_no_time_whatever_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_signed: bool
) -> None:
    """Parsing these 32 MiB of names takes some ten seconds and a gigabyte."""
    store = open_store(f"file://{tmp_path}/store")
    names = b",".join(b'"%07d":1' % number for number in range((MAX_RELEASE_BYTES - 400) // 12))
    field = release_to_bytes(sign_release(bare_release(1), KEY)).partition(b',"signature":')[2].partition(b"}")[0]
    store.put(release_key(1), b"{" + names + (b',"signature":' + field + b"}" if is_signed else b"") + b"}")
    monkeypatch.setattr("json.loads", None)
    with pytest.raises(DamagedError, match="not what its publisher signed" if is_signed else "got it unsigned"):
        read_release(store, 1, [KEY.public_key()])


@pytest.mark.case(12)
def test_a_signature_that_is_not_in_its_place_is_refused(tmp_path: Path) -> None:
    """Without it these bytes are what was signed; with it the release has other figures and no signature."""
    bare = replace(bare_release(1), digest=None, validation={"tracks": {"recall": 1}})  # as an older version signs it
    signature = Signature(key_id=key_id(KEY.public_key()), ed25519=KEY.sign(encode_canonical(bare)).hex())
    data = release_to_bytes(replace(bare, signature=signature))
    check_signed_bytes(data, [KEY.public_key()])
    before, name, rest = data.partition(b',"signature":')
    value, end, after = rest.partition(b"}")
    moved = (before + after).replace(b'{"recall":1}', b'{"recall":1' + name + value + end + b"}")
    store = open_store(f"file://{tmp_path}/store")
    store.put(release_key(1), moved)
    with pytest.raises(DamagedError, match="its signature is not where a publisher writes it"):
        read_release(store, 1, [KEY.public_key()])


def test_a_file_without_such_a_key_is_named(tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", write_public(KEY, tmp_path / "public.pem")
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert load_private_key(private).public_key() == load_public_key(public)
    rsa = tmp_path / "rsa.pem"
    rsa.write_bytes(generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for load, path in (
        (load_private_key, public),
        (load_public_key, private),
        (load_private_key, rsa),
        (load_private_key, tmp_path / "none.pem"),
    ):
        with pytest.raises(ConfigError, match=path.name):
            load(path)
