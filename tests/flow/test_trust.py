"""What a night carries over from the previous release, and signs: only what is valid and signed by a trusted key."""

import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flow.worlds import IDS, World, vector_world, write_vectors

from indexing import open_release
from indexing.errors import ConfigError
from indexing.release.commit import read_release
from indexing.release.manifest import Release, release_key
from indexing.store import open_store

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All items but ten are published, unsigned; the catalogue has all of them now. There are keys `a` and `b`."""
    world = vector_world(tmp_path_factory.mktemp("trust") / "world")
    write_vectors(world.folder, len(IDS) - 10)
    world.run()
    write_vectors(world.folder, len(IDS))
    for number, name in enumerate("ab"):
        key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        (world.folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (world.folder / f"{name}.public.pem").write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    return world


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    return first_world.copied(tmp_path / "world")


def signing(world: World, key: str, *trusted: str) -> World:
    paths = [f"{world.folder}/{name}.public.pem" for name in trusted]
    return world.changed(publish={"signing_key": f"{world.folder}/{key}.pem", "trusted_keys": paths})


def is_carried_over(release: Release) -> bool:
    return any(shard.deltas for collection in release.collections for shard in collection.shards)


def test_a_night_that_follows_a_release_of_its_own_line_carries_it_over(world: World) -> None:
    assert is_carried_over(world.run().release)


@pytest.mark.case(26)
def test_a_night_that_signs_carries_nothing_over_from_an_unsigned_release_and_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        release = signing(world, "a").run().release
    assert "got it unsigned; nothing of it is carried over" in caplog.text
    assert (release.number, release.parent, is_carried_over(release)) == (2, 1, False)
    opened = open_release(world.store_url, trusted_keys=[world.folder / "a.public.pem"])
    assert opened.release == release


@pytest.mark.case(26)
def test_a_change_of_keys_carries_over_what_the_older_key_has_signed(world: World) -> None:
    write_vectors(world.folder, len(IDS) - 10)
    signing(world, "a").run("publish", "publish.always=true")
    write_vectors(world.folder, len(IDS))
    changed = world.copied(world.folder.parent / "stranger")
    assert is_carried_over(signing(world, "b", "a").run().release)
    assert not is_carried_over(signing(changed, "b").run().release)


@pytest.mark.case(26)
def test_a_night_without_the_key_is_refused_where_readers_expect_a_signature(world: World) -> None:
    signature = signing(world, "a").run().release.signature
    assert signature is not None
    with pytest.raises(ConfigError, match=rf"signed by the key {signature.key_id}.*publish\.signing_key"):
        world.run()
    assert [release.number for release in world.releases()] == [1, 2]


def test_trusted_keys_without_a_signing_key_are_an_error(world: World) -> None:
    keys = {"trusted_keys": [f"{world.folder}/a.public.pem"]}
    with pytest.raises(ConfigError, match=r"publish\.trusted_keys: expected publish\.signing_key with them"):
        world.changed(publish=keys).run()


@pytest.mark.case(25)
def test_a_night_skips_a_damaged_release_and_builds_everything(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Also where nothing has changed since: what cannot be read serves nobody."""
    store = open_store(world.store_url)
    write_vectors(world.folder, len(IDS) - 10)
    store.put(release_key(1), store.get(release_key(1)).replace(b'"vectors"', b'"vectorz"'))
    release = world.run().release
    assert (release.number, release.parent, is_carried_over(release)) == (2, 1, False)
    assert "00001.json: digest: expected" in caplog.text
    assert read_release(store) == release
