"""What all tests share: running a script as a user does, the sample photos, expected values."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from unittest import mock

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # the tests import ONNX Runtime themselves
pytest_plugins = ["ascend.fixtures"]
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "test" / "data"
GOLDEN = DATA / "golden"
# Files whose tests share fixtures that take seconds to make.
TOGETHER = ("test_pth2onnx.py", "test_setup.py", "test_sample.py")
FIRST = (*TOGETHER, "test_pipeline_ascend.py", "test_pipeline.py")  # the longest tests
SMALL = 64  # pixels: tests without golden values use this size, with 12 times fewer operations
for folder in (ROOT, ROOT / "scripts", GOLDEN):
    sys.path.insert(0, str(folder))
PATIENCE = 300  # s; it only keeps a hang from lasting for ever


def run(
    script: str, *args: object, env: Optional[Dict[str, str]] = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a script of the repository with this Python.

    script: its path from the repository's root; options: of subprocess.run().
    Returns: the ended process; its output is text.
    """
    words = [word if isinstance(word, bytes) else str(word) for word in args]
    return subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        universal_newlines=True,
        errors="replace",
        env=dict(os.environ, **(env or {})),
        **options,
    )


def succeed(script: str, *args: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a script that must exit with 0."""
    done = run(script, *args, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refusal(script: str, *args: object, status: int = 1, **options: Any) -> str:
    """Run a script that must refuse, with this status and no traceback. Returns: its stderr."""
    done = run(script, *args, **options)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip(), "a refusal says why"
    return done.stderr


def pipeline_command(*words: object) -> List[str]:
    """The command of a run of the whole chain on the CPU."""
    return ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--backend", "cpu", *map(str, words)]


def run_pipeline(*words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the whole chain on the CPU. options: of subprocess.run()."""
    return subprocess.run(
        pipeline_command(*words),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        universal_newlines=True,
        **{"stderr": subprocess.PIPE, **options},
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def listed_sha256(name: str) -> Dict[str, str]:
    """{file name: SHA-256} of a golden list."""
    lines = (GOLDEN / name).read_text().splitlines()
    return {line.split("  ")[1]: line.split("  ")[0] for line in lines}


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shared:
    """A function (name, make) -> folder, which make(folder) fills once for all processes of a run.

    No test may change what is in the folder.
    """
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # the processes' folders lie in one
        base = base.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / name
        with open(str(base / f"{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                unfinished = base / f"{name}.unfinished"
                shutil.rmtree(str(unfinished), ignore_errors=True)
                unfinished.mkdir(mode=0o750)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return once


def heavy_imports(stderr: str) -> List[str]:
    """The packages that take long to import, of those that a run imported.

    stderr: of the run, with PYTHONPROFILEIMPORTTIME=1.
    """
    imported = re.findall(r"^import time: .*\| +([\w.]+)$", stderr, re.MULTILINE)
    assert "common.core.cli" in imported, "the run prints what it imports"
    return sorted(set(imported) & {"onnx", "onnxruntime", "torch", "matplotlib", "jinja2"})


@pytest.fixture(scope="session")
def sample(shared: Shared) -> Path:
    """A folder with the sample data: val_union/ (20 photos), val_label.txt, model_best.pth.tar."""
    return shared("sample", lambda folder: succeed("scripts/make_sample.py", folder))


@pytest.fixture(scope="session")
def small_sample(shared: Shared) -> Path:
    """Like sample, but the checkpoint is a small_network() for 64 pixels, with Top-1 100 %."""
    return shared("small_sample", make_small_sample)


def make_small_sample(folder: Path) -> None:
    import make_sample

    small = make_sample.EVALUATION._replace(img_size=SMALL)
    with small_network(), mock.patch.object(make_sample, "EVALUATION", small):
        run_here(make_sample.main, folder)


@contextlib.contextmanager
def small_network() -> Iterator[None]:
    """During the block, tresnet_m has one block per stage and a quarter of the width here.

    It has every kind of operator, and 6 MB instead of 125: tests without golden values are quick.
    Other processes know only the real network: they use the exported file, or find it up to date.
    """
    from common.model import network

    def create(variant: str, num_classes: int) -> Any:
        assert variant == "tresnet_m"
        with mock.patch.object(sys, "path", [network.TIMM, *sys.path]):
            from timm.models.tresnet import TResNet
        return TResNet([1, 1, 1, 1], num_classes=num_classes, width_factor=0.25)

    with mock.patch.object(network, "create_network", create), mock.patch.dict(
        network.BLOCKS, tresnet_m=(1, 1, 1, 1)
    ), mock.patch.dict(network.VARIANTS, {16: "tresnet_m"}):
        yield


def run_here(main: Callable[[], Any], *arguments: object) -> None:
    """Run a program's main() in this process, because importing PyTorch takes seconds."""
    name = os.path.basename(str(sys.modules[main.__module__].__file__))
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
        main()


@pytest.fixture(scope="session")
def photos(shared: Shared) -> Path:
    """A folder with the 20 photos of the sample alone."""

    def write(folder: Path) -> None:
        from make_sample import fetch_photos

        for name, content in fetch_photos().items():
            (folder / name).write_bytes(content)

    return shared("photos", write)


@pytest.fixture(scope="session")
def small_model(shared: Shared, small_sample: Path) -> Path:
    """A folder with tresnet.onnx and its record: small_sample's checkpoint exported at 64 pixels.

    If copy_products() copies it to a work folder, the pipeline finds the export up to date.
    """

    def make(folder: Path) -> None:
        import TResNet_pth2onnx

        with small_network():
            run_here(
                TResNet_pth2onnx.main,
                small_sample / "model_best.pth.tar",
                folder / "tresnet.onnx",
                "--img-size",
                SMALL,
            )

    return shared("small_model", make)


@pytest.fixture(scope="session")
def trained(shared: Shared) -> Path:
    """A folder with a small network that was really trained: see test/trained.py."""
    import trained as shapes

    return shared("trained", shapes.make)


@pytest.fixture(scope="session")
def small_work(shared: Shared, small_sample: Path, small_model: Path) -> Path:
    """The work folder of a finished run on the CPU: --data small_sample --img-size 64."""

    def make(folder: Path) -> None:
        copy_products(small_model, folder / "work")
        done = run_pipeline(
            "--img-size", SMALL, "--data", small_sample, "--workdir", folder / "work"
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return shared("small_work", make) / "work"


def copy_products(source: Path, target: Path) -> None:
    """Copy a folder of shared products with their times, so that the copies are up to date too.

    Models and checkpoints become hard links: a test may replace or remove them, but not write into
    them.
    """

    def copy(path: str, copied: str) -> None:
        if os.path.getsize(path) > 1 << 20:
            os.link(path, copied)
        else:
            shutil.copy2(path, copied)

    shutil.copytree(str(source), str(target), copy_function=copy)


def pytest_configure(config: pytest.Config) -> None:
    """Each process of a parallel run, and all that it starts, stays on a core of its own."""
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> Optional[bool]:
    """Do not import a file if no test in it will run: importing takes longer than many tests."""
    if collection_path.suffix != ".py":
        return None  # let others decide
    text, marks = collection_path.read_text(encoding="utf-8"), str(config.option.markexpr)
    all_slow = "\npytestmark = pytest.mark.slow\n" in text
    return True if "not slow" in marks and all_slow else None


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """The longest tests begin first, so that no process has to do one of them alone at the end."""

    def turn(item: pytest.Item) -> Tuple[int, bool]:
        name = os.path.basename(str(item.fspath))
        file_turn = FIRST.index(name) if name in FIRST else len(FIRST)
        return file_turn, item.get_closest_marker("slow") is None

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A test goes to the first free process; all tests of a file in TOGETHER go to the same one."""
    from xdist.scheduler import LoadScopeScheduling

    def scope(test: str) -> str:
        file = test.split("::")[0]
        return file if os.path.basename(file) in TOGETHER else test

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope  # as the subclasses in xdist do
    return scheduler


def pytest_sessionstart() -> None:
    """Let programs that tests start obey signals, also in a suite that ignores them.

    In the background SIGINT is ignored, under nohup SIGHUP. A child inherits that, but no handler.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # the suite itself goes on
