"""What the tests share: running a script as a user does, the sample photos, and the expected values."""

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

pytest_plugins = ["ascend.fixtures"]
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "test" / "data"
GOLDEN = DATA / "golden"
TOGETHER = (
    "test_pth2onnx.py",
    "test_setup.py",
    "test_sample.py",
)  # files whose tests share what takes seconds to make
FIRST = (*TOGETHER, "test_pipeline_ascend.py", "test_pipeline.py")  # what takes longest
SMALL = 64  # pixels: what does not look at golden values runs on images of this size, 12 times fewer operations
for folder in (ROOT, ROOT / "scripts", GOLDEN):
    sys.path.insert(0, str(folder))
PATIENCE = 300  # s; it only keeps a hang from lasting for ever


def run(
    script: str, *args: object, env: Optional[Dict[str, str]] = None, **options: object
) -> "subprocess.CompletedProcess[str]":
    """Run a script of the repository (path from its root) with this Python; its output as text, decoded leniently."""
    command = [sys.executable, str(ROOT / script)] + [
        os.fspath(a) if isinstance(a, os.PathLike) else a if isinstance(a, bytes) else str(a)
        for a in args
    ]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        universal_newlines=True,
        errors="replace",
        env=dict(os.environ, **(env or {})),
        **options,
    )  # type: ignore[call-overload]


def succeed(script: str, *args: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Like run(); the script must exit with 0."""
    done = run(script, *args, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refusal(script: str, *args: object, status: int = 1, **options: object) -> str:
    """Run a script that must refuse: exit status `status`, no traceback; returns what it says on stderr."""
    done = run(script, *args, **options)  # type: ignore[arg-type]
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip(), "a refusal says why"
    return done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def listed_sha256(name: str) -> Dict[str, str]:
    """{file name: SHA-256} of a golden list."""
    lines = (GOLDEN / name).read_text().splitlines()
    return {line.split("  ")[1]: line.split("  ")[0] for line in lines}


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shared:
    """A function (name, make) -> folder that make(folder) filled once for all processes of this test run.

    Nobody may change what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base

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


def heavy_imports(said: str) -> List[str]:
    """What a run under PYTHONPROFILEIMPORTTIME=1 said on stderr of the packages that take long to import."""
    imported = re.findall(r"^import time: .*\| +([\w.]+)$", said, re.MULTILINE)
    assert "common.core.cli" in imported, "this is what its Pythons say"
    return sorted(set(imported) & {"onnx", "onnxruntime", "torch", "matplotlib", "jinja2"})


@pytest.fixture(scope="session")
def sample(shared: Shared) -> Path:
    """A folder with the sample data set: val_union/ (20 photos), val_label.txt, model_best.pth.tar."""
    return shared("sample", lambda folder: succeed("scripts/make_sample.py", folder))


@pytest.fixture(scope="session")
def small_sample(shared: Shared) -> Path:
    """Like sample, but its checkpoint is a small_network()'s, made for 64 pixels, and says so: Top-1 100 % there."""
    return shared("small_sample", make_small_sample)


def make_small_sample(folder: Path) -> None:
    import make_sample

    small = make_sample.EVALUATION._replace(img_size=SMALL)
    with small_network(), mock.patch.object(make_sample, "EVALUATION", small):
        run_here(make_sample.main, folder)


@contextlib.contextmanager
def small_network() -> Iterator[None]:
    """In this process tresnet_m has one block in each stage and a quarter of the width meanwhile.

    Every kind of operator is in it, and it has 6 MB instead of 125: what does not look at golden values is quick with
    it. Programs that are started know only the real one, so they take its exported file, or find it up to date.
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
    """The program whose main() this is, in this process: importing PyTorch takes longer than most of what is tested."""
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

    Copied with copy_products() to a work folder, the pipeline finds its export up to date.
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
def small_work(shared: Shared, small_sample: Path, small_model: Path) -> Path:
    """The work folder of a finished run of the pipeline on the CPU: --data small_sample --img-size 64."""

    def make(folder: Path) -> None:
        copy_products(small_model, folder / "work")
        done = subprocess.run(
            [
                "bash",
                str(ROOT / "scripts" / "pipeline.sh"),
                "--backend",
                "cpu",
                "--img-size",
                str(SMALL),
                "--data",
                str(small_sample),
                "--workdir",
                str(folder / "work"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")

    return shared("small_work", make) / "work"


def copy_products(source: Path, target: Path) -> None:
    """Copy a folder of shared products with their times, so that the copies are as up to date as they are.

    Models and checkpoints become hard links: they may be replaced or removed, but not written into.
    """

    def copy(path: str, copied: str) -> None:
        if os.path.getsize(path) > 1 << 20:
            os.link(path, copied)
        else:
            shutil.copy2(path, copied)

    shutil.copytree(str(source), str(target), copy_function=copy)


def pytest_configure(config: pytest.Config) -> None:
    """Each process of a parallel run keeps to a core of its own, as all that it starts does: none waits for another."""
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> Optional[bool]:
    """A file none of whose tests is asked for is not even imported: that takes longer than many of the tests."""
    asked, text = str(config.option.markexpr), ""
    if collection_path.suffix == ".py":
        text = collection_path.read_text(encoding="utf-8")
    unasked = "not slow" in asked and "\npytestmark = pytest.mark.slow\n" in text
    unasked |= asked.split()[-2:] in (["alone"], ["and", "alone"]) and "mark.alone" not in text
    return True if text and unasked else None  # None: let others decide


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is left with it alone at the end."""

    def turn(item: pytest.Item) -> Tuple[int, bool]:
        name = os.path.basename(str(item.fspath))
        return FIRST.index(name) if name in FIRST else len(FIRST), not item.get_closest_marker(
            "slow"
        )

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go one by one to the process that is free; those of a file in TOGETHER all to the same process."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda test: (  # as its subclasses in xdist say what goes together
        test.split("::")[0] if os.path.basename(test.split("::")[0]) in TOGETHER else test
    )
    return scheduler


def pytest_sessionstart() -> None:
    """Let programs that tests start obey signals, also in a suite that ignores them.

    In the background SIGINT is ignored, under nohup SIGHUP. A child inherits that, but no handler.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # the suite itself goes on
