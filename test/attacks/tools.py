"""Tools that misbehave: ais_bench, atc, npu-smi and amct_onnx hang, die, lie or leave things.

Each of them is the stand-in of test/ascend/ behind misbehave.py. A run that ends well has the
results that the well-behaved tools give. A tool that hangs is the user's to stop: then a SIGTERM
must end the step and all that it started. Nothing may be written through a link that lies where a
log or a product goes.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

from ascend.environment import ascend_environment

from attacks import bed as ground
from attacks import trial
from attacks.bed import Bed
from attacks.trial import Outcome, Products, Step

HERE = Path(__file__).resolve().parent
ANY = "KILL SEGV TERM nothing copy garbage".split() + ["only garbage", "fails late"]
SPOILED = (
    "half,empty,few,many,wrong length,other format,link,hard link,fifo,folder,other user"
).split(",")
WAYS: Dict[str, List[str]] = {
    "npu-smi": ["hang", *ANY],
    "atc": ["hang", "deaf", *ANY, *SPOILED, "log link"],
    "amct_onnx": ["hang", "deaf", *ANY, *SPOILED, "log link"],
    "ais_bench": ["hang", "deaf", *ANY, *SPOILED, "summary", "summary", "log link"],
    # Not tried: results that are all cut to the same length. Nothing distinguishes them from those
    # of a model with fewer classes, or in float16.
}
INFER = "--model net_bs4.om --input prep --output . --output_dirname npu --outfmt".split()
STEPS: Dict[str, List[Step]] = {
    "npu-smi": [Step("chips", "scripts/npu_info.py", [], [], [])],
    "atc": [
        Step(
            "compile",
            "scripts/onnx2om.py",
            "net.onnx --batch-sizes 1 --soc-version Ascend310P3".split(),
            ["net.onnx"],
            ["net_bs1.om"],
        )
    ],
    "amct_onnx": [
        Step(
            "quantise",
            "scripts/quantize_amct.py",
            "net.onnx net_amct.onnx --calibrate prep --all-layers".split(),
            ["net.onnx"],
            ["net_amct.onnx"],
        )
    ],
    "ais_bench": [
        Step("infer", "scripts/infer_om.py", [*INFER, outfmt], ["net.onnx"], ["npu/*"])
        for outfmt in ("NPY", "TXT", "BIN")
    ]
    + [
        Step(
            "measure",
            "scripts/perf_sweep.py",
            "--backend ascend --model net.onnx --batch-sizes 4 --loop 2 --output .".split(),
            ["net.onnx"],
            [],
        )
    ],
}
LOGS = {  # where a step writes what a tool said
    "compile": "net_bs1.atc.log",
    "quantise": "net_amct.onnx.amct.log",
    "infer": "npu.device0.log",
    "measure": "perf_runner.log",
}
PATIENCE = 3.0  # seconds until a tool that hangs is stopped
EXPECTED: Dict[Tuple[str, str], Products] = {}


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    tool = dice.choices(sorted(WAYS), (6, 3, 4, 1))[0]
    step, way = dice.choice(STEPS[tool]), dice.choice(WAYS[tool])
    environment = machine(bed)
    restore(bed)
    expected = expected_of(bed, step, environment)
    before = trial.snapshot(bed.outside)
    if way == "log link":
        os.symlink(str(bed.outside / "letter.txt"), str(bed.here / LOGS[step.name]))
        way = dice.choice(("", "fails late"))
        what = f"{step.name}: its log is a link, {tool} {way or 'behaves'}"
    else:
        what = f"{step.name} {step.words[-1] if step.words else ''}: {tool}: {way}"
    environment.update(
        ATTACK_TOOL=tool,
        ATTACK_WAY=way,
        ATTACK_OUTSIDE=str(bed.outside),
        ATTACK_DICE=str(dice.random()),
    )
    if way in ("hang", "deaf"):
        outcome = hang(bed, step, environment)
    else:
        ended = run(bed, step, environment)
        if way == "copy":  # it leaves its group on purpose, and nobody but the user may end it
            ended = ended._replace(hung=False)
        outcome = trial.judge(ended, bed.products(step), expected)
    if tool == "npu-smi" and outcome.kind == trial.SURVIVED and way not in ("copy", "garbage"):
        outcome = Outcome(trial.WRONG, "npu-smi said nothing, and the step found a chip")
    outcome = ground.judge_outside(bed, before, outcome)
    left = end_left(bed)
    if left and way != "copy" and outcome.kind not in trial.BAD:  # that one leaves its group
        outcome = Outcome(trial.HANG, f"{left} processes of the tool were left")
    if outcome.kind in trial.BAD:
        return what, outcome
    environment["ATTACK_TOOL"] = ""
    again = trial.judge(run(bed, step, environment), bed.products(step), expected)
    if again.kind != trial.SURVIVED:
        kind = trial.DAMAGE if again.kind == trial.SENTENCE else again.kind
        return what, Outcome(kind, f"after '{outcome.details}', with good tools: {again.details}")
    return what, ground.judge_outside(bed, before, outcome)


def end_left(bed: Bed) -> int:
    """End what is still at work in the folder of the tries. Returns: how many processes."""
    left = trial.at_work_in(bed.here)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(left)


def machine(bed: Bed) -> Dict[str, str]:
    """The environment of a machine whose tools may misbehave."""
    folder = bed.folder / "machine"
    environment = ascend_environment(folder, HOME=str(folder))
    tools = folder / "tools"
    if not tools.exists():
        tools.mkdir()
        for tool in ("atc", "npu-smi", "amct_onnx"):
            (tools / tool).write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "misbehave.py"}" {tool} "$@"\n'
            )
            (tools / tool).chmod(0o755)
        shutil.copytree(str(HERE.parent / "ascend" / "python"), str(folder / "python"))
        (bed.folder / "data").symlink_to(HERE.parent / "data")  # npu-smi's samples
        package = folder / "python" / "ais_bench"
        (package / "__main__.py").rename(package / "well_behaved.py")
        (package / "__main__.py").write_text(WRAPPER)
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(folder / "python")
    environment["ATTACK_MISBEHAVE"] = str(HERE)
    return environment


WRAPPER = """import os, sys
sys.path.insert(0, os.environ["ATTACK_MISBEHAVE"])
import misbehave
misbehave.AIS_BENCH = misbehave.AIS_BENCH.replace("'ais_bench',", "'ais_bench.well_behaved',")
sys.argv[1:1] = ["ais_bench"]
sys.exit(misbehave.main())
"""


def restore(bed: Bed) -> None:
    """The folder of the tries, as later versions of ais_bench want it."""
    bed.restore()
    for path in [bed.here, *bed.here.rglob("*")]:
        path.chmod(0o750 if path.is_dir() else 0o640)
    om = bed.folder / "net_bs4.om"
    if om.exists():
        shutil.copy2(str(om), str(bed.here))


def run(bed: Bed, step: Step, environment: Dict[str, str], patience: float = 120) -> trial.Ended:
    def prepare() -> None:
        os.environ.update(environment)
        os.environ.pop("LD_PRELOAD", None)
        os.umask(0o027)

    return bed.run(step, prepare, patience)


def expected_of(bed: Bed, step: Step, environment: Dict[str, str]) -> Products:
    """The products that good tools give; made once. net_bs4.om is made first of all."""
    if not (bed.folder / "net_bs4.om").exists():
        make_om = STEPS["atc"][0]._replace(
            words="net.onnx --batch-sizes 4 --soc-version Ascend310P3".split()
        )
        done = run(bed, make_om, environment)
        assert done.status == 0, done.err
        shutil.copy2(str(bed.here / "net_bs4.om"), str(bed.folder))
        restore(bed)
    key = (str(bed.folder), " ".join([step.name, *step.words]))
    if key not in EXPECTED:
        done = run(bed, step, environment)
        if done.status:
            raise RuntimeError(f"{step.name} fails with good tools: {done.err}")
        EXPECTED[key] = bed.products(step)
        restore(bed)
    return EXPECTED[key]


def hang(bed: Bed, step: Step, environment: Dict[str, str]) -> Outcome:
    """A tool hangs: the step ends by itself with a sentence, or a SIGTERM ends it and the tool."""
    stopper = os.fork()
    if not stopper:  # it sends the signal to the step, which leads a session
        os.setsid()
        parent, end = os.getppid(), time.monotonic() + 60
        time.sleep(PATIENCE)
        while time.monotonic() < end:
            for child in children(parent):
                if child != os.getpid():
                    os.kill(child, signal.SIGTERM)
                    os._exit(0)
            time.sleep(0.05)
        os._exit(0)
    ended = run(bed, step, environment, 60)
    with_signal = os.waitpid(stopper, os.WNOHANG)[0]
    if not with_signal:
        os.kill(stopper, signal.SIGKILL)
        os.waitpid(stopper, 0)
    if ended.status == 128 + signal.SIGTERM and not ended.hung:
        return Outcome(trial.SENTENCE, "SIGTERM ended it and the tool")
    return trial.judge_end(ended)


def children(process: int) -> List[int]:
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except OSError:
        return []
