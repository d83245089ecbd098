"""A disk or quota that is full stops a night before its commit; with space it resumes."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.conftest import GetNights
from faults.kills import check_whole
from faults.nights import Nights, content, expire_lease, run
from flow.worlds import ROOT

from indexing.store import open_store

pytestmark = [pytest.mark.case(8), pytest.mark.timeout(600)]


@pytest.fixture
def nights(get_nights: GetNights) -> Nights:
    return get_nights("vectors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB: less than a release or what leads to it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_store_ends_a_night_with_exit_6_and_with_space_it_resumes(
    nights: Nights, tmp_path: Path, small_disk: Path
) -> None:
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    world = world.changed(store=f"file://{small_disk}/store")
    errors = run(world, expected=6)
    assert "No space left on device" in errors
    assert world.releases() == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    expire_lease(open_store(world.store_url))  # releasing it takes space too
    run(world)
    (release,) = world.releases()
    check_whole(open_store(world.store_url))
    whole, after_first = ({each.name: each for each in one.collections} for one in (release, nights.second))
    assert {name: each.num_items for name, each in whole.items()} == {
        name: each.num_items for name, each in after_first.items()
    }
    assert whole["tracks"] == after_first["tracks"]  # that one was built from scratch in both


def test_a_full_workspace_ends_a_night_with_exit_6_and_with_space_it_resumes(
    nights: Nights, tmp_path: Path, small_disk: Path
) -> None:
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    world = world.changed(workspace=f"file://{small_disk}/workspace")
    errors = run(world, expected=6)
    assert "No space left on device" in errors
    assert [release.number for release in world.releases()] == [1]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run(world)
    assert content(world.releases()[-1]) == content(nights.second)


LIMITED = """
import resource, sys
from pathlib import Path
from indexing.errors import StoreUnavailable
from indexing.release.commit import upload_blobs
from indexing.release.manifest import Blob
from indexing.store import open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    path = Path(sys.argv[3])
    blob = Blob(sha256=sys.argv[2], size_bytes=path.stat().st_size)
    upload_blobs(open_store(sys.argv[1]), [blob], lambda blob: path)
except StoreUnavailable as error:
    sys.exit(str(error))
"""


def test_a_quota_stops_an_upload_and_leaves_no_blob(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    sha256 = hashlib.sha256(bytes(100_000)).hexdigest()
    url = f"file://{tmp_path}/store"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, url, sha256, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert [info.key for info in open_store(url).list()] == []
    assert open_store(url).list_uploads() == ()
