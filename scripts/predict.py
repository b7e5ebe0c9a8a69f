#!/usr/bin/env python3
"""What a model sees in images: the five most likely classes of each, with their probabilities.

    python3 scripts/predict.py work/tresnet.onnx photo.jpg
    python3 scripts/predict.py work/tresnet_bs8.om ./photos 'more/*.png' --json > predictions.json

In:  MODEL, an .onnx file (it runs on the CPU) or an .om (on the card, by ais_bench).
     IMAGEs: files, folders of images, or patterns in quotes. They are prepared as the checkpoint
     says, by the same code as for the accuracy.
Out: printed; with --json as [{"image", "top": [{"class", "name", "probability"}]}]. An image that
     cannot be read is [{"image", "error"}].
Exit status: 0 good, 1 an image cannot be read (all others are answered) or the model does not run,
     2 wrong usage.
"""

import argparse
import contextlib
import glob
import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, record
from common.core.cli import Refusal, say, shown
from common.core.names import natural_key
from common.data import class_names, evaluation, images, prepared
from common.data.pixels import convert_file, reason
from common.model import onnx_file
from common.results import figures
from common.results.results import chunks
from common.results.work_files import REPORT

import numpy as np

AT_ONCE = 256  # images that are prepared: 150 MB of 224 pixels in a temporary folder
RUNNERS = {".onnx": "infer_onnx.py", ".om": "infer_om.py"}


# ---- what is asked for ---------------------------------------------------------------------------


def model_path(text: str) -> str:
    """argparse type: the path of a model that there is a runner for."""
    if os.path.splitext(options.path(text))[1] not in RUNNERS:
        raise argparse.ArgumentTypeError(
            f"a file that ends in .onnx or .om is expected, not {os.path.basename(text)!r}"
        )
    return text


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("model", metavar="MODEL", type=model_path, help="an .onnx or .om file")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=options.path,
        nargs="+",
        help="an image, a folder of images, or a pattern",
    )
    options.add(
        parser,
        "as_json",
        "class_names",
        "dtype",
        "device",
        "pixels",
        *options.EVALUATION,
        help={
            "class_names": "names of the classes (default: those of acc_report.json "
            "beside the model, or ImageNet's)",
            "dtype": "what an .om takes (default: uint8 if it was compiled with AIPP)",
        },
    )
    return options.parse(parser)


def find_all(words: List[str]) -> List[str]:
    """The images that the words name, each once. Raises: Refusal for a word that names nothing."""
    image_paths: Dict[str, None] = {}
    for word in words:
        if os.path.isdir(word):
            good, bad, _ = images.find_images(word)
            if "." in bad:
                raise Refusal(f"{shown(word)}: {bad['.']}")
            paths = [os.path.join(word, name) for name in sorted([*good, *bad], key=natural_key)]
        elif os.path.lexists(word):
            paths = [word]
        else:
            paths = sorted(filter(os.path.isfile, glob.glob(word, recursive=True)), key=natural_key)
        if not paths:
            problem = "there is nothing of that name"
            if os.path.isdir(word):
                problem = "the folder holds none"
            raise Refusal(
                f"{shown(word)} should be an image, a folder of images or a pattern for them, but "
                f"{problem}"
            )
        image_paths.update(dict.fromkeys(paths))
    return list(image_paths)


def choose_evaluation(arguments: argparse.Namespace) -> evaluation.Evaluation:
    """How images are prepared: as options say, or the model's checkpoint. Raises: Refusal."""
    model = arguments.model
    if not os.path.isfile(model):
        raise Refusal(
            f"there is no model {shown(model)}; make one: bash scripts/pipeline.sh leaves "
            "work/tresnet.onnx"
        )
    exported = evaluation.of_model(model)
    if exported is None and model.endswith(".onnx"):
        size = onnx_file.describe(model)["shape"][-1]
        exported = evaluation.of_fields({"img_size": size})
    elif exported is None:
        exported = evaluation.of_fields({})
        say(
            f"no record beside {shown(model)} says how its images are to be prepared; timm's way "
            "for TResNet is taken where no option says another"
        )
    chosen, contradictions = evaluation.resolve(
        evaluation.given(arguments), exported, f"the checkpoint of {shown(model)}"
    )
    for sentence in contradictions:
        say(sentence)
    return chosen


def dtype_of(arguments: argparse.Namespace) -> str:
    """float32, or uint8 for an .om that was compiled with AIPP."""
    command = (record.read(arguments.model).recipe.get("options") or {}).get("command") or ()
    with_aipp = any("--insert_op_conf=" in str(word) for word in command)
    return str(arguments.dtype or ("uint8" if with_aipp else "float32"))


def names_of(arguments: argparse.Namespace, classes: int) -> Optional[List[str]]:
    """What the classes are called.

    As the option says, as in the run that the model belongs to, or ImageNet's names.
    """
    background = evaluation.has_background(arguments.model) is not False
    if arguments.class_names:
        return class_names.read(arguments.class_names, classes, background=background)
    beside = os.path.join(os.path.dirname(arguments.model), REPORT.name)
    with contextlib.suppress(Refusal):
        names: Optional[List[str]] = REPORT.read(beside)["class_names"]
        if names and len(names) == classes:
            return names
    class_names.fetch(classes)
    return class_names.find(classes, background=background)


# ---- the work ------------------------------------------------------------------------------------


def prepare(
    paths: List[str], folder: str, how: evaluation.Evaluation, dtype: str
) -> Dict[str, str]:
    """Write PLACE.bin for each image that can be read; {path: why not} of the others."""
    bad = {}
    for place, path in enumerate(paths):
        try:
            converted, _ = convert_file(path, how, dtype)
        except Exception as error:  # Pillow raises a dozen kinds for broken files
            bad[path] = reason(error)
        else:
            files.write_whole(os.path.join(folder, f"{place}.bin"), converted.data)
            if converted.clipped:
                clipped = {"mode": converted.mode, "to": converted.clipped, "images": 1}
                say(f"{shown(path)}: {prepared.describe_clipped([clipped])[0]}")
    return bad


def infer(arguments: argparse.Namespace, folder: str) -> str:
    """Run the model over FOLDER/in by the program that infers for the accuracy.

    Returns the folder of the results.
    """
    suffix = os.path.splitext(arguments.model)[1]
    runner = os.path.join(os.path.dirname(os.path.abspath(__file__)), RUNNERS[suffix])
    command = [sys.executable, runner, "--model", arguments.model]
    command += ["--input", os.path.join(folder, "in"), "--output", folder]
    command += ["--output_dirname", "result", "--outfmt", "NPY"]
    if arguments.device is not None:
        command += ["--device", str(arguments.device)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
    sys.stderr.write(done.stderr.decode(errors="replace"))  # its warnings are the user's
    if done.returncode:
        raise Refusal(
            f"{RUNNERS[suffix]} failed with exit status {done.returncode} (see above); fix the "
            "problem and run the same command again"
        )
    return os.path.join(folder, "result")


def predict(arguments: argparse.Namespace, paths: List[str]) -> Iterator[Tuple[str, Any]]:
    """(path, its scores, or the reason why it could not be read) of each image in order.

    The scores are float [classes].
    """
    how, dtype = choose_evaluation(arguments), dtype_of(arguments)
    with progress.Bar("predicting", len(paths), "images") as bar:
        for start in range(0, len(paths), AT_ONCE):
            chunk = paths[start : start + AT_ONCE]
            with tempfile.TemporaryDirectory() as folder:
                os.mkdir(os.path.join(folder, "in"), 0o750)
                bad = prepare(chunk, os.path.join(folder, "in"), how, dtype)
                result = infer(arguments, folder) if len(bad) < len(chunk) else ""
                good = {
                    path: os.path.join(result, f"{place}_0.npy")
                    for place, path in enumerate(chunk)
                    if path not in bad
                }
                scores = next(chunks(good, list(good), AT_ONCE), ())
            answers: Dict[str, Any] = {**bad, **dict(zip(good, scores))}
            bar.advance(len(chunk))
            bar.erase()
            yield from ((path, answers[path]) for path in chunk)


def main() -> int:
    arguments = parse_arguments()
    names: Optional[List[str]] = None
    rows: List[Dict[str, Any]] = []
    for path, answer in predict(arguments, find_all(arguments.images)):
        if isinstance(answer, str):
            say(f"{shown(path)} cannot be read: {answer}")
            rows.append({"image": path, "error": answer})
            continue
        if names is None:
            numbers = [f"class {label}" for label in range(len(answer))]
            names = names_of(arguments, len(answer)) or numbers
        prediction = figures.summarise(np.asarray(answer)[None], [[0]])
        top = [
            {"class": int(label), "name": names[label], "probability": float(probability)}
            for label, probability in zip(prediction.top[0], prediction.probability[0])
        ]
        rows.append({"image": path, "top": top})
        if not arguments.json:
            print(shown(path))
            for row in top:
                print(f"  {100 * row['probability']:5.1f} %  {row['name']} ({row['class']})")
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    cli.run(main, "nothing was written")
