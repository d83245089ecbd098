"""Nights, prunes, pins, rollbacks, resumes and readers at once in a simulated world, and what holds in any order."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.simulated_releases import BLOBS, CONTENTS, check_hold, release_of, verify_bytes
from support.simulated_store import Observer, SimulatedStore
from support.simulation import InThisThread, Process, Task, Violation, World

from indexing.errors import ConfigError, DamagedError, PublishConflict, StoreUnavailable
from indexing.release import retention
from indexing.release.commit import YOUNG_S, publish_release, read_release, release_numbers, upload_blobs
from indexing.release.hold import find_hold, hold_of
from indexing.release.lease import TTL_S, Lease, hold_lease
from indexing.release.manifest import Release, parse_release, release_number, release_to_bytes
from indexing.release.retention import apply_prune, pin, plan_prune, unpin
from indexing.release.rollback import resume, roll_back
from indexing.store import Store
from indexing.store.blobs import Blob, blob_key, is_blob_key
from indexing.store.cache import download_verified

DAY_S = 86_400.0
DELAYS_S = (0.0, 20.0, 60.0, 400.0, 10_000.0)


@dataclass(eq=False)
class Truth(Observer):
    """What has happened, known to no process; breaks off at the first broken promise."""

    world: World
    keep_last: int
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    committed: dict[int, bytes] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    """Releases that must not lose a blob any more, as long as they are protected."""
    pinned: set[int] = field(default_factory=set)
    lease_holders: dict[str, Process] = field(default_factory=dict)
    """By the key of the lease file: who created it."""
    late: set[str] = field(default_factory=set)
    """Keys that were deleted by a DELETE that arrived when the prune's lease had expired: not promised."""

    def before_write(self, key: str, data: bytes) -> None:
        self.late.discard(key)
        if key.startswith("leases/") and key not in self.objects:
            self.lease_holders[key] = self.world.process
            self.world.note(f"takes for number {key[-7:-5]}")
        number = release_number(key)
        if number is None:
            return
        if number in self.committed:
            raise Violation(f"release {number} is overwritten")
        if number != len(self.committed) + 1 or parse_release(data).parent != (number - 1 or None):
            raise Violation(f"release {number} comes after {len(self.committed)}")
        if number > 1:
            check_hold(parse_release(data), parse_release(self.committed[number - 1]))
        self.committed[number] = data
        self.world.note(f"commits release for number {number}")
        if self.holds_lease(self.world.process):
            self.confirmed.add(number)

    def before_delete(self, key: str, was_checked: bool) -> None:
        if release_number(key) is not None:
            raise Violation(f"{key} is deleted")
        if key.startswith("pins/"):  # by one who unpins what another has pinned
            self.pinned.discard(int(key[-25:-5]))
        if not is_blob_key(key):
            return
        is_late = was_checked and not self.holds_lease(self.world.process)
        if key in self.live_keys():
            if not is_late:
                raise Violation(f"{key} is deleted, which a protected release needs")
            self.late.add(key)
            self.world.counts["late deletion"] += 1
        self.world.note(f"deletes {key}")

    def live_numbers(self) -> set[int]:
        now_s = self.world.now_s
        young = {n for n in self.committed if now_s - self.objects[f"releases/{n:020d}.json"][1] <= YOUNG_S}
        last = set(sorted(self.committed)[-self.keep_last :])
        return ((young | last) & self.confirmed) | self.pinned

    def live_keys(self) -> set[str]:
        releases = [parse_release(self.committed[number]) for number in self.live_numbers()]
        return {blob_key(sha256) for release in releases for sha256 in release.blobs()}

    def holds_lease(self, process: Process) -> bool:
        """By the store's clock, as any other process would judge."""
        key = max((key for key in self.objects if key.startswith("leases/")), default=None)
        if key is None:
            return False
        return self.lease_holders[key] is process and int(self.world.now_s) - int(self.objects[key][1]) <= TTL_S

    def check_end(self) -> None:
        numbers = sorted(release_number(key) or 0 for key in self.objects if key.startswith("releases/"))
        if numbers != list(range(1, len(self.committed) + 1)):
            raise Violation(f"releases {numbers}")
        for number, data in self.committed.items():
            if self.objects[f"releases/{number:020d}.json"][0] != data:
                raise Violation(f"release {number} has other bytes")
        if lost := self.live_keys() - self.objects.keys() - self.late:
            raise Violation(f"lost {lost}")


@dataclass(eq=False)
class Runs:
    """The commands, as jobs/ puts them together from indexing/release."""

    world: World
    truth: Truth
    folder: Path

    def store(self) -> Store:
        return SimulatedStore(self.world, self.truth.objects, self.truth)

    def night(self) -> None:
        store, dice = self.store(), self.world.dice
        # The owner's name identifies nobody: containers that cron starts have the same host name, process and second.
        with hold_lease(store, "process 1 on nightly", wait=self.waits()) as lease:
            parent = read_release(store)
            contents = dice.sample(range(len(CONTENTS)), dice.choice([2, 3, 4]))
            if dice.random() < 0.3:  # a catalogue as it was before
                contents = [
                    BLOBS.index(blob)
                    for blob in read_release(store, dice.choice(release_numbers(store))).blobs().values()
                ]
            release = release_of(parent.number + 1, contents, f"{self.world.process.name} {self.world.now_s}")
            if find_hold(parent, hold_of(release)):
                raise PublishConflict("held")

            def upload() -> None:
                upload_blobs(store, release.blobs().values(), self.fetch, parent=parent)

            release = publish_release(store, release, upload, lease.check)
            self.succeed(release)

    def rollback(self) -> None:
        store = self.store()
        with hold_lease(store, "process 1 on nightly", wait=self.waits()) as lease:
            to = self.world.dice.choice(release_numbers(store))
            release = roll_back(store, to, check=lease.check)
            if release.holds:
                self.world.note(f"places a hold for number {release.number}")
            self.succeed(release)

    def resume(self) -> None:
        """Once there is a hold."""
        store = self.store()
        for _ in range(6):
            if not read_release(store).holds:
                self.world.pause(self.world.dice.expovariate(1 / 300))
        with hold_lease(store, "process 1 on nightly", wait=self.waits()) as lease:
            release = resume(store, check=lease.check)
            self.world.note(f"lifts the hold for number {release.number}")
            self.succeed(release)

    def prune(self) -> None:
        store = self.store()
        with hold_lease(store, "process 1 on nightly", wait=self.waits(), deletes=True) as lease:
            min_age_s = self.world.dice.choice([retention.MIN_AGE_S, DAY_S])
            plan = plan_prune(store, keep_last=self.truth.keep_last, min_age_s=min_age_s)
            apply_prune(store, plan, lease.check)

    def pin(self) -> None:
        store, dice = self.store(), self.world.dice
        number = dice.choice(release_numbers(store))
        pin(store, number)
        if f"pins/{number:020d}.json" not in self.truth.objects:
            return  # another has unpinned it since
        self.truth.pinned.add(number)
        self.world.note(f"pins for number {number}")
        if lost := self.truth.live_keys() - self.truth.objects.keys() - self.truth.late:
            raise Violation(f"release {number} is pinned without {lost}")
        if dice.random() < 0.3:
            self.world.pause(dice.expovariate(1 / 100))
            self.truth.pinned.discard(number)
            unpin(store, number)

    def read(self) -> None:
        """Opens the newest release a few times: its file, then every blob."""
        store, path = self.store(), self.folder / f"read-{self.world.process.name}"
        for _ in range(3):
            newest_before = max(self.truth.committed)
            release = read_release(store)
            if release.number < newest_before or release_to_bytes(release) != self.truth.committed[release.number]:
                raise Violation(f"a reader sees release {release.number}, not {newest_before}")
            for blob in release.blobs().values():
                try:
                    download_verified(store, blob, path)
                except DamagedError as error:
                    if release.number in self.truth.live_numbers() and blob_key(blob.sha256) not in self.truth.late:
                        raise Violation(f"a reader cannot open release {release.number}: {error}") from error
                    self.world.counts["refused by a reader"] += 1
            self.world.pause(self.world.dice.expovariate(1 / 60))

    def waits(self) -> bool:
        return self.world.dice.random() < 0.7

    def succeed(self, release: Release) -> None:
        if self.truth.committed.get(release.number) != release_to_bytes(release):
            raise Violation(f"release {release.number} is reported as published, and is not")
        self.truth.confirmed.add(release.number)
        self.world.note(f"publishes for number {release.number}")

    def fetch(self, blob: Blob) -> Path:
        return self.folder / blob.sha256


def make_past(world: World, truth: Truth) -> None:
    """A few releases, old or young, with all their blobs."""
    age_s = world.dice.choice([100.0, 4_000.0, 2 * DAY_S])
    num_releases = world.dice.choice([2, 4, 5])
    for number in range(1, num_releases + 1):
        at_s = world.now_s - age_s - 7_200 * (num_releases - number)
        release = release_of(number, world.dice.sample(range(len(CONTENTS)), 4), f"past {number}")
        for sha256 in release.blobs():
            content = next(content for content in CONTENTS if hashlib.sha256(content).hexdigest() == sha256)
            truth.objects.setdefault(blob_key(sha256), (content, at_s))
        truth.committed[number] = release_to_bytes(release)
        truth.objects[f"releases/{number:020d}.json"] = (truth.committed[number], at_s)
        truth.confirmed.add(number)


def checked(truth: Truth, check: Callable[[Lease], None]) -> Callable[[Lease], None]:
    def check_and_compare(lease: Lease) -> None:
        check(lease)
        if not truth.holds_lease(truth.world.process):
            raise Violation("a run trusts a lease that is not its own")
        truth.world.process.checked_s = truth.world.now_s

    return check_and_compare


def put_in_place(world: World, truth: Truth, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Simulated time and threads for the code under test."""

    def wait(event: threading.Event, seconds: float) -> bool:
        if not event.is_set():
            world.pause(seconds)
        return event.is_set()

    patch.setattr("indexing.clock.wall_s", lambda: world.now_s + world.process.wall_off_s)
    patch.setattr("indexing.clock.elapsed_s", lambda: world.now_s)
    patch.setattr("indexing.clock.sleep", world.pause)
    patch.setattr("indexing.clock.wait", wait)
    thread = lambda target, **_: Task(world, world.process, target)  # noqa: E731
    patch.setattr("indexing.release.lease.threading", SimpleNamespace(Thread=thread, Event=threading.Event))
    patch.setattr("indexing.release.lease.Lease.check", checked(truth, Lease.check))
    patch.setattr("indexing.release.commit.ThreadPoolExecutor", InThisThread)
    verify = lambda store, release, on_blob: verify_bytes(store, release, on_blob, folder / "verified")  # noqa: E731
    patch.setattr("indexing.release.rollback.verify_release", verify)


def simulate(seed: int, folder: Path, put_back: Callable[[pytest.MonkeyPatch], None] | None = None) -> World:
    """One run. Raises Violation with the seed and what happened; `put_back` changes the code under test."""
    world = World(seed)
    dice = world.dice
    truth = Truth(world, keep_last=dice.choice([1, 2]))
    runs = Runs(world, truth, folder)
    make_past(world, truth)
    for content, blob in zip(CONTENTS, BLOBS, strict=True):
        if not (folder / blob.sha256).exists():
            (folder / blob.sha256).write_bytes(content)
    actors = ["night", "prune", "read", *dice.choices(["night", "prune", "pin", "rollback", "prune", "resume"], k=4)]
    for number, name in enumerate(actors):
        process = Process(f"{name} {number}", wall_off_s=dice.choice([0.0] * 15 + [1_000.0]))
        world.spawn(process, guarded(world, getattr(runs, name)), dice.choice(DELAYS_S) * dice.random())
    logging.disable(logging.ERROR)
    try:
        with pytest.MonkeyPatch.context() as patch:
            put_in_place(world, truth, folder, patch)
            if put_back:
                put_back(patch)
            world.run()
        truth.check_end()
    except Violation as error:
        raise Violation(f"seed {seed}: {error}\n" + "\n".join(world.trace[-40:])) from error
    finally:
        logging.disable(logging.NOTSET)
    return world


def guarded(world: World, act: Callable[[], None]) -> Callable[[], None]:
    """A command that may end as its exit code says."""

    def run() -> None:
        try:
            act()
        except (PublishConflict, StoreUnavailable, DamagedError, ConfigError) as error:
            world.note(f"{type(error).__name__} for {error}")

    return run
