"""Say what is there and what is missing for each backend, with the command that mends it; or choose the backend.

    python3 scripts/check.py                       # the table; exit status 0 only if the chosen backend can run
    python3 scripts/check.py --choose              # one line: `ascend: …why…` or `cpu: …why…`

Runs in the host's own Python (3.7 or newer, standard library only), because ais_bench lives there too.
"""
import argparse
import glob
import os
import re
import shutil
import stat
import subprocess
import sys
from typing import List, NamedTuple, Optional, Tuple

from npu_info import find_chips, soc_version, the_chip
from setup_env import ROOT, finished, satisfied

sys.path.insert(0, ROOT)
from TResNet_preprocess import SUFFIXES  # noqa: E402

FILE_BYTES = {False: 4, True: 1}  # per value of a .bin: float32, or uint8 for --uint8
MODEL_BYTES = 130e6  # a TResNet-M as .onnx or .om; an XL has 320e6
CANN_INFO = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann/latest", "/usr/local/Ascend/latest")
DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
SAFE_PATH = re.compile(r"[_A-Za-z0-9/.-]+")  # what later versions of ais_bench accept in a path made absolute


class Row(NamedTuple):
    """One line of the table. `backend`: who needs it (both, ascend, cpu, or '' for advice that stops nothing)."""
    backend: str
    item: str
    good: bool
    found: str
    mend: str = ""


def version_in(paths: List[str]) -> str:
    """The first `version=…` in the files, '' if there is none."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = re.search(r"^\s*[Vv]ersion\s*=\s*\[?([\w.+-]+)", file.read(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found.group(1)
    return ""


def host_has(module: str) -> str:
    """Version of a package in the host's own python3, '' if it cannot be imported there."""
    code = (f"import {module}\ntry:\n from importlib.metadata import version\n print(version({module!r}))\n"
            f"except Exception:\n print('version unknown')")
    try:
        done = subprocess.run(["python3", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def chip(chosen: str, device: int) -> Tuple[str, str]:
    """(soc version, '') of the chip that is compiled for, or ('', what is wrong)."""
    try:
        chips = find_chips()
        if device >= len(chips):
            return "", f"--device {device} was asked for, but there are {len(chips)}, numbered from 0"
        return chosen or soc_version(the_chip(chips)), ""
    except SystemExit as error:
        return "", re.sub(r"^npu_info.py: ", "", str(error))


def cann_folders() -> List[str]:
    return [folder for folder in (os.environ.get("ASCEND_TOOLKIT_HOME", ""), *CANN_INFO)
            if folder and os.path.isdir(folder)]


def ascend_rows(soc: str, device: int) -> List[Row]:
    """What the ascend backend needs of the machine."""
    found, problem = chip(soc, device)
    folders = cann_folders()
    version_files = [path for folder in folders for path in [
        f"{folder}/version.cfg", *sorted(glob.glob(f"{folder}/*/ascend_toolkit_install.info"))]]
    cann = version_in(version_files)
    sources = [f"{os.path.dirname(folder)}/set_env.sh" for folder in folders
               if os.path.exists(f"{os.path.dirname(folder)}/set_env.sh")]
    source = f"source {(sources or ['/usr/local/Ascend/ascend-toolkit/set_env.sh'])[0]}"
    atc, bench, runtime = shutil.which("atc"), host_has("ais_bench"), host_has("aclruntime")
    driver = version_in([DRIVER_INFO])
    virtual = subprocess.run(["python3", "-c", "import sys; sys.exit(sys.prefix != sys.base_prefix)"],
                             stdin=subprocess.DEVNULL).returncode
    return [
        Row("ascend", "NPU (npu-smi)", bool(found), found or problem,
            "install the driver and firmware of the card, then: npu-smi info"),
        Row("", "driver", bool(driver), driver or "no version found"),
        Row("", "CANN", bool(cann), cann or "no version found"),
        Row("ascend", "atc", bool(atc), atc or "not on the PATH", source),
        Row("ascend", "ais_bench", bool(bench), bench or "python3 cannot import it",
            "pip3 install the ais_bench wheel of Ascend's tools for this Python"),
        Row("ascend", "aclruntime", bool(runtime), runtime or "python3 cannot import it",
            f"pip3 install the aclruntime wheel for this Python, then: {source}"),
        Row("ascend", "host's python3", not virtual,
            "a virtual environment, in which atc fails" if virtual else shutil.which("python3") or "", "deactivate"),
    ]


def path_rows(workdir: str) -> List[Row]:
    """What ais_bench's later versions ask of the folder that they read from and write to."""
    path = os.path.abspath(workdir)
    folder = path
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    wrong, mend = "", ""
    strange = sorted(set(SAFE_PATH.sub("", path)))
    if strange:
        wrong, mend = (f"has {', '.join(map(ascii, strange))}, but only letters, digits and _ / . - are accepted",
                       "--workdir with another path")
    elif os.path.islink(path):
        wrong, mend = "is a symbolic link", f"--workdir {os.path.realpath(path)}"
    elif folder == path:
        status = os.stat(path)
        if status.st_uid != os.getuid() and status.st_gid not in os.getgroups():
            wrong, mend = "belongs to another user", "--workdir with a folder of your own"
        elif stat.S_IMODE(status.st_mode) & 0o027:
            wrong, mend = f"has mode {stat.S_IMODE(status.st_mode):o}, but 750 at most is accepted", f"chmod 750 {path}"
    return [Row("ascend", "work folder", not wrong, f"{path} {wrong or 'fits the rules of ais_bench'}", mend)]


def count_images(folder: str) -> int:
    return sum(name.lower().endswith(SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def data_rows(data: str, checkpoint: str, workdir: str, img_size: int, uint8: bool) -> List[Row]:
    """Images, labels, checkpoint and the disk space for what will be made of them."""
    if not data:
        rows, images = [Row("both", "data", True, "the sample: 20 photos and a checkpoint, made by the first step")], 20
    else:
        folder = next((f"{data}/{name}" for name in ("val_union", "val") if os.path.isdir(f"{data}/{name}")), "")
        images = count_images(folder) if folder else 0
        labels = f"{data}/val_label.txt"
        rows = [Row("both", "images", images > 0,
                    f"{images} in {folder}" if folder else f"{data} has neither val_union/ nor val/",
                    f"put the images into {data}/val_union")]
        classes = bool(folder) and any(entry.is_dir() for entry in os.scandir(folder))
        if os.path.exists(labels):
            with open(labels, "rb") as file:
                count = sum(bool(line.strip()) for line in file)
            rows.append(Row("both", "labels", count > 0, f"{count} in {labels}", "one line per image: NAME INT"))
        else:
            rows.append(Row("both", "labels", classes, "from the class folders" if classes else f"no {labels}",
                            "one line per image: NAME INT"))
        path = checkpoint or f"{data}/model_best.pth.tar"
        rows.append(Row("both", "checkpoint", os.path.isfile(path), path if os.path.isfile(path) else f"no {path}",
                        "--checkpoint FILE"))
    folder = os.path.abspath(workdir)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    needed = images * 3 * img_size ** 2 * FILE_BYTES[uint8] + 6 * MODEL_BYTES
    free = shutil.disk_usage(folder).free
    rows.append(Row("both", "disk space", free >= needed,
                    f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for {images} images and the models",
                    "--workdir on another disk"))
    return rows


def python_rows() -> List[Row]:
    requirements = [os.path.join(ROOT, "requirements.txt")]
    suffix = "-%d.%d" % sys.version_info[:2] if os.environ.get("PYTHON") else ""
    there = finished(os.path.join(ROOT, ".venv" + suffix), requirements) or satisfied(requirements)
    timm = os.path.exists(os.path.join(ROOT, "pytorch-image-models", ".patched-with"))
    return [Row("", "Python packages", there, "all of requirements.txt" if there else "the first run makes .venv",
                "python3 scripts/setup_env.py"),
            Row("", "timm v0.4.5", timm, "patched, in pytorch-image-models" if timm else "the first run fetches it",
                "python3 scripts/timm_source.py")]


def choose(backend: str, rows: List[Row]) -> Tuple[str, str]:
    """(backend, why): auto takes ascend if npu-smi, atc and ais_bench are all there."""
    if backend != "auto":
        return backend, "as --backend says"
    missing = [row.item for row in rows if row.item in ("NPU (npu-smi)", "atc", "ais_bench") and not row.good]
    found: Optional[Row] = next((row for row in rows if row.item == "NPU (npu-smi)"), None)
    if missing:
        return "cpu", f"for ascend there is no {', no '.join(missing)}"
    return "ascend", f"{found.found if found else ''}, atc and ais_bench are there"


def print_table(rows: List[Row], backend: str) -> None:
    widths = [max(len(str(row[column])) for row in rows) for column in (0, 1)]
    for row in rows:
        state = "ok" if row.good else "missing" if row.backend else "-"
        mend = f"   → {row.mend}" if not row.good and row.mend else ""
        print(f"{row.backend or '-':<{max(widths[0], 7)}}  {row.item:<{widths[1]}}  {state:<7}  {row.found}{mend}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="print only the backend and why; refuse if it cannot run")
    parser.add_argument("--backend", choices=("auto", "ascend", "cpu"), default="auto")
    parser.add_argument("--workdir", default="./work")
    parser.add_argument("--data", default="", help="folder with val_union/ and val_label.txt (default: the sample)")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--soc-version", default="")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--uint8", action="store_true")
    arguments = parser.parse_args()
    rows = ([] if arguments.choose and arguments.backend == "cpu"
            else ascend_rows(arguments.soc_version, arguments.device))
    backend, why = choose(arguments.backend, rows)
    rows += path_rows(arguments.workdir)
    if not arguments.choose:
        rows += data_rows(arguments.data, arguments.checkpoint, arguments.workdir, arguments.img_size,
                          arguments.uint8) + python_rows()
        print_table(rows, backend)
    bad = [row for row in rows if not row.good and row.backend in ("both", backend)]
    if arguments.choose:
        if bad:
            raise SystemExit(f"pipeline.sh: the {backend} backend cannot run: {bad[0].item}: {bad[0].found}; "
                             f"{bad[0].mend}; `--check` shows all that is missing")
        print(f"{backend}: {why}")
    else:
        print(f"backend {backend} ({why}): " + (f"cannot run, {len(bad)} missing" if bad else "can run"))
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
