"""Hostile inputs: images, archives, checkpoints, ONNX files and labels, mutated from good ones.

A bad image costs only itself; every other one has the pixels that Pillow reads. Nothing that a file
holds is executed, and no file makes the program run out of memory or time.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from conftest import GOLDEN

from attacks import bed as ground
from attacks import trial
from attacks.bed import Bed
from attacks.trial import Outcome

MEMORY = 6 << 30  # bytes of addresses that a step may have; 1 GB is what its packages need
MUTATED = 8  # images in a try
Seeds = List[Tuple[str, bytes]]  # (suffix, content)


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    bed.restore()
    before = trial.snapshot(bed.outside)
    kinds = (images, archives, checkpoints, models, labels)
    kind: Callable[[Bed, random.Random], Tuple[str, Outcome]] = dice.choices(
        kinds, (5, 3, 3, 4, 3)
    )[0]
    what, outcome = kind(bed, dice)
    return what, ground.judge_outside(bed, before, outcome)


def limit() -> None:
    """Let this process have no more than MEMORY. In a child, after a fork."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def mutate(data: bytes, dice: random.Random) -> Tuple[bytes, str]:
    """Other bytes, made of good ones in one of the usual ways."""
    mutable, way = bytearray(data), dice.randrange(7)
    place = dice.randrange(max(1, len(mutable)))
    if way == 0:
        for _ in range(dice.choice((1, 2, 5, 20))):
            mutable[dice.randrange(len(mutable))] = dice.randrange(256)
        return bytes(mutable), "bytes changed"
    if way == 1:
        return bytes(mutable[:place]), f"cut at {place}"
    if way == 2:
        end = place + dice.randrange(1, 200)
        return bytes(mutable[:place] + mutable[end:]), f"bytes {place} to {end} missing"
    if way == 3:
        length = dice.choice((2, 4, 8))
        mutable[place : place + length] = dice.choice((b"\xff", b"\0", b"\x7f")) * length
        return bytes(mutable), f"{length} extreme bytes at {place}"
    if way == 4:
        start = dice.randrange(len(mutable))
        mutable[place:place] = mutable[start : start + 300]
        return bytes(mutable), "a part doubled"
    if way == 5:
        head = min(64, len(mutable))
        mutable[dice.randrange(head)] ^= 1 << dice.randrange(8)
        return bytes(mutable), "a bit of its beginning"
    return bytes(mutable) + bytes(dice.randrange(5000)), "zeros appended"


# ---- images --------------------------------------------------------------------------------------


def image_seeds() -> Seeds:
    """The odd images of the expected values, and one of each other format."""
    from pictures import pattern

    seeds = []
    for path in sorted((GOLDEN / "odd").iterdir()):
        if path.stat().st_size < 200_000:
            seeds.append((path.suffix.lower(), path.read_bytes()))
    for suffix, kind in (
        (".bmp", "BMP"),
        (".gif", "GIF"),
        (".ppm", "PPM"),
        (".tif", "TIFF"),
        (".webp", "WEBP"),
    ):
        buffer = io.BytesIO()
        pattern(70, 50).save(buffer, kind)
        seeds.append((suffix, buffer.getvalue()))
    for compression in ("tiff_lzw", "jpeg", "group4", "packbits", "tiff_adobe_deflate"):
        buffer = io.BytesIO()
        mode = "1" if compression == "group4" else "RGB"
        pattern(70, 50).convert(mode).save(buffer, "TIFF", compression=compression)
        seeds.append((".tiff", buffer.getvalue()))
    buffer = io.BytesIO()
    frames = [pattern(40, 40), pattern(30, 20)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return [*seeds, (".png", buffer.getvalue()), (".pgm", b"P5 30 20 65535\n" + bytes(1200))]


def images(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """Mutated images: each is bad by itself, or has Pillow's pixels."""
    folder, seeds = bed.here / "images", image_seeds()
    shutil.rmtree(str(folder))
    folder.mkdir()
    for number in range(MUTATED):
        suffix, content = dice.choice(seeds)
        for _ in range(dice.choice((1, 1, 2))):
            content, _ = mutate(content, dice)
        (folder / f"m{number}{dice.choice((suffix, suffix, '.jpg'))}").write_bytes(content)
    shutil.rmtree(str(bed.here / "prep"))
    step = ground.BY_NAME["preprocess"]
    step = step._replace(words=[*step.words, "--skip-bad", "--timeout", "20"])
    ended = bed.run(step, limit)
    outcome = trial.judge_end(ended)
    if outcome.kind == trial.SURVIVED:
        outcome = judge_pixels(bed, outcome)
    return f"{MUTATED} mutated images", outcome


def judge_pixels(bed: Bed, outcome: Outcome) -> Outcome:
    """Each .bin must have the pixels that Pillow and timm's transform give, computed here."""
    wanted = bed.folder / "pixels.json"

    def compute() -> int:
        wanted.write_text(json.dumps(expected_pixels(bed.here / "images")))
        return 0

    trial.fork(compute, bed.folder)
    expected = json.loads(wanted.read_text())
    made = {path.stem: trial.sha256(path) for path in (bed.here / "prep").glob("*.bin")}
    difference = trial.different(made, expected)
    return Outcome(trial.WRONG, f"pixels: {difference}") if difference else outcome


def expected_pixels(folder: Path) -> Dict[str, str]:
    """{stem: SHA-256 of the .bin} of the images in a folder that Pillow reads whole."""
    import hashlib
    import warnings

    import numpy as np
    from PIL import Image

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    expected = {}
    for path in sorted(folder.iterdir()):
        try:
            from common.data.pixels import MOST_PIXELS, known_formats

            formats = known_formats(path.suffix.lower())
            image: Any = Image.open(str(path), formats=formats)
            side = int(ground.SIDE / 0.875)
            width, height = image.size
            short, long = min(width, height), max(width, height)
            size = (
                (side, int(side * long / short))
                if width <= height
                else (int(side * long / short), side)
            )
            if max(width * height, size[0] * height, size[0] * size[1]) > MOST_PIXELS:
                continue
            image = image.convert("RGB")
            if short != side:  # in two passes, as timm's Pillow did it: Pillow 13 turns them round
                image = image.resize((size[0], height), Image.Resampling.BILINEAR)
                image = image.resize(size, Image.Resampling.BILINEAR)
            left = int(round((image.width - ground.SIDE) / 2.0))
            top = int(round((image.height - ground.SIDE) / 2.0))
            image = image.crop((left, top, left + ground.SIDE, top + ground.SIDE))
        except Exception:  # Pillow raises a dozen kinds for broken files
            continue
        planes = np.asarray(image).transpose(2, 0, 1).astype("<f4") / np.float32(255)
        expected[path.stem] = hashlib.sha256(np.ascontiguousarray(planes).tobytes()).hexdigest()
    return expected


# ---- archives ------------------------------------------------------------------------------------


def archives(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A mutated or hostile archive: unpacked into its folder, or refused by name."""
    folder = bed.here / "ILSVRC2012"
    shutil.rmtree(str(bed.here / "unpacked"))
    way = dice.choice(("mutated", "mutated", "link", "device", "climbing", "sparse", "parquet"))
    needed = ""  # what a refusal must name
    if way == "parquet":
        return parquet(bed, dice)
    path = folder / "ILSVRC2012_img_val.tar"
    if way == "mutated":
        content, how = mutate(path.read_bytes(), dice)
        path.write_bytes(content)
        way = f"mutated, {how}"
    else:
        needed = add_hostile(path, way, bed.outside)
    ended = bed.run(ground.BY_NAME["unpack"], limit)
    outcome = trial.judge_end(ended)
    if needed and outcome.kind in (trial.SURVIVED, trial.SENTENCE) and needed not in ended.err:
        outcome = Outcome(trial.WRONG, f"{needed} was dropped without a word: {ended.out[-300:]}")
    return f"archive: {way}", outcome


def add_hostile(path: Path, way: str, outside: Path) -> str:
    """Add a member to a tar file. Returns: its name, if the program must name it."""
    name = "ILSVRC2012_val_00000009.JPEG"
    with tarfile.open(str(path), "a") as archive:
        member = tarfile.TarInfo(name)
        if way == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(outside / "letter.txt")
        elif way == "device":
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 5
        elif way == "climbing":
            member.name = "../../../outside/" + name
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
            return ""
        else:
            member.size = 1 << 40
            member.type = tarfile.REGTYPE
            with contextlib.suppress(OSError):
                archive.addfile(member)
            return ""
        archive.addfile(member)
    return name


def parquet(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A mutated Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        raise trial.Skip("pyarrow is not installed") from None
    folder = bed.here / "ILSVRC2012"
    shutil.rmtree(str(folder))
    folder.mkdir()
    image = (bed.here / "images" / "i1.jpg").read_bytes()
    rows = {
        "image": [{"bytes": image, "path": f"ILSVRC2012_val_{n:08}.JPEG"} for n in range(1, 4)],
        "label": [1, 2, 3],
    }
    path = folder / "validation-00000-of-00001.parquet"
    source = bed.folder / "source.parquet"

    def write() -> int:
        writer.write_table(pyarrow.table(rows), str(source))
        return 0

    trial.fork(write, bed.folder)
    content, how = mutate(source.read_bytes(), dice)
    path.write_bytes(content)
    ended = bed.run(ground.BY_NAME["unpack"], limit)
    return f"Parquet: {how}", trial.judge_end(ended)


# ---- checkpoints ---------------------------------------------------------------------------------


class Evil:
    """Unpickled, it would run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def checkpoints(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A mutated checkpoint: refused, or the network that it holds."""
    path = bed.here / "model.pth"
    form = dice.choice(("zip", "legacy", "safetensors", "evil"))
    target = bed.outside / "executed"
    source = bed.folder / f"checkpoint.{form}"
    if not source.exists():
        trial.fork(lambda: save_checkpoint(path, source, form, target), bed.folder)
    name = "model.safetensors" if form == "safetensors" else "model.pth"
    content, how = source.read_bytes(), "as it is"
    if form != "evil":
        if form == "safetensors" and dice.random() < 0.6:
            content, how = mutate_header(content, dice)
        else:
            content, how = mutate_ends(content, dice)
    (bed.here / name).write_bytes(content)
    step = ground.BY_NAME["export"]
    step = step._replace(words=[name, *step.words[1:]])
    bed.remove_products(step)
    outcome = trial.judge_end(bed.run(step, limit))
    if form == "zip" and outcome.kind == trial.SURVIVED:
        outcome = judge_weights(bed, outcome)
    return f"checkpoint, {form}: {how}", outcome


def save_checkpoint(path: Path, target: Path, form: str, executed: Path) -> int:
    """Write the checkpoint at `path` in another form."""
    import torch

    held = torch.load(str(path), map_location="cpu")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(held["state_dict"], str(target))
    elif form == "legacy":
        torch.save(held, str(target), _use_new_zipfile_serialization=False)
    else:
        if form == "evil":
            held["args"] = Evil(executed)
        torch.save(held, str(target))
    return 0


def mutate_ends(content: bytes, dice: random.Random) -> Tuple[bytes, str]:
    """Mutate mostly the first or last kilobytes, where a file says what is in it."""
    choice, length = dice.random(), 4096
    if choice < 0.4:
        start, how = mutate(content[:length], dice)
        return start + content[length:], f"{how}, in its beginning"
    if choice < 0.7:
        end, how = mutate(content[-length:], dice)
        return content[:-length] + end, f"{how}, in its end"
    return mutate(content, dice)


def mutate_header(content: bytes, dice: random.Random) -> Tuple[bytes, str]:
    """Change a value of a safetensors header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = dice.choice(sorted(header))
    key = dice.choice(("dtype", "shape", "data_offsets"))
    value: Any = dice.choice(
        (None, -1, "F32", "I64", "BF16", [], [0, 0], [2**62, 2**62], [0, 2**63], [-1, 4], "x", {})
    )
    if name == "__metadata__":
        header[name] = value
    else:
        header[name][key] = value
    text = json.dumps(header).encode()
    length = dice.choice((len(text), len(text), len(text), 2**40, 3, 0))
    return struct.pack("<Q", length) + text + content[8 + length :], f"{name}.{key} = {value}"


def judge_weights(bed: Bed, outcome: Outcome) -> Outcome:
    """A zip file has checksums, so what is accepted has the weights that it had."""

    def weights(path: Path) -> Any:
        import onnx

        return [tensor.SerializeToString() for tensor in onnx.load(str(path)).graph.initializer]

    if weights(bed.here / "tresnet.onnx") != weights(bed.finished / "tresnet.onnx"):
        return Outcome(trial.WRONG, "other weights were exported")
    return outcome


# ---- ONNX ----------------------------------------------------------------------------------------


def models(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A mutated or hostile ONNX file, for each program that reads one."""
    path = bed.here / "net.onnx"
    way = dice.choice(("mutated", "mutated", "mutated", *HOSTILE))
    how: Optional[str] = ""
    if way == "mutated":
        content, how = mutate(path.read_bytes(), dice)
        path.write_bytes(content)
    else:
        trial.fork(lambda: make_hostile(path, way, bed.outside), bed.folder)
    names = ("infer", "predict", "quantise", "forecast", "speed")
    step = ground.BY_NAME[dice.choice(names)]
    return f"{step.name}: ONNX file: {way} {how}", trial.judge_end(bed.run(step, limit))


HOSTILE = (
    "external outside,external absolute,external link,external device,external beyond,"
    "huge constant,custom operator,cycle,two names,no input,negative shape,many opsets,"
    "deep graph,function"
).split(",")


def make_hostile(path: Path, way: str, outside: Path) -> int:
    """Make a hostile model of the good one at `path`."""
    import onnx
    from onnx import helper

    model = onnx.load(str(path))
    graph = model.graph
    if way.startswith("external"):
        put_outside(graph.initializer[0], path, way, outside)
    elif way == "huge constant":
        graph.initializer[0].dims[:] = [2**40, 2**20]
    elif way == "custom operator":
        graph.node[1].op_type, graph.node[1].domain = "Evil", "somebody"
    elif way == "cycle":
        graph.node[1].input[0] = graph.node[-1].output[0]
    elif way == "two names":
        graph.node[2].output[0] = graph.node[1].output[0]
    elif way == "no input":
        del graph.input[:]
    elif way == "negative shape":
        graph.input[0].type.tensor_type.shape.dim[2].dim_value = -32
    elif way == "many opsets":
        for version in (1, 99):
            model.opset_import.append(helper.make_opsetid("", version))
    elif way == "function":
        graph.node[1].attribute.append(helper.make_attribute("body", graph))
    else:
        inner = helper.make_graph([], "inner", [], [])
        for _ in range(200):
            node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
            inner = helper.make_graph([node], "inner", [], [])
            if len(inner.SerializeToString()) > 1 << 20:
                break
        graph.node.insert(0, helper.make_node("If", ["image"], ["z"], then_branch=inner))
    path.write_bytes(model.SerializeToString())
    return 0


def put_outside(tensor: Any, path: Path, way: str, outside: Path) -> None:
    """Let a weight's values be in another file than the model at `path`."""
    from onnx import TensorProto

    location = {
        "external outside": "../outside/letter.txt",
        "external absolute": str(outside / "letter.txt"),
        "external link": "weights.bin",
        "external device": "/dev/zero",
        "external beyond": "labels.txt",
    }[way]
    if way == "external link":
        os.symlink(str(outside / "letter.txt"), str(path.with_name("weights.bin")))
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


# ---- labels --------------------------------------------------------------------------------------


def labels(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """Mutated labels: refused, or the accuracy is that of the labels that the file holds."""
    path = bed.here / "labels.txt"
    good = path.read_bytes()
    way = dice.choice(("mutated", "mutated", "line", "nul", "utf-16", "returns", "real", "many"))
    content, how = good, ""
    if way == "mutated":
        content, how = mutate(good, dice)
    elif way == "line":
        content = good + b"x" * 10_000_000 + b" 1\n"
    elif way == "nul":
        place = dice.randrange(len(good))
        content = good[:place] + b"\0" * dice.choice((1, 1000)) + good[place:]
    elif way == "utf-16":
        content = good.decode().encode("utf-16")
    elif way == "returns":
        content = good.replace(b"\n", dice.choice((b"\r\n", b"\r", b"\x85", b"\n\n\n")))
    elif way == "many":
        content = good + b"".join(b"other%d.jpg %d\n" % (n, n % 10) for n in range(200_000))
    step = ground.BY_NAME["postprocess"]
    words = list(step.words)
    if way == "real":
        words[1] = "labels.json"
        lists, how = mutate(json.dumps([[1], [2, 3], []] * 20).encode(), dice)
        (bed.here / "labels.json").write_bytes(lists)
    path.write_bytes(content)
    ended = bed.run(step._replace(words=words), limit)
    outcome = trial.judge_end(ended)
    if outcome.kind == trial.SURVIVED and way != "real":
        outcome = judge_accuracy(bed, content, outcome)
    return f"labels: {way} {how}", outcome


def judge_accuracy(bed: Bed, content: bytes, outcome: Outcome) -> Outcome:
    """Top-1 as this file computes it from the labels' lines and the results."""
    import numpy as np

    classes: Dict[str, int] = {}
    for line in content.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n"):
        words = line.rsplit(None, 1)
        if len(words) == 2 and words[1].isdigit():
            classes[words[0].strip().rpartition(".")[0] or words[0].strip()] = int(words[1])
    hits = images = 0
    for path in sorted((bed.here / "result").iterdir()):
        stem = path.name[: -len("_0.npy")]
        if stem in classes:
            images += 1
            hits += int(np.load(str(path)).argmax()) == classes[stem]
    rows = json.loads((bed.here / "acc.json").read_text())["value"]
    figures = {row["key"]: row["value"] for row in rows}
    said = (int(figures["Number of images"]), float(figures["Top1 accuracy"].rstrip("%")))
    right = (images, 100.0 * hits / max(1, images))
    if said[0] != right[0] or abs(said[1] - right[1]) > 0.01:
        return Outcome(trial.WRONG, f"acc.json says {said}, the labels say {right}")
    return outcome
