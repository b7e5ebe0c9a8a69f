"""Worker processes that may die or hang: an image that does that to its worker costs only itself.

multiprocessing.Pool waits for ever for a job whose worker died, concurrent.futures gives up all jobs then, and neither
ends one that hangs. Standard library only.
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
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator, List, Tuple

from common.cli import Refusal

MAX_BATCH = 64      # jobs handed to a worker at once: as many as it can do in about
BATCH_SECONDS = 0.05  # seconds, which is what a killed run has to do again
PR_SET_PDEATHSIG = 1  # of prctl(): the signal that a process gets when its parent ends
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # by cli.run()


def serve(connection: Any, progress: Any, slot: int, parent: int, work: Callable[[Any], Any]) -> None:
    """A worker: takes lists of jobs, gives back lists of results; progress[slot] says which job it is at, from 1."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the parent ends its workers
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others print to it, without the image's name
    while True:
        results = []
        for position, job in enumerate(connection.recv(), 1):
            progress[slot] = position
            results.append(work(job))
        connection.send(results)


def run_workers(all_jobs: Iterable[Any], work: Callable[[Any], Any], workers: int, timeout: float,
                lost: Callable[[Any, str], Any]) -> Iterator[List[Any]]:
    """Yield lists of the results of work(job), run in processes; lost(job, why) for one that killed or hung its worker.

    Every worker has its own pipe, so that its end is noticed; it is replaced, and the rest of its jobs is done again.
    timeout: seconds for one job. Raises: Refusal if no worker can be started, or they keep being ended from outside.
    """
    jobs = collections.deque(all_jobs)
    context = multiprocessing.get_context("fork")
    progress = mmap.mmap(-1, workers)  # a byte for each worker
    selector = selectors.DefaultSelector()
    idle_deaths = 0

    def start(slot: int) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, progress, slot, os.getpid(), work), daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until it has its own handlers
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        theirs.close()
        worker = SimpleNamespace(process=process, connection=ours, slot=slot, batch=1, jobs=[], seen=0, waited=0.0)
        selector.register(ours, selectors.EVENT_READ, worker)
        give(worker)

    def give(worker: SimpleNamespace) -> None:
        size = max(1, min(worker.batch, len(jobs) // (2 * workers)))  # smaller in the end: all end at the same time
        worker.jobs = [jobs.popleft() for _ in range(min(size, len(jobs)))]
        worker.given = time.monotonic()
        progress[worker.slot] = worker.seen = 0
        worker.waited = 0.0
        if worker.jobs:
            with contextlib.suppress(OSError):  # it has died: its pipe says so next time
                worker.connection.send(worker.jobs)

    def busy() -> List[SimpleNamespace]:
        return [key.data for key in selector.get_map().values() if key.data.jobs]

    def end(worker: SimpleNamespace) -> None:
        worker.process.kill()
        selector.unregister(worker.connection)
        worker.connection.close()

    try:
        for slot in range(workers):
            start(slot)
        tick = min(1.0, timeout / 4)
        before = time.monotonic()
        while busy():
            dead: List[Tuple[SimpleNamespace, str]] = []
            for key, _ in selector.select(tick):
                try:
                    results = key.data.connection.recv()
                except (EOFError, OSError):
                    key.data.process.join(5)
                    code = key.data.process.exitcode or 0
                    dead.append((key.data, "its worker process was ended by " + (
                        f"signal {-code} (9 often means: out of memory)" if code < 0 else f"exit status {code}")))
                else:
                    quick = time.monotonic() - key.data.given < BATCH_SECONDS
                    key.data.batch = min(MAX_BATCH, key.data.batch * 2) if quick else max(1, key.data.batch // 2)
                    give(key.data)
                    yield results
            now = time.monotonic()
            passed, before = min(now - before, 2 * tick), now  # this process, too, may have been stopped for a while
            for worker in busy():
                worker.waited = worker.waited + passed if progress[worker.slot] == worker.seen else 0.0
                worker.seen = progress[worker.slot]
                if worker.waited > timeout and worker not in [gone for gone, _ in dead]:
                    dead.append((worker, f"took longer than {timeout:g} s"))
            for worker, why in dead:
                end(worker)
                worker.process.join(5)
                position = progress[worker.slot]
                culprit = worker.jobs.pop(position - 1) if position and worker.jobs else None
                jobs.extendleft(reversed(worker.jobs))
                idle_deaths += culprit is None
                if idle_deaths > 100:
                    raise Refusal(f"the worker processes keep being ended from outside ({why}); is there enough "
                                  "memory? Try fewer --workers")
                if culprit is not None:
                    yield [lost(culprit, why)]
                if jobs:
                    start(worker.slot)
    except (BlockingIOError, MemoryError) as error:
        raise Refusal(f"cannot start a worker process ({error}); try fewer --workers") from None
    finally:
        left = [key.data for key in selector.get_map().values()]
        for worker in left:
            end(worker)
        for worker in left:  # until then it may leave half a file, and it holds what this process has locked
            worker.process.join(1)
