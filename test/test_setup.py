"""The set-up: an environment is made once, found again, and repaired after an interruption."""

import functools
import http.server
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
DEVNULL = subprocess.DEVNULL
UMASK = os.umask(0o022)
os.umask(UMASK)
REQUIREMENTS = (
    "iniconfig==1.1.1  # small, and too old to be anywhere already\n"
    "nothing-for-you; python_version < '3.0'\n"
)
BARE = {
    key: value
    for key, value in os.environ.items()
    if key not in ("PYTHON", "PYTHONPATH", "VIRTUAL_ENV")
}


def base_python() -> str:
    """The Python that the tests' virtual environment was made from: it lacks their packages."""
    return os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "a clone")


def make_clone(folder: Path) -> Path:
    """A copy of the set-up scripts, with requirements that install in a second."""
    (folder / "scripts").mkdir(parents=True)
    for name in ("setup_env.py", "timm_source.py"):
        shutil.copy(str(ROOT / "scripts" / name), str(folder / "scripts" / name))
    shutil.copytree(
        str(ROOT / "scripts" / "common"),
        str(folder / "scripts" / "common"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(str(ROOT / "TResNet.patch"), str(folder))
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    return folder


def run_bare(script: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in a Python without packages."""
    return subprocess.run(
        [base_python(), str(script), *words],
        env=dict(BARE, **environment),
        universal_newlines=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def set_up(clone: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_bare(clone / "scripts" / "setup_env.py", *words, **environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[str]]:
    """A clone after two set-ups at the same time, and what the two printed on stderr."""
    clone = make_clone(tmp_path_factory.mktemp("made") / "a clone")
    runs = [
        subprocess.Popen(
            [base_python(), str(clone / "scripts" / "setup_env.py")],
            env=BARE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        for _ in range(2)
    ]
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert {out for out, _ in said} == {str(clone / ".venv" / "bin" / "python") + "\n"}
    rights = (clone / ".venv" / "finished").stat().st_mode & 0o777
    assert rights == 0o644 & ~UMASK, "other users of the checkout see that it is finished"
    return clone, [error for _, error in said]


@pytest.fixture
def finished(made: Tuple[Path, List[str]], tmp_path: Path) -> Path:
    """A copy of that clone, with a finished environment."""
    shutil.copytree(str(made[0]), str(tmp_path / "a clone"), symlinks=True)
    return tmp_path / "a clone"


def test_of_two_set_ups_at_once_the_second_waits_and_says_so(made: Tuple[Path, List[str]]) -> None:
    clone, errors = made
    assert sum("making" in error for error in errors) == 1 and "Collecting" not in "".join(errors)
    assert (
        sum("waiting for another set-up of this checkout, process " in error for error in errors)
        == 1
    )
    subprocess.run([str(clone / ".venv" / "bin" / "python"), "-c", "import iniconfig"], check=True)


def test_an_environment_that_exists_is_found_without_a_new_process(
    made: Tuple[Path, List[str]],
) -> None:
    script = made[0] / "scripts" / "setup_env.py"
    script.write_text(
        "import subprocess\n"
        "subprocess.Popen = None\n" + script.read_text()  # neither pip nor another Python starts
    )
    try:
        done = set_up(made[0])
    finally:
        shutil.copy(str(ROOT / "scripts" / "setup_env.py"), str(script))
    assert done.stdout == str(made[0] / ".venv" / "bin" / "python") + "\n" and done.stderr == ""


def test_more_requirements_are_added_to_a_finished_environment(
    made: Tuple[Path, List[str]],
) -> None:
    clone = made[0]
    (clone / "more.txt").write_text("pluggy\n")
    done = set_up(clone, "-r", str(clone / "requirements.txt"), "-r", str(clone / "more.txt"))
    assert "adding the packages of" in done.stderr, done.stderr
    subprocess.run([done.stdout.strip(), "-c", "import iniconfig, pluggy"], check=True)
    assert set_up(clone).stderr == "", "the product's own requirements are still fulfilled"


def test_pip_speaks_only_when_it_fails(made: Tuple[Path, List[str]]) -> None:
    (made[0] / "none.txt").write_text("iniconfig==0.0.0.dev999\n")
    done = set_up(made[0], "-r", str(made[0] / "none.txt"))
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert (
        "No matching distribution" in done.stderr
        and "setup_env.py: pip failed with status 1" in done.stderr.splitlines()[-1]
    )


def test_a_python_that_has_everything_is_taken_as_it_is(clone: Path) -> None:
    if subprocess.call([base_python(), "-c", "import packaging"], stderr=subprocess.DEVNULL):
        pytest.skip("this Python has no `packaging`, by which it is seen what a Python has")
    (clone / "requirements.txt").write_text("pip>=9\n")
    done = set_up(clone)
    assert done.stdout == base_python() + "\n" or os.path.samefile(
        done.stdout.strip(), base_python()
    )
    assert not (clone / ".venv").exists()


def test_an_interrupted_set_up_is_repaired(clone: Path) -> None:
    for wait in (0.3, 1.2):
        process = subprocess.Popen(
            [base_python(), str(clone / "scripts" / "setup_env.py")],
            env=BARE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (clone / ".venv" / "finished").exists()
    done = set_up(clone)
    assert done.returncode == 0, done.stderr
    subprocess.run([done.stdout.strip(), "-c", "import iniconfig"], check=True)


# ---- PyTorch without CUDA ------------------------------------------------------------------------


def install_metadata(base: Path, name: str, version: str) -> None:
    """A package of the user `base` as far as its metadata go."""
    metadata = (
        base
        / "lib"
        / ("python%d.%d" % sys.version_info[:2])
        / "site-packages"
        / f"{name}-{version}.dist-info"
    )
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_torch_of_the_host_serves_and_another_one_later_is_seen(
    clone: Path, tmp_path: Path
) -> None:
    (clone / "requirements.txt").write_text("torch==99.1\n" + REQUIREMENTS)
    install_metadata(tmp_path / "user", "torch", "2.1.0")
    done = set_up(clone, PYTHONUSERBASE=str(tmp_path / "user"))
    assert done.returncode == 0 and "the host's own torch 2.1.0 is used" in done.stderr, done.stderr
    assert set_up(clone, PYTHONUSERBASE=str(tmp_path / "user")).stderr == ""
    shutil.rmtree(str(tmp_path / "user"))
    install_metadata(tmp_path / "user", "torch", "2.2.0")
    assert (
        "the host's own torch 2.2.0 is used"
        in set_up(clone, PYTHONUSERBASE=str(tmp_path / "user")).stderr
    )


def point_to(clone: Path, address: str, answer: float) -> None:
    """Let the clone take another index for PyTorch's, and wait so many seconds for it."""
    path = clone / "scripts" / "common" / "core" / "packages.py"
    text = re.sub('CPU_INDEX = "[^"]*"', f'CPU_INDEX = "{address}"', path.read_text())
    path.write_text(re.sub("ANSWER = [0-9.]+", f"ANSWER = {answer}", text))


def write_wheel(path: Path, version: str = "1.2.3+cpu") -> None:
    """An empty package torch."""
    with zipfile.ZipFile(str(path), "w") as archive:
        for name, text in (
            ("METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"),
            (
                "WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            ),
            ("RECORD", ""),
        ):
            archive.writestr(f"torch-{version}.dist-info/{name}", text)


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="on ARM the registry's own torch has no CUDA"
)
def test_torch_comes_from_pytorchs_own_index_of_cpu_builds_where_it_answers(
    finished: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    (index / "torch").mkdir(parents=True)
    write_wheel(index / "torch" / "torch-1.2.3+cpu-py3-none-any.whl")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(index))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(finished, f"http://127.0.0.1:{server.server_port}", 5.0)
        (finished / "requirements.txt").write_text("torch==1.2.3\npluggy==1.0.0\n")
        done = set_up(finished)
        server.shutdown()
    assert done.returncode == 0 and "comes from the registry" not in done.stderr, done.stderr
    shown = subprocess.run(
        [str(finished / ".venv" / "bin" / "python"), "-m", "pip", "list", "--format=freeze"],
        stdout=subprocess.PIPE,
    )
    assert b"torch==1.2.3+cpu" in shown.stdout and b"pluggy==1.0.0" in shown.stdout


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="on ARM the registry's own torch has no CUDA"
)
def test_where_that_index_does_not_answer_one_line_says_what_is_coming(finished: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        point_to(finished, f"http://127.0.0.1:{silent.getsockname()[1]}", 0.5)
        (finished / "requirements.txt").write_text("torch==0.0.1  # nobody has it\n")
        done = set_up(finished)
    lines = [line for line in done.stderr.splitlines() if "2,900 MB of CUDA packages" in line]
    assert len(lines) == 1 and "gave no answer within 0.5 s" in lines[0] and done.returncode == 1


def test_another_python_gets_an_environment_of_its_own(clone: Path) -> None:
    done = set_up(clone, "--dry-run", PYTHON=base_python())
    assert (
        done.stdout == str(clone / (".venv-%d.%d" % sys.version_info[:2]) / "bin" / "python") + "\n"
    )


# ---- timm's source -------------------------------------------------------------------------------


def timm_source(clone: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return run_bare(clone / "scripts" / "timm_source.py", *words)


def python_files(folder: Path) -> Dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in (folder / "timm").rglob("*.py")
    }


def run_git(folder: Path, *arguments: str) -> None:
    environment = dict(
        BARE,
        GIT_AUTHOR_NAME="a",
        GIT_AUTHOR_EMAIL="a@b",
        GIT_COMMITTER_NAME="a",
        GIT_COMMITTER_EMAIL="a@b",
        GIT_CEILING_DIRECTORIES=str(folder.parent),
    )
    subprocess.run(
        ["git", *arguments], cwd=str(folder), env=environment, check=True, stdout=subprocess.DEVNULL
    )


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A git repository with the unpatched source under the tag v0.4.5, as upstream has it."""
    folder = tmp_path / "upstream"
    shutil.copytree(
        str(ROOT / "pytorch-image-models"),
        str(folder),
        ignore=shutil.ignore_patterns("__pycache__", ".patched-with"),
    )
    run_git(folder, "apply", "-p1", "--reverse", str(ROOT / "TResNet.patch"))
    run_git(folder, "init", "--quiet")
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--message", "v0.4.5")
    run_git(folder, "tag", "v0.4.5")
    return folder


def test_registry_and_git_give_the_same_patched_source(clone: Path, upstream: Path) -> None:
    from_registry = timm_source(clone)
    assert from_registry.returncode == 0, from_registry.stderr
    target = clone / "pytorch-image-models"
    expected = python_files(target)
    assert b"nn.LeakyReLU(1e-2" in expected["timm/models/tresnet.py"] and len(expected) > 100
    assert timm_source(clone).stderr == "", "nothing is done again"
    shutil.rmtree(str(target))
    from_git = timm_source(clone, "--from", "git", "--url", f"file://{upstream}")
    assert from_git.returncode == 0, from_git.stderr
    assert python_files(target) == expected


def test_a_clone_that_the_user_put_there_is_patched_and_a_strange_folder_refused(
    clone: Path, upstream: Path
) -> None:
    target = clone / "pytorch-image-models"
    run_git(clone, "clone", "--quiet", "--branch", "v0.4.5", f"file://{upstream}", str(target))
    assert timm_source(clone).returncode == 0
    assert b"nn.LeakyReLU(1e-2" in (target / "timm" / "models" / "tresnet.py").read_bytes()
    (target / ".patched-with").unlink()
    assert timm_source(clone).returncode == 0, "patched already"
    (target / ".patched-with").unlink()
    (target / "timm" / "models" / "tresnet.py").write_text("something else\n")
    done = timm_source(clone)
    assert (
        done.returncode == 1
        and "TResNet.patch does not fit" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert (target / "timm" / "models" / "tresnet.py").read_text() == "something else\n"


def test_a_changed_package_is_refused_before_it_is_opened(clone: Path) -> None:
    module = clone / "scripts" / "common" / "core" / "packages.py"
    module.write_text(module.read_text().replace('"613f0ef4', '"713f0ef4'))
    done = timm_source(clone)
    assert (
        done.returncode == 1
        and "DO NOT MATCH THE HASHES" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (clone / "pytorch-image-models").exists()


def test_a_changed_patch_and_an_interrupted_fetch_are_fetched_again(clone: Path) -> None:
    target = clone / "pytorch-image-models"
    shutil.copytree(str(ROOT / "pytorch-image-models"), str(target))
    (target / ".patched-with").write_text("another patch")
    (clone / "pytorch-image-models-unfinished" / "timm").mkdir(parents=True)
    done = timm_source(clone)
    assert done.returncode == 0 and "fetching" in done.stderr
    assert sorted(name for name in os.listdir(str(clone)) if "pytorch" in name) == [
        "pytorch-image-models"
    ]


def test_a_source_that_lost_files_is_fetched_again_but_not_a_users_own_clone(
    clone: Path, upstream: Path
) -> None:
    target = clone / "pytorch-image-models"
    assert timm_source(clone).returncode == 0
    expected = python_files(target)
    shutil.rmtree(str(target / "timm"))
    assert "fetching" in timm_source(clone).stderr and python_files(target) == expected
    shutil.rmtree(str(target))
    run_git(clone, "clone", "--quiet", "--branch", "v0.4.5", f"file://{upstream}", str(target))
    (target / "mine.txt").write_text("mine")
    assert timm_source(clone).returncode == 0
    (clone / "TResNet.patch").write_bytes((clone / "TResNet.patch").read_bytes() + b"\n")
    done = timm_source(clone)
    assert (
        done.returncode == 1
        and "is your own clone" in done.stderr
        and (target / "mine.txt").exists()
    )


@pytest.mark.parametrize("damage", ["no lib", "another Python"])
def test_an_environment_that_lost_something_is_made_again(damage: str, finished: Path) -> None:
    clone, python = finished, finished / ".venv" / "bin" / "python"
    assert set_up(clone).stderr == "", "the copy is an environment that is finished"
    (packages,) = (clone / ".venv" / "lib").glob("python*/site-packages")
    if damage == "no lib":
        shutil.rmtree(str(clone / ".venv" / "lib"))
    else:  # as after an upgrade of the system: that Python looks for its packages elsewhere
        python.unlink()
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        (clone / ".venv" / "finished").write_text("Python 3.1 0\n")
    if damage != "another Python":  # the same way from here on
        assert "making" in first_line(clone)
        return
    done = set_up(clone)
    assert done.returncode == 0 and "making" in done.stderr, done.stderr
    subprocess.run([str(python), "-c", "import iniconfig"], check=True)
    assert set_up(clone).stderr == ""


def first_line(clone: Path) -> str:
    """What a set-up says first, on stderr; then it is killed."""
    with subprocess.Popen(
        [base_python(), str(clone / "scripts" / "setup_env.py")],
        env=BARE,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        os.killpg(process.pid, signal.SIGKILL)
    return line


def test_settings_that_send_packages_elsewhere_do_not_count(clone: Path, tmp_path: Path) -> None:
    done = set_up(
        clone, PIP_TARGET=str(tmp_path / "elsewhere"), PIP_REQUIRE_VIRTUALENV="1", PYTHONHOME=""
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "elsewhere").exists()
    subprocess.run([done.stdout.strip(), "-c", "import iniconfig"], check=True)


def test_packages_that_went_elsewhere_all_the_same_are_said(finished: Path, tmp_path: Path) -> None:
    (finished / "requirements.txt").write_text("pluggy==1.0.0\n")
    (tmp_path / "pip.conf").write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n")
    done = set_up(finished, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert (
        done.returncode == 1
        and "still lacks packages" in done.stderr
        and "pip config list" in done.stderr
    )
    again = set_up(finished)
    assert again.returncode == 0 and "adding the packages of" in again.stderr, (
        "nothing is stamped as finished"
    )


def test_an_environment_that_somebody_else_made_is_not_removed(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "mine.txt").write_text("mine")
    done = set_up(clone)
    assert (
        done.returncode == 1
        and "exists, and this program did not make it; move it away" in done.stderr
    )
    assert (clone / ".venv" / "mine.txt").read_text() == "mine"


# ---- without a network ---------------------------------------------------------------------------


def without_network(command: List[str]) -> List[str]:
    """The command in a network namespace without any route, where that can be made."""
    alone = ["unshare", "--net", "--"]
    can = shutil.which("unshare") and subprocess.call([*alone, "true"], stderr=DEVNULL) == 0
    return [*alone, *command] if can else command


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Path]:
    """A clone without an environment, and the folder that it has downloaded."""
    base = tmp_path_factory.mktemp("packed")
    clone, folder = make_clone(base / "a clone"), base / "the packages"
    done = set_up(clone, "--download", str(folder))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert not (clone / ".venv").exists()
    return clone, folder


def test_a_host_without_a_network_is_set_up_from_the_downloaded_folder(
    packed: Tuple[Path, Path],
) -> None:
    clone, folder = packed
    names = " ".join(path.name for path in folder.iterdir())
    for wanted in ("iniconfig-1.1.1", "packaging-", "timm-0.4.5.tar.gz", "foolbox-3.3.4", ".json"):
        assert wanted in names
    environment = dict(BARE, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    for script in ("setup_env.py", "timm_source.py"):
        done = subprocess.run(
            without_network(
                [base_python(), str(clone / "scripts" / script), "--offline", str(folder)]
            ),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        assert done.returncode == 0, done.stderr
    subprocess.run([str(clone / ".venv" / "bin" / "python"), "-c", "import iniconfig"], check=True)
    names_of_classes = (clone / ".class-names" / "1000.txt").read_text().splitlines()
    assert (len(names_of_classes), names_of_classes[0]) == (1000, "tench, Tinca tinca")
    source = clone / "pytorch-image-models" / "timm" / "models" / "tresnet.py"
    assert b"nn.LeakyReLU(1e-2" in source.read_bytes()


def test_a_folder_that_was_damaged_or_is_for_another_python_is_refused(
    packed: Tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(str(packed[1]), str(copy))
    clone = make_clone(tmp_path / "a clone")
    (wheel,) = copy.glob("iniconfig-*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1])
    done = set_up(clone, "--offline", str(copy))
    assert done.returncode == 1 and "iniconfig-1.1.1" in done.stderr
    assert "is missing or is not what was downloaded; copy the folder again" in done.stderr
    (list_file,) = copy.glob("packages-*.json")
    list_file.rename(copy / "packages-3.1-x86_64.json")
    done = set_up(clone, "--offline", str(copy))
    assert done.returncode == 1 and "made for another Python or machine" in done.stderr
    assert not (clone / ".venv").exists(), "it is looked at before anything is made"


def test_a_wheelhouse_of_the_user_is_enough(packed: Tuple[Path, Path], tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "a clone")
    wheelhouse = tmp_path / "wheelhouse"  # pip cuts PIP_FIND_LINKS at blanks
    shutil.copytree(str(packed[1]), str(wheelhouse))
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse)}
    for script in ("setup_env.py", "timm_source.py"):
        done = run_bare(clone / "scripts" / script, **settings)
        assert done.returncode == 0, done.stderr
    next(wheelhouse.glob("timm-0.4.5*")).unlink()
    shutil.rmtree(str(clone / "pytorch-image-models"))
    done = run_bare(clone / "scripts" / "timm_source.py", **settings)
    assert done.returncode == 1 and f"{wheelhouse} has no timm==0.4.5" in done.stderr


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="on ARM the registry's own torch has no CUDA"
)
def test_an_index_that_the_user_has_set_comes_before_pytorchs_own(
    finished: Path, tmp_path: Path
) -> None:
    for index, version in (("pytorch", "1.2.3+cpu"), ("mine", "1.2.3")):
        (tmp_path / index / "torch").mkdir(parents=True)
        write_wheel(tmp_path / index / "torch" / f"torch-{version}-py3-none-any.whl", version)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        point_to(finished, f"{address}/pytorch", 5.0)
        (finished / "requirements.txt").write_text("torch==1.2.3\n")
        done = set_up(finished, PIP_INDEX_URL=f"{address}/mine", PIP_CONFIG_FILE=os.devnull)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "the index that your setting index-url of pip names" in done.stderr
    (packages,) = (finished / ".venv" / "lib").glob("python*/site-packages")
    assert [path.name for path in packages.glob("torch-*")] == ["torch-1.2.3.dist-info"]


# ---- another place, another folder's files -------------------------------------------------------

PLANTED = "import os\nopen(os.environ['PLANTED'], 'a').write(__name__ + '\\n')\n"


def test_files_of_the_current_folder_are_not_executed_and_the_number_of_packages_is_said(
    finished: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    for name in ("pip", "venv"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text(PLANTED)
        (here / name / "__main__.py").write_text(PLANTED)
    for name in ("json.py", "select.py", "urllib.py", "ensurepip.py"):
        (here / name).write_text(PLANTED)
    (finished / "requirements.txt").write_text("torch==0.0.1\n")
    point_to(finished, "http://127.0.0.1:9", 0.5)
    (finished / "more.txt").write_text("pluggy==1.0.0\niniconfig==1.1.1\n")
    shutil.rmtree(str(finished / ".venv"))
    os.chdir(str(here))
    try:
        planted = str(tmp_path / "executed")
        made = set_up(finished, "-r", str(finished / "more.txt"), PLANTED=planted)
        failed = set_up(finished, PLANTED=planted)
    finally:
        os.chdir(str(ROOT))
    assert made.returncode == 0, made.stderr
    assert "set-up: installing 3 packages\n" in made.stderr, "packaging is one of them"
    assert failed.returncode == 1
    if platform.machine() == "x86_64":
        assert "asking whether PyTorch's own index of CPU builds answers" in failed.stderr
    assert not (tmp_path / "executed").exists()


def test_a_checkout_that_is_read_only_is_set_up_beside_the_work_folder(
    clone: Path, tmp_path: Path
) -> None:
    """As root a file's rights are no obstacle, a read-only mount is."""
    (tmp_path / "mine").mkdir()
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77\n'
        'cd "$2"; for turn in 1 2; do "$3" "$1/scripts/setup_env.py" || exit; done\n'
        '"$3" "$1/scripts/timm_source.py" || exit\n'
        'tresnet-venv/bin/python -c "import sys; sys.path.insert(0, sys.argv[1])\n'
        "from common.core import native, places; print(places.current().timm)\n"
        'native.load(\'results/ranks.c\')" "$1/scripts"\n'
        'chmod g+w tresnet-venv; "$3" "$1/scripts/setup_env.py"\n'
    )
    command = ["unshare", "--mount", "bash", "-c", script, "sh", str(clone), str(tmp_path / "mine")]
    done = subprocess.run(
        [*command, base_python()],
        env=BARE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this user cannot mount anything")
    folder = tmp_path / "mine" / "tresnet-venv"
    assert done.stdout.splitlines() == [
        str(folder / "bin" / "python"),
        str(folder / "bin" / "python"),
        str(folder / "pytorch-image-models"),
    ], done.stderr
    assert done.stderr.count("making") == 1
    assert done.returncode == 1 and "is not yours alone" in done.stderr.splitlines()[-1]
    assert not any((clone / name).exists() for name in (".venv", "pytorch-image-models"))
    if shutil.which("cc") or shutil.which("gcc"):
        assert len(list((folder / ".libraries").glob("*.so"))) == 2


def test_the_place_can_be_named_and_a_strange_folder_there_is_refused(
    clone: Path, tmp_path: Path
) -> None:
    named, variable = tmp_path / "named", tmp_path / "variable"
    done = set_up(clone, "--dry-run", "--venv", str(named), TRESNET_VENV=str(variable))
    assert done.stdout == f"{named}/bin/python\n"
    assert set_up(clone, "--dry-run", TRESNET_VENV=str(variable)).stdout == (
        f"{variable}/bin/python\n"
    )
    named.mkdir()
    (named / "mine.txt").write_text("mine")
    done = set_up(clone, "--venv", str(named))
    assert done.returncode == 1 and "this program did not make it" in done.stderr
    assert (named / "mine.txt").read_text() == "mine"


def test_what_a_set_up_lacks_is_seen_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.core import environment, places

    import timm_source as timm_program

    (tmp_path / "req.txt").write_text("nobody-has-this==1\n")
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(places, "ROOT", str(tmp_path / "elsewhere"))
    place = places.in_folder(str(tmp_path / "place"))

    def problems(where: places.Place) -> List[str]:
        return [said for said, _ in environment.obstacles(where, None, [str(tmp_path / "req.txt")])]

    assert problems(place) == [] and list(timm_program.obstacles(place)) == []
    (problem,) = problems(places.in_folder(str(tmp_path / "a file" / "place")))
    assert "a file' is not a folder" in problem
    monkeypatch.setattr(environment, "SPACE", 2 * 10**18)
    (problem,) = problems(place)
    assert problem.endswith(" MB are needed") and "MB are free" in problem
    monkeypatch.setenv("PATH", str(tmp_path))
    ((problem, advice),) = timm_program.obstacles(place)
    assert "git is not installed" in problem and advice.endswith("apt-get install git")
