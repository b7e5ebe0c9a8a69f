"""Worker processes that may die or hang: an image that kills its worker is the only one lost.

When a worker dies, multiprocessing.Pool waits for its job for ever, and concurrent.futures gives up
all jobs. Neither ends a worker that hangs. Standard library only.

Workers get their jobs in batches. One job at a time costs 25 % more CPU time with small images,
and 5 % more with photos.
"""

import collections
import contextlib
import ctypes
import mmap
import multiprocessing
import os
import selectors
import signal
import time
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple

from common.core.cli import Refusal

BATCH_SECONDS = 0.05  # how long a batch takes, about: a killed run has to do that much again
MAX_BATCH = 64  # jobs that a worker gets at once
MOST_IDLE_DEATHS = 100  # how many workers may end without a job
PR_SET_PDEATHSIG = 1  # of prctl(): the signal that a process gets when its parent ends
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # by cli.run()
FORK = multiprocessing.get_context("fork")

Work = Callable[[Any], Any]  # job -> result


def serve(connection: Any, progress: mmap.mmap, parent: int, work: Work) -> None:
    """The worker's process: takes batches of jobs, gives back lists of results.

    progress[0] says which job of the batch it is at, from 1.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the parent ends us
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints to it, without the image's name
    while True:
        results = []
        for position, job in enumerate(connection.recv(), 1):
            progress[0] = position
            results.append(work(job))
        connection.send(results)


class Worker:
    """A process, the pipe to it, and the batch of jobs that it has."""

    def __init__(self, work: Work) -> None:
        self.batch: List[Any] = []
        self.batch_size = 1  # of the next one
        self.batch_began = 0.0  # when it got its batch, s
        self.seen = 0  # the position in its batch where it was last seen
        self.waited = 0.0  # seconds that it has been there
        self.progress = mmap.mmap(-1, 1)
        self.connection, theirs = FORK.Pipe()
        self.process = FORK.Process(
            target=serve, daemon=True, args=(theirs, self.progress, os.getpid(), work)
        )
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until it has its own handlers
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        theirs.close()

    def give(self, batch: List[Any]) -> None:
        """Hand over the next jobs; none, and the worker stays idle."""
        self.batch = batch
        self.batch_began = time.monotonic()
        self.progress[0] = self.seen = 0
        self.waited = 0.0
        if batch:
            with contextlib.suppress(OSError):  # it has died: its pipe says so next time
                self.connection.send(batch)

    def receive(self) -> List[Any]:
        """The results of its batch; the next one is to take BATCH_SECONDS.

        Raises: EOFError or OSError if it has died.
        """
        results: List[Any] = self.connection.recv()
        if time.monotonic() - self.batch_began < BATCH_SECONDS:
            self.batch_size = min(MAX_BATCH, self.batch_size * 2)
        else:
            self.batch_size = max(1, self.batch_size // 2)
        return results

    def wait(self, seconds: float) -> float:
        """So many seconds have passed. Returns: how many of them it has been at the same job."""
        if self.progress[0] == self.seen:
            self.waited += seconds
        else:
            self.waited = 0.0
        self.seen = self.progress[0]
        return self.waited

    def culprit(self) -> List[Any]:
        """Take the job that it was at from its batch: [job], or [] if it was at none."""
        position = self.progress[0]
        if not position or not self.batch:
            return []
        return [self.batch.pop(position - 1)]

    def death(self) -> str:
        """How its process ended, in words."""
        self.process.join(5)
        status = self.process.exitcode or 0
        if status >= 0:
            return f"its worker process was ended by exit status {status}"
        reason = f"signal {-status} (9 often means: out of memory)"
        return f"its worker process was ended by {reason}"

    def end(self) -> None:
        self.process.kill()
        self.connection.close()


class Dead(NamedTuple):
    """A worker that must be replaced, and why."""

    worker: Worker
    why: str


class Crew:
    """The workers, each with a pipe of its own so that its end is noticed, and the jobs left.

    timeout: seconds for one job.
    """

    def __init__(self, jobs: Iterable[Any], work: Work, count: int, timeout: float) -> None:
        self.jobs = collections.deque(jobs)
        self.work, self.count, self.timeout = work, count, timeout
        self.selector = selectors.DefaultSelector()
        self.tick = min(1.0, timeout / 4)  # seconds between two looks for workers that hang
        self.looked = time.monotonic()
        self.idle_deaths = 0

    def workers(self) -> List[Worker]:
        return [key.data for key in self.selector.get_map().values()]

    def busy(self) -> List[Worker]:
        return [worker for worker in self.workers() if worker.batch]

    def start_all(self) -> None:
        for _ in range(self.count):
            self.start()
        self.looked = time.monotonic()

    def start(self) -> None:
        """Start one more worker and give it its first job."""
        worker = Worker(self.work)
        self.selector.register(worker.connection, selectors.EVENT_READ, worker)
        self.give(worker)

    def give(self, worker: Worker) -> None:
        fair_share = len(self.jobs) // (2 * self.count)  # small at the end: all end together
        size = max(1, min(worker.batch_size, fair_share))
        worker.give([self.jobs.popleft() for _ in range(min(size, len(self.jobs)))])

    def end(self, worker: Worker) -> None:
        self.selector.unregister(worker.connection)
        worker.end()

    def collect(self, dead: List[Dead]) -> Iterator[List[Any]]:
        """Yield the results that come within a tick; workers that have died are added to `dead`."""
        for key, _ in self.selector.select(self.tick):
            worker = key.data
            try:
                results = worker.receive()
            except (EOFError, OSError):
                dead.append(Dead(worker, worker.death()))
            else:
                self.give(worker)
                yield results

    def overdue(self) -> List[Dead]:
        """The workers that have been at one job for longer than `timeout`."""
        now = time.monotonic()
        passed = min(now - self.looked, 2 * self.tick)  # this process may have been stopped too
        self.looked = now
        return [
            Dead(worker, f"took longer than {self.timeout:g} s")
            for worker in self.busy()
            if worker.wait(passed) > self.timeout
        ]

    def replace(self, dead: Dead) -> List[Any]:
        """End a worker, start another one if there are jobs. Returns: [the job it was at], or [].

        The rest of its batch is done again. Raises: Refusal if too many ended without a job.
        """
        worker = dead.worker
        self.end(worker)
        worker.process.join(5)
        culprit = worker.culprit()
        self.jobs.extendleft(reversed(worker.batch))
        if not culprit:
            self.idle_deaths += 1
        if self.idle_deaths > MOST_IDLE_DEATHS:
            raise Refusal(
                f"the worker processes keep being ended from outside ({dead.why}); is "
                "there enough memory? Try fewer --workers"
            )
        if self.jobs:
            self.start()
        return culprit

    def close(self) -> None:
        """End all workers: one that lives may leave half a file, and it holds our locks."""
        workers = self.workers()
        for worker in workers:
            self.end(worker)
        for worker in workers:
            worker.process.join(1)


def run_workers(
    all_jobs: Iterable[Any],
    work: Work,
    workers: int,
    timeout: float,
    lost: Callable[[Any, str], Any],
) -> Iterator[List[Any]]:
    """Yield lists of the results of work(job), run in processes.

    workers: how many processes; timeout: seconds for one job.
    lost(job, why): the result for a job that killed its worker or made it hang.
    Raises: Refusal if no worker can be started, or if workers keep being ended from outside.
    """
    crew = Crew(all_jobs, work, workers, timeout)
    try:
        crew.start_all()
        while crew.busy():
            dead: List[Dead] = []
            yield from crew.collect(dead)
            workers_ended = [worker for worker, _ in dead]
            dead += [late for late in crew.overdue() if late.worker not in workers_ended]
            for ended_worker in dead:
                for job in crew.replace(ended_worker):
                    yield [lost(job, ended_worker.why)]
    except (BlockingIOError, MemoryError) as error:
        raise Refusal(f"cannot start a worker process ({error}); try fewer --workers") from None
    finally:
        crew.close()
