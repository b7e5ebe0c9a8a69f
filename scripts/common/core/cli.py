"""How every program here begins, speaks and ends: refusals, signals, packages, names in messages.

A program calls start() before it imports a package that may be missing, and run() at its end.
Standard library only: it must run in a bare host Python.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from types import TracebackType
from typing import Any, Callable, Iterable, List, NoReturn, Optional, Tuple, Type

from common.core import places
from common.core.places import ROOT

VERSION = "1.4.0"
GRACE = 1.2  # seconds that a process has after SIGTERM, before it is killed
USAGE, BELOW_MINIMUM = 2, 3  # exit statuses, beside 0 good, 1 failure, 128 + number of a signal
CLOSED_PIPE = 128 + signal.SIGPIPE
# What ONNX Runtime and PyTorch say when they get no memory.
OUT_OF_MEMORY = (
    "Failed to allocate memory",
    "bad allocation",
    "bad_alloc",
    "can't allocate memory",
    "not enough memory",
)
ALIKE = 0.75  # how similar a mistyped option and the one that it is taken for must be
# Their errors are about the model that they were given: {package as it is imported: its name}.
OF_MODELS = {"onnxruntime": "ONNX Runtime", "onnx": "onnx", "google": "protobuf"}
INSTALLED_AS = {"PIL": "Pillow"}  # {package as it is imported: as it is installed}
# ONNX Runtime reads it when it is imported. Without it 1.32 sends paths, names, times and error
# texts to its maker. It keeps a device's number and the queue of such events in the user's cache.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"

# The signals that ended this process. PyTorch 1.6, and an import that is interrupted, turn a signal
# into another error; without this list that error would blame a file or a package.
SIGNALLED: List[int] = []
AT_END: List[Callable[[int], None]] = []  # what follows the last sentence, with the exit status
NAMED: List[str] = []  # the name of the program, if its user typed another one than the file's


class Refusal(SystemExit):
    """Ends the program with one sentence: the fact, its value, what to do.

    status: 1, or BELOW_MINIMUM for a figure below a given minimum.
    run() prints the sentence after the program's name.
    """

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.sentence, self.status = sentence, status


def program() -> str:
    """The name of this program, as its user typed it."""
    return NAMED[0] if NAMED else os.path.basename(sys.argv[0] or "python")


def say(sentence: str) -> None:
    """Print one line on stderr, with the program's name."""
    try:
        print(f"{program()}: {sentence}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody reads it any more; the exit status remains
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def shown(name: str) -> str:
    """A name for a message; a name with blanks, quotes or unprintable characters is quoted."""
    plain = name.isprintable() and name and not re.search(r"[\s'\"`]", name)
    return name if plain else repr(name)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of the names in sorted order, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(shown, listed[:most])) + more


def why(error: BaseException) -> str:
    """What an error says, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


# ---- how a program begins and ends ---------------------------------------------------------------


def interrupt(number: int, _: Any) -> None:
    """Handle SIGINT as Python does, and note it."""
    SIGNALLED.append(number)
    raise KeyboardInterrupt


def start(name: str = "") -> None:
    """Prepare signals and streams; make one sentence of an uncaught error or a missing package.

    Only a program calls this, before it imports a package that may be missing. Neither the program
    nor what it starts sends telemetry from here on.
    name: what the program's user typed, if that is not the file's name.
    """
    if name:
        NAMED[:] = [name]
    os.environ[NO_TELEMETRY] = "1"
    sys.excepthook = end_uncaught
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)  # in the background it is ignored, and that stays
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:
            # It is closed (`>&-`). The next open file would get its number, and so its output.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, stream, open(number, "w" if number else "r", encoding="utf-8"))


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line, and names the nearest option."""

    source = ""  # the file that the words come from, for messages; "" for the command line

    def error(self, message: str) -> NoReturn:
        unknown = re.fullmatch(r"unrecognized arguments: (--[^\s=]+).*", message, re.DOTALL)
        if unknown:
            from difflib import get_close_matches  # here: a good command line does not need it

            for nearest in get_close_matches(
                unknown.group(1), self._option_string_actions, 1, ALIKE
            ):
                message += f" (did you mean {nearest}?)"
        where = f"{self.source}: " if self.source else ""
        self.exit(USAGE, f"{self.prog}: error: {where}{message}; see {self.prog} --help\n")


def parser(doc: Optional[str], **settings: Any) -> Parser:
    """An argument parser with --version, whose --help begins with the program's docstring."""
    declared = Parser(
        prog=program(),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **settings,
    )
    declared.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return declared


def run(main: Callable[[], Optional[int]], interrupted: str = "nothing was written") -> None:
    """Run main() as a program; exit with its status, or with one sentence and a fitting status.

    interrupted: what to say after Ctrl-C about the state of the products.
    SIGTERM and SIGHUP end the program as well, without a sentence.
    """
    start()
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it, and that stays so
        signal.signal(signal.SIGHUP, terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = outcome(main)
    except Refusal as refusal:
        say(refusal.sentence)
        status = refusal.status
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say(f"interrupted; {interrupted}")
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = CLOSED_PIPE
    except OSError as error:
        sentence = f"{why(error)}; fix this and run the same command again"
        if isinstance(error.filename, (str, bytes)):
            sentence = f"{shown(os.fsdecode(error.filename))}: {sentence}"
        if is_output_lost():
            sentence = f"stdout cannot be written: {sentence}"
        say(sentence)
        status = 1
    finally:
        # A signal cannot interrupt Python's own end cleanly.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave(status)
    sys.exit(status)


def is_output_lost() -> bool:
    """Whether stdout cannot take what was printed. If so, the rest is dropped.

    Otherwise Python would try again at its end, say so in its own words, and exit with 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return True
    return False


def leave(status: Any) -> None:
    """Do what follows the last sentence of this program. status: as sys.exit() takes it."""
    while AT_END:
        AT_END.pop()(status if isinstance(status, int) else int(status is not None))


def terminate(number: int, _: Any) -> None:
    """Handle SIGTERM and SIGHUP: end the program, and note it."""
    SIGNALLED.append(number)
    raise SystemExit(128 + number)


def outcome(main: Callable[[], Optional[int]]) -> Any:
    """What main() returns. Raises: its error; if a signal caused it, what the signal raises."""
    try:
        status = main()
        sys.stdout.flush()
        return status
    except (Exception, Refusal):
        if not SIGNALLED:
            raise
        if SIGNALLED[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + SIGNALLED[0]) from None


def missing_package(package: str) -> str:
    """The sentence for a package that this Python lacks: its name, and the command that helps."""
    venv = places.current().venv
    activate = os.path.join(venv, "bin", "activate")
    set_up = f"python3 {shown(os.path.relpath(os.path.join(ROOT, 'scripts', 'setup_env.py')))}"
    advice = f"use the environment that has it: source {shown(os.path.relpath(activate))}"
    if sys.prefix == venv:
        advice = f"install the packages again: remove {shown(venv)}, then {set_up}"
    elif not os.path.exists(activate):
        advice = advice.replace("it: ", f"it: {set_up} && ")
    name = INSTALLED_AS.get(package, package)
    return f"the package {name} is not installed for {sys.executable}; {advice}"


def broken_package(error: BaseException) -> str:
    """The sentence for a package that cannot be imported although it is installed."""
    path = os.environ.get("PYTHONPATH")
    advice = "install the packages again: remove .venv, then python3 scripts/setup_env.py"
    if path:
        advice = f"PYTHONPATH={shown(path)} may hide it with another one: unset PYTHONPATH"
    return f"a package cannot be imported: {why(error)}; {advice}"


def hidden_module() -> Tuple[str, str]:
    """(a module of Python's own, the file that was loaded for it); ("", "") if all are Python's.

    A folder on PYTHONPATH comes before Python's own: a json.py there is what `import json` loads.
    """
    own = [os.path.dirname(os.__file__)]
    own += [path for path in sys.path if os.path.basename(path) == "lib-dynload"]
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None) or own[0]
        is_hidden = not any(path.startswith(folder) for folder in own)
        if is_hidden and is_pythons_own(name, own[0]):
            return name, path
    return "", ""


def is_pythons_own(name: str, folder: str) -> bool:
    """Whether a module's name is one of Python's own modules; folder: where these are."""
    if sys.version_info >= (3, 10):
        return name in sys.stdlib_module_names
    files = (os.path.join(folder, name + ".py"), os.path.join(folder, name, "__init__.py"))
    return name in sys.builtin_module_names or any(map(os.path.exists, files))


def write_details(
    kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]
) -> str:
    """Write all that is known of an error into a new file. Returns: where that is, in words."""
    log_path = "nowhere: no folder for them can be written"
    try:
        file, log_path = tempfile.mkstemp(prefix=f"{program()}-", suffix=".log", text=True)
        with open(file, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{sys.argv!r}\nversion {VERSION}, Python {sys.version}\n")
            traceback.print_exception(kind, error, trace, file=log)
    except OSError:
        traceback.print_exception(kind, error, trace)
    return log_path


def defect(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> str:
    """The sentence for an error that nobody expected; its details go into a file."""
    log_path = write_details(kind, error, trace)
    return (
        f"a defect of this program, version {VERSION}, or of its environment ended it: "
        f"{kind.__name__}: {why(error)}; the details for a report are in {log_path}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, or a model asks for more than there can be.

    ONNX Runtime and PyTorch have no error of their own for that, only words.
    """
    of_library = type(error).__module__.startswith("onnxruntime.") or type(error) is RuntimeError
    return isinstance(error, MemoryError) or (
        of_library and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def end_uncaught(
    kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]
) -> None:
    """sys.excepthook: for errors that no program expects, and for those before run() begins."""
    status = 1
    hidden, path = hidden_module()
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    package = kind.__module__.split(".")[0]
    if isinstance(error, SystemExit):  # of run(), where PYTHONINSPECT is set
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif issubclass(kind, KeyboardInterrupt) or SIGNALLED:
        say("interrupted")
        status = 128 + signal.SIGINT
    elif missing and missing.split(".")[0] != hidden:
        say(missing_package(missing.split(".")[0]))
    elif hidden:
        say(
            f"{shown(path)} hides Python's own module {hidden}, and it ended the program with "
            f"{kind.__name__}: {why(error)}; rename that file, or take its folder out of PYTHONPATH"
        )
    elif isinstance(error, ImportError):
        say(broken_package(error))
    elif is_out_of_memory(error):
        say("there is not enough memory; free some, or take a smaller batch or fewer workers")
    elif package in OF_MODELS:
        say(
            f"{OF_MODELS[package]} refuses the model: {why(error)}; make it again with "
            "TResNet_pth2onnx.py; if that made it, report what is in "
            f"{write_details(kind, error, trace)}"
        )
    else:
        say(defect(kind, error, trace))
    sys.stdout.flush()
    leave(status)
    os._exit(status)  # Python itself would exit with 1


def isolated(python: str, code: str, *arguments: str) -> List[str]:
    """The command that runs `code` in an interpreter that imports nothing from the current folder.

    Its packages and its PYTHONPATH stay as they are.
    """
    return [python, "-c", f"import sys; sys.path[:] = filter(None, sys.path); {code}", *arguments]


def end_group(leader: "subprocess.Popen[bytes]") -> None:
    """End the leader of a process group and all that it started: SIGTERM, SIGKILL after GRACE s."""
    with contextlib.suppress(ProcessLookupError):  # raised as soon as no process is left
        try:
            os.killpg(leader.pid, signal.SIGTERM)
            end = time.monotonic() + GRACE
            while time.monotonic() < end:
                leader.poll()
                os.killpg(leader.pid, 0)
                time.sleep(0.02)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
            leader.wait()
