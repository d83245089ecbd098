"""Simulated time and processes, so that thousands of interleavings run in seconds and can be repeated.

Each process is made of threads of which exactly one runs at a time: it hands the baton on whenever it waits or calls
the store. Who runs next, how long a request takes, which answers are lost, and which processes are stopped for hours or
killed follows from a seed. The code under test is the real one.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

START_S = 1_800_000_000.0
STOPS_S = (3.0, 100.0, 130.0, 130.0, 200.0, 300.0, 4_000.0, 100_000.0)
"""For how long a process is stopped: below and above the time of a lease, an hour, a day."""
EVENTS = ("commits", "deletes", "pins", "takes")
"""Or until the next time that another process does this, at the latest after `LONGEST_STOP_S`."""
LONGEST_STOP_S = 200_000.0


class Killed(BaseException):
    """What a thread of a killed process gets wherever it calls the world."""


class Violation(AssertionError):
    """A promise that was broken."""


@dataclass(eq=False)
class Process:
    """`wall_off_s`: by how much its machine's clock is wrong."""

    name: str
    wall_off_s: float = 0.0
    stopped_until: float = 0.0
    stopped_s: float = 0.0
    """All together."""
    waits_for: str | None = None
    """The event that ends the stop."""
    checked_s: float = 0.0
    """When it last found that it holds its lease."""
    tasks: list[Task] = field(default_factory=list)
    is_killed: bool = False


class Task:
    """A thread that runs only while it has the baton. `start` and `join` are those of `threading.Thread`."""

    def __init__(self, world: World, process: Process, act: Callable[[], object], delay_s: float = 0.0) -> None:
        self.world, self.process, self.act, self.delay_s = world, process, act, delay_s
        process.tasks.append(self)
        self.world.processes[process] = None
        self.baton = threading.Lock()
        self.baton.acquire()
        self.turn = 0
        self.is_done = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.thread.start()
        self.world.wake(self, self.world.now_s + self.delay_s)

    def join(self) -> None:
        if not self.is_done:
            self.world.wake(self, self.world.now_s)
        while not self.is_done:
            self.world.pause(0.001)

    def _run(self) -> None:
        self.baton.acquire()
        try:
            self.act()
        except Killed:
            pass
        except BaseException as error:
            self.world.errors.append(error)
        self.is_done = True
        self.world.hand_on(None)


@dataclass(eq=False)
class World:
    """The scheduler: the thread whose time comes first runs next."""

    seed: int
    faults: bool = True
    """Whether processes are stopped and killed, answers lost and requests refused."""
    now_s: float = START_S
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[BaseException] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    processes: dict[Process, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.queue: list[tuple[float, int, int, Task]] = []
        self.num_pushed = 0
        self.current: Task | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    @property
    def process(self) -> Process:
        assert self.current is not None
        return self.current.process

    def spawn(self, process: Process, act: Callable[[], object], delay_s: float) -> None:
        Task(self, process, act, delay_s).start()

    def run(self) -> None:
        """Until every thread has ended. Raises what the first of them raised."""
        self.hand_on(None)
        self.ended.acquire()
        if self.errors:
            raise self.errors[0]

    def wake(self, task: Task, at_s: float) -> None:
        task.turn += 1
        self.num_pushed += 1
        heapq.heappush(self.queue, (at_s, self.num_pushed, task.turn, task))

    def pause(self, seconds: float) -> None:
        """Lets others run for that long, and longer while this process is stopped."""
        task = self.current
        assert task is not None
        if not task.process.is_killed:
            self.wake(task, self.now_s + seconds)
            self.hand_on(task)
        if task.process.is_killed:
            raise Killed

    def hand_on(self, sender: Task | None) -> None:
        """Gives the baton to the next thread; returns once `sender` has it again."""
        while self.queue:
            at_s, _, turn, task = heapq.heappop(self.queue)
            if turn != task.turn or task.is_done:
                continue
            if task.process.stopped_until > at_s and not task.process.is_killed:
                self.wake(task, task.process.stopped_until)
                continue
            self.now_s = max(self.now_s, at_s)
            self.current = task
            if task is not sender:
                task.baton.release()
                if sender is not None:
                    sender.baton.acquire()
            return
        self.ended.release()

    def moment(self) -> None:
        """A request or an answer on its way: others run, and this process may be stopped or killed."""
        process, dice = self.process, self.dice
        if self.faults and not process.is_killed:
            roll = dice.random()
            if roll < 0.001:
                process.is_killed = True
                self.note("is killed")
            elif roll < 0.02:
                self._stop(process)
        self.pause(dice.expovariate(5.0))

    def _stop(self, process: Process) -> None:
        dice = self.dice
        process.waits_for = dice.choice(EVENTS) if dice.random() < 0.6 else None
        seconds = LONGEST_STOP_S if process.waits_for else dice.choice(STOPS_S) * dice.uniform(0.5, 1.5)
        process.stopped_until = self.now_s + seconds
        process.stopped_s += seconds
        self.note(f"is stopped for {process.waits_for or f'{seconds:.0f} s'}")

    def _go_on(self, event: str) -> None:
        """Wakes those that were stopped until this event."""
        for process in self.processes:
            if process.waits_for == event and process.stopped_until > self.now_s:
                process.stopped_s -= process.stopped_until - self.now_s
                process.stopped_until, process.waits_for = self.now_s, None
                for task in process.tasks:
                    if not task.is_done and task is not self.current:
                        self.wake(task, self.now_s + self.dice.random())

    def happens(self, share: float) -> bool:
        return self.faults and self.dice.random() < share

    def note(self, text: str) -> None:
        self.counts[text.split(" for ")[0].split(" blobs/")[0]] += 1
        self._go_on(text.split()[0])
        self.trace.append(f"{self.now_s - START_S:12.2f}  {self.process.name}: {text}")


class InThisThread:
    """In place of `ThreadPoolExecutor`: one call after the other."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __enter__(self) -> InThisThread:
        return self

    def __exit__(self, *args: object) -> None: ...

    def map(self, act: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(act, items)
