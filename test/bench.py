"""Measure every speed that README states, side by side with what a user would otherwise run.

    python3 test/bench.py                               # all contests, 20 to 30 minutes on 2 cores
    python3 test/bench.py preprocess postprocess --rounds 5 --json bench.json
    python3 test/bench.py chain --images 500 --workdir /fast/disk/bench

preprocess   TResNet_preprocess.py against a torch DataLoader of 8 workers, decoding alone, and one
             process of its own
postprocess  TResNet_postprocess.py against float() per value and argsort per image
inference    scripts/infer_onnx.py and ONNX Runtime against OpenVINO and PyTorch
int8         the network quantised by scripts/quantize_onnx.py against float32
chain        scripts/pipeline.sh on the CPU against the sum of its steps' own work

Out: a Markdown table and, with --json, all figures. The contestants are processes of their own that
take turns, one run each per round; a ratio is the median of the rounds' ratios, so that another
program's load hits all alike. The data (JPEGs cut from the sample photos, random results) are made
in --workdir, the same bytes every time, and kept for the next call.
Needs what requirements.txt and test/requirements.txt list.
"""

import contextlib
import filecmp
import io
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from importlib import util
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "scripts")]
from common.core import cli, options, recipe  # noqa: E402
from common.core.cli import Refusal  # noqa: E402
from common.core.files import write_whole  # noqa: E402
from common.data.evaluation import DEFAULT  # noqa: E402
from common.data.pixels import fast_path  # noqa: E402
from common.model import operators  # noqa: E402

CORES = len(os.sched_getaffinity(0))
CLASSES = 1000
BATCH = 8  # of the inference contests
INFERENCE_IMAGES = 160  # per run: 20 batches
CALIBRATION_IMAGES = 100
TORCH_BATCHES = (1, 8, 16, 32)  # PyTorch runs the fastest of them

# (width, height, gray) of every 50 images: mostly 500×375 as in ImageNet, and 110 KB on average as
# there.
SIZES = (
    [(500, 375, False)] * 35
    + [(375, 500, False)] * 6
    + [(500, 333, False)] * 3
    + [(500, 500, False)] * 2
    + [(500, 375, True)] * 2
    + [(1024, 768, False), (1600, 1200, False)]
)
FILE_SIZE = 100_000  # bytes that a 500×375 photo should have
# Pixels; larger images are put together from pieces of several photos, to be as detailed.
TILE = 500


class Ratio(NamedTuple):
    """How many times as fast `ours` is as `rival`, in each round."""

    ours: str
    rival: str
    values: List[float]
    goal: Optional[float]


class Contest(NamedTuple):
    """All figures of one contest. runs: {contestant: [seconds or images/s per round]}."""

    unit: str
    runs: Dict[str, List[float]]
    ratios: List[Ratio]
    notes: List[str]


# ---- data ----------------------------------------------------------------------------------------


def encode(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def quality_for(photo: Image.Image) -> int:
    """The JPEG quality at which the middle 500×375 pixels of a photo come nearest to FILE_SIZE
    bytes.
    """
    left, top = (photo.width - 500) // 2, (photo.height - 375) // 2
    middle = photo.crop((left, top, left + 500, top + 375))
    return min(range(60, 101, 2), key=lambda quality: abs(len(encode(middle, quality)) - FILE_SIZE))


def make_image(
    index: int, photos: Sequence[Image.Image], qualities: Sequence[int]
) -> Tuple[bytes, int]:
    """(JPEG file, index of the photo that it shows or that is at its top left) of image `index`,
    which alone decides.
    """
    chance = random.Random(index)
    width, height, gray = SIZES[index % len(SIZES)]
    image = Image.new("RGB", (width, height))
    shown = []
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            shown.append(chance.randrange(len(photos)))
            photo = photos[shown[-1]]
            side = chance.randint(480, min(photo.size))
            x, y = chance.randint(0, photo.width - side), chance.randint(0, photo.height - side)
            image.paste(
                photo.resize((TILE, TILE), Image.Resampling.BICUBIC, (x, y, x + side, y + side)),
                (left, top),
            )
    return encode(image.convert("L") if gray else image, qualities[shown[0]]), shown[0]


def make_images(folder: str, count: int, sample: str) -> str:
    """Make FOLDER/val_union/*.jpg, whose path is returned, and FOLDER/val_label.txt from a sample
    data set's photos.
    """
    target, labels_path = os.path.join(folder, "val_union"), os.path.join(folder, "val_label.txt")
    if os.path.exists(labels_path):  # written last, so the images are whole where it stands
        return target
    os.makedirs(target, exist_ok=True)
    with open(os.path.join(sample, "val_label.txt"), encoding="ascii") as file:
        labels = [line.split() for line in file]
    photos = [
        Image.open(os.path.join(sample, "val_union", name)).convert("RGB") for name, _ in labels
    ]
    qualities = [quality_for(photo) for photo in photos]
    lines = []
    for index in range(count):
        data, shown = make_image(index, photos, qualities)
        write_whole(os.path.join(target, f"bench_{index:05}.jpg"), data)
        lines.append(f"bench_{index:05}.jpg {labels[shown][1]}\n")
    write_whole(labels_path, "".join(lines).encode())
    return target


def make_results(folder: str, count: int) -> Tuple[str, str]:
    """Make `count` TXT results as ais_bench writes them, and labels; returns (result folder, labels
    file).
    """
    result, labels_path = os.path.join(folder, "result"), os.path.join(folder, "val_label.txt")
    if os.path.exists(labels_path):
        return result, labels_path
    os.makedirs(result, exist_ok=True)
    generator = np.random.RandomState(0)
    lines = []
    for index in range(count):
        scores = generator.normal(0, 3, CLASSES)
        # Some Top-1, more Top-5, some neither.
        label = int(scores.argsort()[-1 - min(int(generator.exponential(3)), 9)])
        write_whole(
            os.path.join(result, f"image_{index:05}_0.txt"),
            ("%f " * CLASSES % tuple(scores)).encode() + b"\n",
        )
        lines.append(f"image_{index:05}.JPEG {label}\n")
    write_whole(labels_path, "".join(lines).encode())
    return result, labels_path


# ---- the rivals, each as a user would write it ---------------------------------------------------


class Images:
    """A data set for torch's DataLoader: ([3, 224, 224] float32 in 0…1, name) of each image, by
    Pillow alone.
    """

    def __init__(self, folder: str) -> None:
        self.paths = sorted(entry.path for entry in os.scandir(folder))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tuple[np.ndarray, str]:
        path = self.paths[index]
        with Image.open(path) as image:
            image = image.convert("RGB")
        width, height = image.size
        size = (
            (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
        )
        if min(width, height) != 256:
            image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = int(round((image.width - 224) / 2.0)), int(round((image.height - 224) / 2.0))
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
        return pixels.transpose(2, 0, 1).astype(np.float32) / 255, os.path.splitext(
            os.path.basename(path)
        )[0]


def rival_dataloader(source: str, target: str) -> None:
    """Preprocess with a torch DataLoader; prints the seconds without Python's and torch's start."""
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    os.makedirs(target, exist_ok=True)
    for images, names in DataLoader(Images(source), batch_size=64, num_workers=8):  # type: ignore[arg-type]
        for image, name in zip(images, names):
            image.numpy().tofile(os.path.join(target, name + ".bin"))
    print(time.perf_counter() - start)


def decode(path: str) -> None:
    with Image.open(path) as image:
        image.load()


def rival_decode(source: str) -> None:
    """Decode all images with Pillow, one process per core, and throw the pixels away."""
    start = time.perf_counter()
    with multiprocessing.Pool(CORES) as pool:
        pool.map(decode, Images(source).paths, chunksize=32)
    print(time.perf_counter() - start)


def rival_postprocess(result: str, labels_path: str) -> None:
    """Count Top-1 … Top-5 hits in TXT results, file by file; prints the counts."""
    labels = {}
    with open(labels_path, encoding="utf-8") as file:
        for line in file:
            name, label = line.split()
            labels[name.split(".")[0]] = int(label)
    hits = np.zeros(5, np.int64)
    for name in os.listdir(result):
        with open(os.path.join(result, name), encoding="utf-8") as file:
            for line in file:
                scores = np.array([float(value) for value in line.split()])
                best = np.argsort(-scores, kind="stable")[:5]
                hits += np.cumsum(best == labels[name.rsplit("_", 1)[0]])
    print(json.dumps(hits.tolist()))


def load_onnxruntime(model: str) -> Tuple[int, Callable[[np.ndarray], np.ndarray]]:
    session = operators.session(model)
    return BATCH, lambda images: session.run(None, {"image": images})[0]


def load_openvino(model: str) -> Tuple[int, Callable[[np.ndarray], np.ndarray]]:
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({"image": [BATCH, 3, 224, 224]})
    compiled = core.compile_model(
        network,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": CORES,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    return BATCH, lambda images: request.infer({0: images})[0]


def load_torch(checkpoint: str) -> Tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """PyTorch, channels last, at the fastest of TORCH_BATCHES."""
    from common.model.checkpoint import find_state_dict, load_checkpoint
    from common.model.network import load_network, recognise

    import torch

    torch.set_num_threads(CORES)
    tensors = find_state_dict(load_checkpoint(checkpoint), checkpoint).tensors
    network = load_network(tensors, checkpoint, recognise(tensors, checkpoint, None, None, None))
    network = network.to(memory_format=torch.channels_last)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(
                torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            ).numpy()

    def seconds_per_image(batch: int) -> float:
        images = np.random.RandomState(0).uniform(0, 1, (batch, 3, 224, 224)).astype(np.float32)
        run(images)
        return min(elapsed(run, images) for _ in range(3)) / batch

    return min(TORCH_BATCHES, key=seconds_per_image), run


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino, "torch": load_torch}


def rival_infer(runtime: str, model: str, prepared: str) -> None:
    """Load a model and all inputs; for each line on stdin, infer them all, and print the
    images/s.
    """
    batch, run = LOADERS[runtime](model)
    paths = sorted(entry.path for entry in os.scandir(prepared) if entry.name.endswith(".bin"))
    images = np.stack([np.fromfile(path, "<f4").reshape(3, 224, 224) for path in paths])
    batches = [images[first : first + batch] for first in range(0, len(images) - batch + 1, batch)]
    run(batches[0])
    print(json.dumps({"batch": batch}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for some in batches:
            run(some)
        print(len(batches) * batch / (time.perf_counter() - start), flush=True)


def rival_evaluate(result: str, labels_path: str, prepared: str) -> None:
    """The work of TResNet_postprocess.py without Python's start; prints its seconds."""
    from TResNet_postprocess import evaluate

    print(elapsed(evaluate, result, labels_path, prepared, CORES))


RIVALS = {
    "dataloader": rival_dataloader,
    "decode": rival_decode,
    "postprocess": rival_postprocess,
    "infer": rival_infer,
    "evaluate": rival_evaluate,
}


# ---- measuring -----------------------------------------------------------------------------------


def elapsed(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def script(name: str, *arguments: str) -> List[str]:
    return [sys.executable, os.path.join(ROOT, name), *arguments]


def rival(name: str, *arguments: str) -> List[str]:
    return script(os.path.join("test", "bench.py"), "--rival", name, *arguments)


def call(command: List[str]) -> Tuple[float, str]:
    """Run a contestant to its end; (seconds, what it printed). Raises: Refusal with its own words
    if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise Refusal(
            f"{' '.join(command)} failed with exit status {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()[-500:]}"
        )
    return seconds, done.stdout.decode(errors="replace")


def images_per_second(printed: str) -> float:
    """The figure that infer_onnx.py prints for reading, inference and writing together, without the
    model's loading.
    """
    return float(re.findall(r"([0-9.]+) images/s", printed)[0])


@contextlib.contextmanager
def server(
    runtime: str, model: str, prepared: str
) -> Iterator[Tuple[Dict[str, Any], Callable[[], float]]]:
    """A rival_infer process that waits: (what it says of itself, a function for one run that
    returns its images/s).
    """
    child = subprocess.Popen(
        rival("infer", runtime, model, prepared),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
        bufsize=1,
        cwd=ROOT,
    )
    assert child.stdin and child.stdout

    def answer() -> Any:
        line = child.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise Refusal(
                f"the contestant {runtime} ended with exit status {child.wait()} (see above)"
            )
        return json.loads(line)

    def run() -> float:
        child.stdin.write("run\n")  # type: ignore[union-attr]
        return answer()

    try:
        yield answer(), run
    finally:
        child.kill()
        child.wait()


def take_turns(
    contestants: Dict[str, Callable[[], float]], rounds: int, contest: str
) -> Dict[str, List[float]]:
    """{contestant: [figure per round]}.

    Each round begins with another contestant, so that none always follows the same.
    """
    runs = {name: [] for name in contestants}  # type: Dict[str, List[float]]
    for number in range(rounds):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            runs[name].append(contestants[name]())
            print(
                f"{contest}, round {number + 1} of {rounds}: {name}: {runs[name][-1]:.2f}",
                file=sys.stderr,
            )
    return runs


def times_as_fast(
    runs: Dict[str, List[float]], ours: str, other: str, goal: Optional[float], seconds: bool
) -> Ratio:
    pairs = zip(runs[other], runs[ours]) if seconds else zip(runs[ours], runs[other])
    return Ratio(ours, other, [a / b for a, b in pairs], goal)


# ---- contests ------------------------------------------------------------------------------------


def photos(workdir: str) -> str:
    """The sample photos and their labels."""
    call(script("scripts/make_sample.py", os.path.join(workdir, "sample")))
    return os.path.join(workdir, "sample")


def exported(workdir: str) -> Tuple[str, str]:
    """(checkpoint, ONNX file) of the sample network."""
    checkpoint, model = (
        os.path.join(workdir, "sample", "model_best.pth.tar"),
        os.path.join(workdir, "tresnet.onnx"),
    )
    photos(workdir)
    call(script("TResNet_pth2onnx.py", checkpoint, model))
    return checkpoint, model


def prepared_images(workdir: str, count: int) -> str:
    """Folder of `count` prepared images, all of them whole batches."""
    prepared = os.path.join(workdir, f"prepared-{count}")
    images = make_images(os.path.join(workdir, f"images-{count}"), count, photos(workdir))
    call(script("TResNet_preprocess.py", images, prepared))
    return prepared


def same_files(one: str, other: str) -> int:
    """How many .bin files two folders hold, all equal. Raises: Refusal if any differs."""
    names = {name for name in os.listdir(one) + os.listdir(other) if name.endswith(".bin")}
    equal, *others = filecmp.cmpfiles(one, other, names, shallow=False)
    if len(equal) < max(1, len(names)):
        raise Refusal(
            f"{len(names) - len(equal)} of {len(names)} files differ between {one} and {other}, "
            f"such as {sorted(sum(others, []))[:3]}; times of different work cannot be compared"
        )
    return len(equal)


# {contestant: how many times as fast TResNet_preprocess.py should be}
PREPROCESS_GOALS = {
    "torch DataLoader, 8 workers": 2.5,
    "torch DataLoader, its start not counted": None,
    "decoding alone (Pillow)": 0.6,
    "the same with one process": None,
}


def preprocess(workdir: str, rounds: int, count: int) -> Contest:
    source = make_images(os.path.join(workdir, f"images-{count}"), count, photos(workdir))
    made = {name: os.path.join(workdir, "made-" + name) for name in ("ours", "dataloader")}
    emptied = os.path.join(workdir, "emptied")
    without_start = []  # type: List[float]

    def clear() -> None:
        """Free the disk. Files are emptied and put aside, because ext4 takes 0.3 ms to make a file
        while it has to step over thousands that were deleted in the last minutes; users seldom
        begin by deleting thousands."""
        for folder in filter(os.path.isdir, made.values()):
            for entry in os.scandir(folder):
                os.truncate(entry.path, 0)
            os.makedirs(emptied, exist_ok=True)
            os.rename(folder, os.path.join(emptied, str(len(os.listdir(emptied)))))
        os.sync()  # nobody pays for another's writing

    def ours(*options: str) -> float:
        clear()
        return call(script("TResNet_preprocess.py", source, made["ours"], *options))[0]

    def dataloader() -> float:
        clear()
        seconds, printed = call(rival("dataloader", source, made["dataloader"]))
        without_start.append(float(printed))
        return seconds

    ours(), dataloader()  # compiles, fills the page cache
    without_start.clear()
    equal = same_files(*made.values())
    runs = take_turns(
        {
            "TResNet_preprocess.py": ours,
            "torch DataLoader, 8 workers": dataloader,
            "decoding alone (Pillow)": lambda: call(rival("decode", source))[0],
            "the same with one process": lambda: ours("-j", "1"),
        },
        rounds,
        "preprocess",
    )
    runs["torch DataLoader, its start not counted"] = without_start
    clear()
    shutil.rmtree(emptied)
    size = statistics.mean(entry.stat().st_size for entry in os.scandir(source))
    return Contest(
        "s",
        runs,
        [
            times_as_fast(runs, "TResNet_preprocess.py", name, goal, True)
            for name, goal in PREPROCESS_GOALS.items()
        ],
        [
            f"{count} JPEGs of {size / 1000:.0f} KB on average; "
            f"the {equal} files of both are equal byte for byte",
            describe_fast_path(),
        ],
    )


def describe_fast_path() -> str:
    try:
        fast_path(DEFAULT, "float32")
    except RuntimeError as error:
        return f"the fast path is not used: {error}"
    return "the fast path is used"


def postprocess(workdir: str, rounds: int, count: int) -> Contest:
    result, labels = make_results(os.path.join(workdir, f"results-{count}"), count)
    command = script("TResNet_postprocess.py", result, labels, workdir, "bench_acc.json")
    plain = rival("postprocess", result, labels)
    call(command)
    with open(os.path.join(workdir, "bench_acc_report.json"), encoding="utf-8") as file:
        hits = json.load(file)["hits"]
    expected = json.loads(call(plain)[1])
    if hits != expected:
        raise Refusal(
            f"TResNet_postprocess.py counts {hits} hits, the plain implementation {expected}; "
            "one of them is wrong"
        )
    runs = take_turns(
        {
            "TResNet_postprocess.py": lambda: call(command)[0],
            "float() and argsort": lambda: call(plain)[0],
        },
        rounds,
        "postprocess",
    )
    return Contest(
        "s",
        runs,
        [times_as_fast(runs, "TResNet_postprocess.py", "float() and argsort", 12, True)],
        [
            f"{count} results of {CLASSES} values; "
            f"both count {', '.join(map(str, hits))} hits for Top-1 to Top-5"
        ],
    )


def runner(model: str, prepared: str, workdir: str, name: str) -> Callable[[], float]:
    command = script(
        "scripts/infer_onnx.py",
        "--model",
        model,
        "--input",
        prepared,
        "--output",
        workdir,
        "--output_dirname",
        name,
        "--outfmt",
        "TXT",
        "--batchsize",
        str(BATCH),
        "--force",
    )
    return lambda: images_per_second(call(command)[1])


def inference(workdir: str, rounds: int, count: int) -> Contest:
    checkpoint, model = exported(workdir)
    prepared = prepared_images(workdir, INFERENCE_IMAGES)
    with contextlib.ExitStack() as stack:
        contestants = {"infer_onnx.py": runner(model, prepared, workdir, "result_bench")}
        batches = {}
        for name, runtime, file in (
            ("ONNX Runtime", "onnxruntime", model),
            ("OpenVINO", "openvino", model),
            ("PyTorch", "torch", checkpoint),
        ):
            if runtime == "openvino" and not util.find_spec("openvino"):
                continue
            about, contestants[name] = stack.enter_context(server(runtime, file, prepared))
            batches[name] = about["batch"]
        runs = take_turns(contestants, rounds, "inference")
    ratios = [
        ("infer_onnx.py", "ONNX Runtime", 0.95),
        ("ONNX Runtime", "OpenVINO", 0.95),
        ("ONNX Runtime", "PyTorch", 1.2),
    ]
    measured = [
        times_as_fast(runs, ours, other, goal, False)
        for ours, other, goal in ratios
        if other in runs
    ]
    return Contest(
        "images/s",
        runs,
        measured,
        [
            f"TResNet-M, float32, {INFERENCE_IMAGES} images, {CORES} threads each; infer_onnx.py "
            "reads and writes files, the others have all in memory",
            "batch: "
            + ", ".join(f"{name} {batch}" for name, batch in batches.items())
            + "; PyTorch channels-last at its fastest batch",
        ]
        + ([] if "OpenVINO" in runs else ["OpenVINO is not installed here and was left out"]),
    )


def int8(workdir: str, rounds: int, count: int) -> Contest:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if not re.search(r"\b(avx512_vnni|avx_vnni)\b", file.read()):
            return Contest(
                "images/s",
                {},
                [],
                ["skipped: this CPU has no VNNI, the 8-bit dot products that int8 is for"],
            )
    _, model = exported(workdir)
    prepared = prepared_images(workdir, INFERENCE_IMAGES)
    quantized = os.path.join(workdir, "tresnet_int8.onnx")
    call(
        script(
            "scripts/quantize_onnx.py",
            model,
            quantized,
            "--calibrate",
            prepared,
            "--images",
            str(CALIBRATION_IMAGES),
        )
    )
    originals = os.path.join(workdir, "prepared-sample")
    call(script("TResNet_preprocess.py", os.path.join(workdir, "sample", "val_union"), originals))
    (
        runner(model, originals, workdir, "agreement_float32")(),
        runner(quantized, originals, workdir, "agreement_int8")(),
    )
    comparison = os.path.join(workdir, "agreement.json")
    call(
        script(
            "scripts/compare_results.py",
            os.path.join(workdir, "agreement_float32"),
            os.path.join(workdir, "agreement_int8"),
            "--json",
            comparison,
        )
    )
    with open(comparison, encoding="utf-8") as file:
        compared = json.load(file)
    with server("onnxruntime", model, prepared) as (_, bare), server(
        "onnxruntime", quantized, prepared
    ) as (_, bare_int8):
        runs = take_turns(
            {
                "infer_onnx.py, int8": runner(quantized, prepared, workdir, "result_int8"),
                "infer_onnx.py, float32": runner(model, prepared, workdir, "result_bench"),
                "ONNX Runtime, int8": bare_int8,
                "ONNX Runtime, float32": bare,
            },
            rounds,
            "int8",
        )
    names = list(runs)
    ratios = [
        times_as_fast(runs, names[0], names[1], 2.7, False),
        times_as_fast(runs, names[2], names[3], None, False),
    ]
    return Contest(
        "images/s",
        runs,
        ratios,
        [
            f"calibrated on {CALIBRATION_IMAGES} of the prepared images; on the "
            f"{compared['images']} whole sample photos int8 and float32 agree in "
            f"{compared['top1_agreement']:.1f} % of the Top-1, "
            f"cosine similarity {compared['cosine']['min']:.4f} at least"
        ],
    )


def timed_pipeline(command: List[str]) -> Tuple[float, Dict[str, float], str]:
    """Run pipeline.sh; (seconds, {step: seconds between its header and the next}, what it
    printed).
    """
    start = began = time.perf_counter()
    steps, step, printed = {}, "Set-up", []  # type: Dict[str, float], str, List[str]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        errors="replace",
    ) as child:
        assert child.stdout
        for line in child.stdout:
            printed.append(line)
            header = re.fullmatch(r"== ([\w ]+?)(?: \(\d+ s\))? ==\n", line)
            if header:
                now = time.perf_counter()
                steps[step] = now - began
                step, began = header.group(1), now
    steps[step] = time.perf_counter() - began
    if child.returncode:
        raise Refusal(
            f"{' '.join(command)} failed with exit status {child.returncode}: "
            f"{''.join(printed)[-500:]}"
        )
    return time.perf_counter() - start, steps, "".join(printed)


def own_work(data: str, work: str, printed: str) -> Dict[str, float]:
    """{step: seconds that its own work takes} of a run of the pipeline, which printed this."""
    with open(os.path.join(work, "result_summary.json"), encoding="utf-8") as file:
        in_model = sum(json.load(file)["npu_compute_time_list"]) / 1000
    paths = [os.path.join(work, "result"), os.path.join(data, "val_label.txt")]
    counting = call(rival("evaluate", *paths, os.path.join(work, "prep_dataset")))[1]
    return {
        "Preprocess": float(re.findall(r" made in ([0-9.]+) s", printed)[0]),
        "Export": float(re.findall(r" MB in ([0-9.]+) s", printed)[0]),
        "Inference": in_model,
        "Accuracy": float(counting),
    }


def chain(workdir: str, rounds: int, count: int) -> Contest:
    make_images(os.path.join(workdir, f"images-{count}"), count, photos(workdir))
    data, work = os.path.join(workdir, f"images-{count}"), os.path.join(workdir, "chain")
    checkpoint, _ = exported(workdir)
    pipeline = os.path.join(ROOT, "scripts", "pipeline.sh")
    command = ["bash", pipeline, "--backend", "cpu", "--data", data]
    command += ["--checkpoint", checkpoint, "--workdir", work]
    runs = {}  # type: Dict[str, List[float]]

    def record(name: str, seconds: float) -> None:
        runs.setdefault(name, []).append(seconds)

    for number in range(rounds):
        shutil.rmtree(work, ignore_errors=True)
        os.sync()
        wall, steps, printed = timed_pipeline(command)
        ideal = own_work(data, work, printed)
        record("pipeline.sh", wall)
        record("its steps' own work", sum(ideal.values()))
        for step, seconds in steps.items():
            record(f"- {step}", seconds)
            if step in ideal:
                record(f"- {step}: own work", ideal[step])
        print(
            f"chain, round {number + 1} of {rounds}: {wall:.1f} s, "
            f"{sum(ideal.values()):.1f} s of them work",
            file=sys.stderr,
        )
    shutil.rmtree(work, ignore_errors=True)
    took = Ratio(
        "pipeline.sh", "its steps' own work", [a / b for a, b in zip(*list(runs.values())[:2])], 1.1
    )
    return Contest(
        "s",
        runs,
        [took],
        [
            f"{count} images; own work: what each step times after its imports (preprocess, export "
            "with its check, counting), and the time inside ONNX Runtime for the inference; the "
            "ratio is time taken to work, so less is better"
        ],
    )


CONTESTS = {
    "preprocess": preprocess,
    "postprocess": postprocess,
    "inference": inference,
    "int8": int8,
    "chain": chain,
}
AT_MOST = ("chain",)  # contests whose goal is an upper limit


# ---- what is said about it -----------------------------------------------------------------------


def machine() -> Dict[str, Any]:
    """CPU, cores and versions."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        names = re.findall(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    found = recipe.versions(("torch", "onnxruntime", "openvino", "numpy", "Pillow", "simplejpeg"))
    versions = {
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": CORES,
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "versions": versions,
    }


def cpu_seconds() -> Tuple[float, float]:
    """CPU time so far: (of all programs on this machine, of this one and the contestants that have
    ended).
    """
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    times = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), sum(times[:4])


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f}…{max(values):.2f}"


def met(contest: str, ratio: Ratio) -> Optional[bool]:
    if ratio.goal is None:
        return None
    value = statistics.median(ratio.values)
    return value <= ratio.goal if contest in AT_MOST else value >= ratio.goal


def table(rows: List[List[str]]) -> str:
    """A Markdown table whose columns are also aligned as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def show(results: Dict[str, Contest], about: Dict[str, Any]) -> None:
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        + "\n"
    )
    figures, ratios, notes = (
        [["contest", "contestant", "median", "spread", "unit"]],
        [["contest", "ratio", "median", "spread", "goal", "met"]],
        [],
    )
    for name, contest in results.items():
        figures += [
            [name, who, f"{statistics.median(values):.2f}", spread(values), contest.unit]
            for who, values in contest.runs.items()
        ]
        sign = "≤" if name in AT_MOST else "≥"
        ratios += [
            [
                name,
                f"{ratio.ours} : {ratio.rival}",
                f"{statistics.median(ratio.values):.2f}",
                spread(ratio.values),
                f"{sign} {ratio.goal}" if ratio.goal else "",
                {True: "yes", False: "no", None: ""}[met(name, ratio)],
            ]
            for ratio in contest.ratios
        ]
        notes += [f"- {name}: {note}" for note in contest.notes]
    print(table(figures) + "\n\n" + table(ratios) + "\n\n" + "\n".join(notes))


def spread_of(values: List[float]) -> Dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def contest_as_json(name: str, contest: Contest) -> Dict[str, Any]:
    ratios = [
        {
            "ours": ratio.ours,
            "rival": ratio.rival,
            **spread_of(ratio.values),
            "goal": ratio.goal,
            "met": met(name, ratio),
        }
        for ratio in contest.ratios
    ]
    contestants = {
        contestant: {**spread_of(values), "runs": values}
        for contestant, values in contest.runs.items()
    }
    return {
        "unit": contest.unit,
        "notes": contest.notes,
        "contestants": contestants,
        "ratios": ratios,
    }


def as_json(results: Dict[str, Contest], about: Dict[str, Any], rounds: int, count: int) -> bytes:
    contests = {name: contest_as_json(name, contest) for name, contest in results.items()}
    figures = {"machine": about, "rounds": rounds, "images": count, "contests": contests}
    return json.dumps(figures, indent=2).encode() + b"\n"


def main() -> None:
    if sys.argv[1:2] == ["--rival"]:  # how this file starts its own contestants
        RIVALS[sys.argv[2]](*sys.argv[3:])  # type: ignore[operator]
        return
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("contests", nargs="*", metavar="contest", help=f"of {', '.join(CONTESTS)} (default: all)")
    add(
        "--rounds",
        type=options.integer(1),
        default=5,
        help="runs of each contestant (default: %(default)s)",
    )
    add(
        "--images",
        type=options.integer(1),
        default=2000,
        help="JPEGs of preprocess and chain (default: %(default)s)",
    )
    add(
        "--results",
        type=options.integer(1),
        default=50_000,
        help="result files of postprocess (default: %(default)s)",
    )
    add(
        "--workdir",
        type=options.path,
        default=os.path.join(ROOT, "work", "bench"),
        help="for the data, 4 GB (default: work/bench)",
    )
    add("--json", type=options.path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.contests if name not in CONTESTS]
    if unknown:
        parser.error(f"there is no contest {unknown[0]!r}; there are {', '.join(CONTESTS)}")
    workdir = os.path.abspath(arguments.workdir)
    os.makedirs(workdir, exist_ok=True)
    about, results = machine(), {}
    for name in arguments.contests or CONTESTS:
        before = cpu_seconds()
        files = arguments.results if name == "postprocess" else arguments.images
        results[name] = CONTESTS[name](workdir, arguments.rounds, files)
        everyone, we = (b - a for a, b in zip(before, cpu_seconds()))
        results[name].notes.append(
            f"other programs took {100 * max(0.0, 1 - we / max(everyone, 1e-9)):.0f} % "
            "of the CPU time that was spent meanwhile"
        )
    show(results, about)
    if arguments.json:
        write_whole(arguments.json, as_json(results, about, arguments.rounds, arguments.images))


if __name__ == "__main__":
    cli.run(main, "the data stay for the next call")
