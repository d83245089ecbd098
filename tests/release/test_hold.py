"""A rollback places a hold: what it blocks, and how that is lifted."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.tiny_release import ReleaseMaker, make_release, unit_vectors

from indexing.errors import ConfigError, DamagedError, PublishConflict, UntrustedError
from indexing.release.commit import commit_release, read_release, release_numbers
from indexing.release.hold import find_hold, hold_of
from indexing.release.manifest import Release, parse_release, release_to_bytes
from indexing.release.rollback import resume, roll_back
from indexing.release.signing import sign_release
from indexing.store import Store, open_store
from indexing.store.blobs import blob_key
from jobs.__main__ import main

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Releases 1, 2 and 3 of the catalogues a, b and c."""
    store, maker = open_store(f"file://{tmp_path}/store"), ReleaseMaker(tmp_path)
    for seed, name in enumerate("abc"):
        tracks = maker.collection("tracks", ["x", "y"], unit_vectors(2, seed=seed))
        maker.publish(store, tracks, catalogue_fingerprint=name)
    return store


def held(release: Release) -> list[int]:
    return [hold.release for hold in release.holds or ()]


def test_a_rollback_holds_what_was_rolled_back_from(store: Store) -> None:
    third, release = read_release(store, 3), roll_back(store, 1)
    assert held(release) == [3]
    assert find_hold(release, hold_of(third)) == hold_of(third)
    assert parse_release(release_to_bytes(release)) == release


@pytest.mark.parametrize("change", ["catalogue_fingerprint", "config_fingerprint", "encoder"])
def test_another_catalogue_configuration_or_encoder_is_not_held(store: Store, change: str) -> None:
    hold, release = hold_of(read_release(store, 3)), roll_back(store, 1)
    assert find_hold(release, replace(hold, **{change: "another"})) is None


def test_two_rollbacks_in_a_row_hold_both(store: Store) -> None:
    roll_back(store, 2)
    assert held(roll_back(store, 1)) == [4, 3]


def test_a_rollback_forward_holds_what_it_leaves_and_not_what_it_goes_to(store: Store) -> None:
    roll_back(store, 1)
    assert held(roll_back(store, 3)) == [4]
    assert held(roll_back(store, 1)) == [5]


def test_a_rollback_to_what_was_made_from_the_same_places_no_hold(store: Store) -> None:
    commit_release(store, make_release(4, *read_release(store).collections, catalogue_fingerprint="c"))
    release = roll_back(store, 3)
    assert release.holds is None
    assert b'"holds"' not in release_to_bytes(release)


def test_a_damaged_release_leaves_its_predecessor_held(store: Store) -> None:
    store.put(f"releases/{3:020}.json", b"{}")
    assert held(roll_back(store, 1)) == [2]


def test_an_empty_list_of_holds_is_refused(store: Store) -> None:
    with pytest.raises(DamagedError, match="holds: expected at least one, or no such field"):
        release_to_bytes(replace(read_release(store), holds=(), digest=None))


def test_resume_publishes_the_same_without_the_hold(store: Store) -> None:
    held_back, release = roll_back(store, 1), resume(store)
    assert (release.number, release.parent, release.kind, release.holds) == (5, 4, "rollback", None)
    assert release.collections == held_back.collections
    assert read_release(store) == release


def test_resume_where_nothing_is_held_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="release 3 has no hold to lift"):
        resume(store)


def test_resume_publishes_nothing_without_its_lease_or_with_a_blob_missing(store: Store) -> None:
    def lose() -> None:
        raise PublishConflict("lost")

    release = roll_back(store, 1)
    with pytest.raises(PublishConflict, match="lost"):
        resume(store, check=lose)
    store.delete(blob_key(release.collections[0].shards[0].index.sha256))
    with pytest.raises(DamagedError, match="1 are missing or altered"):
        resume(store)
    assert release_numbers(store) == [1, 2, 3, 4]


@pytest.mark.case(26)
def test_resume_signs_only_what_a_trusted_key_has_signed(store: Store) -> None:
    holds = (hold_of(read_release(store, 1)),)
    commit_release(store, sign_release(replace(read_release(store), number=4, parent=3, holds=holds), KEY))
    with pytest.raises(ConfigError, match="--signing-key"):
        resume(store)
    with pytest.raises(UntrustedError):
        resume(store, signing_key=OTHER)
    release = resume(store, signing_key=OTHER, trusted_keys=[KEY.public_key()])
    assert read_release(store, 5, [OTHER.public_key()]) == release


def test_rollback_and_releases_say_what_is_held_and_resume_lifts_it(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    says = f"not publish again what release 3 was made from; lift the hold: nightcrate resume {store.url}\n"
    for command in (["rollback", store.url, "--to", "1", "-q"], ["releases", store.url]):
        assert main(command) == 0
        assert capsys.readouterr().out.endswith(says)
    assert main(["resume", store.url]) == 0
    assert capsys.readouterr().out == f"release 5 is current and has no hold: {store.url}\n"
    main(["releases", store.url])
    assert "resume" not in capsys.readouterr().out
    assert main(["resume", store.url]) == 2
