"""A work folder of somebody else: records, JSON files and products that want to do harm.

Every field of every JSON file and of every row of every record gets another value; rows get their
checksum as the program writes it. Or a file is replaced by a link to somebody's file, a hard link,
a FIFO, a device, a folder, or a file of another size. Files outside the folder are compared.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, List, Tuple, Union

from attacks import bed as ground
from attacks import trial
from attacks.bed import Bed
from attacks.trial import Outcome, Step

Keys = List[Union[str, int]]  # the way to a value in JSON
# Values that replace one of any type.
TYPES: List[Any] = [None, True, -1, 0, 1.5, "", "text", [], {}, [[]], {"a": []}, ["a", "b"]]
HUGE: List[Any] = [2**63, -(2**70), 10**400, 1e308, float("nan"), float("inf"), "x" * 100_000]
DEEP = "nested 2,000 lists deep"  # stands for such a value until it is written


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    bed.restore()
    step = ground.choose(dice, ground.STEPS)
    before = trial.snapshot(bed.outside)
    changes_json = dice.random() < 0.6
    what = mutate(bed, step, dice) if changes_json else disguise(bed, step, dice)
    ended = bed.run(step)
    outcome = trial.judge_end(ended)
    if outcome.kind == trial.SURVIVED and "record" in what and not step.name == "report":
        outcome = judge_record(bed, step, outcome)
    return f"{step.name}: {what}", ground.judge_outside(bed, before, outcome)


def judge_record(bed: Bed, step: Step, outcome: Outcome) -> Outcome:
    """A record can decide what is made again, but not what is in it."""
    made = bed.products(step)
    return trial.judge(trial.Ended(0, "", ""), made, bed.expected[step.name])


# ---- JSON ----------------------------------------------------------------------------------------


def ways(content: Any, way: Keys) -> List[Keys]:
    """The ways to all values below a value."""
    found = [way]
    if isinstance(content, dict):
        for key, value in content.items():
            found += ways(value, [*way, key])
    elif isinstance(content, list):
        for index, value in enumerate(content[:8]):
            found += ways(value, [*way, index])
    return found


def paths_of(bed: Bed) -> List[Any]:
    """Texts that point elsewhere."""
    outside = str(bed.outside)
    return [
        "../outside/letter.txt",
        f"{outside}/letter.txt",
        f"{outside}/bin/i0.bin",
        "..",
        ".",
        "/",
        "/dev/zero",
        "/proc/self/mem",
        "a/../../outside/letter.txt",
        "i0.bin\0",
        "\ud800",
        "-rf",
        "$(touch outside)",
        "<script>alert(1)</script>",
        "\n\n",
        "i" * 300,
    ]


def dumps(content: Any) -> str:
    return json.dumps(content).replace(f'"{DEEP}"', "[" * 2000 + "]" * 2000)


def other_value(bed: Bed, value: Any, dice: random.Random) -> Any:
    """A value in the place of another one."""
    choice = dice.random()
    if choice < 0.35:
        return dice.choice(TYPES)
    if choice < 0.55:
        return dice.choice(HUGE)
    if choice < 0.85 or not isinstance(value, (int, float)):
        return dice.choice(paths_of(bed))
    return dice.choice([value + 1, -value, value * 1000, str(value), [value], DEEP])


def change(bed: Bed, content: Any, dice: random.Random) -> Tuple[Any, str]:
    """Change one value of JSON, or take it away. Returns: the content, and what was done."""
    way = dice.choice(ways(content, []))
    if not way:
        value = other_value(bed, content, dice)
        return value, f"all of it = {str(value)[:40]!a}"
    place = content
    for key in way[:-1]:
        place = place[key]
    name = ".".join(map(str, way))
    if dice.random() < 0.15:
        del place[way[-1]]
        return content, f"{name} missing"
    value = other_value(bed, place[way[-1]], dice)
    if isinstance(place, dict) and dice.random() < 0.1:
        new = dice.choice(["../x", "", "x" * 5000, str(value)])
        place[new] = place.pop(way[-1])
        return content, f"{name} renamed to {new[:40]!a}"
    place[way[-1]] = value
    return content, f"{name} = {str(value)[:60]!a}"


def mutate(bed: Bed, step: Step, dice: random.Random) -> str:
    """Change a value in a JSON file or in a record that the step reads."""
    paths = [path for path in bed.readable(step) if path.suffix in (".json", ".jsonl")]
    paths += records_beside(bed, step)
    if not paths:
        return disguise(bed, step, dice)
    path = dice.choice(sorted(set(paths)))
    name = str(path.relative_to(bed.here))
    if path.suffix == ".json":
        content, what = change(bed, json.loads(path.read_text()), dice)
        path.write_text(dumps(content))
        return f"{name}: {what}"
    from common.core import record

    rows = record.decode(path.read_bytes().splitlines(keepends=True))
    for _ in range(dice.choice((1, 1, 1, 3))):
        row = dice.randrange(len(rows))
        rows[row], what = change(bed, rows[row], dice)
    if dice.random() < 0.1:
        dice.shuffle(rows)
    path.write_bytes(encode(rows))
    return f"record {name}: row {row + 1}: {what}"


def records_beside(bed: Bed, step: Step) -> List[Path]:
    """The records that the step's products have."""
    patterns = ground.REMAINS.get(step.name, [])
    paths: List[Path] = []
    for pattern in patterns:
        paths += bed.here.glob(pattern)
    return [path for path in paths if path.suffix == ".jsonl"]


def encode(rows: List[Any]) -> bytes:
    """Rows as a record has them, with right checksums, and anything else in them."""
    import zlib

    lines = []
    for row in rows:
        text = dumps(row if isinstance(row, dict) else {"key": row}).encode("ascii")
        lines.append(b'%s, "crc": "%08x"}\n' % (text[:-1], zlib.crc32(text)))
    return b"".join(lines)


# ---- files ---------------------------------------------------------------------------------------


def disguise(bed: Bed, step: Step, dice: random.Random) -> str:
    """Put something else where the step reads or writes a file."""
    paths = [path for path in bed.readable(step) if not path.name.startswith("i0.part")]
    paths += [bed.here / name for name in bed.expected[step.name]]
    path = dice.choice(sorted(set(paths)))
    if path.parent != bed.here and dice.random() < 0.25:
        path = path.parent  # a whole folder
    name = str(path.relative_to(bed.here))
    way = dice.choice(
        "link,relative link,broken link,loop,hard link,fifo,device,folder,empty,zeros,socket,"
        "readonly,aside link,part link".split(",")
    )
    if way == "aside link":
        for aside in (bed.here / "aside", path.with_name(path.name + ".aside")):
            os.symlink(str(bed.outside), str(aside))
        os.truncate(str(path), 3) if path.is_file() else None
        return f"{name}: cut, and its aside a link"
    if way == "part link":
        for number in range(4):
            os.symlink(str(bed.outside / "letter.txt"), f"{path}.{number:08x}.part")
        return f"{name}: parts that are links"
    if way == "readonly":
        path.chmod(0o000)
        return f"{name}: mode 000"
    if path.is_dir():
        shutil.rmtree(str(path))
    else:
        path.unlink()
    put(bed, path, way)
    return f"{name}: {way}"


def put(bed: Bed, path: Path, way: str) -> None:
    """Make what is not a regular file, or not the one that was there."""
    letter = bed.outside / "letter.txt"
    if way == "link":
        os.symlink(str(bed.outside / "bin" / "i0.bin"), str(path))
    elif way == "relative link":
        os.symlink(os.path.relpath(str(letter), str(path.parent)), str(path))
    elif way == "broken link":
        os.symlink(str(bed.outside / "new"), str(path))
    elif way == "loop":
        os.symlink(path.name, str(path))
    elif way == "hard link":
        os.link(str(letter), str(path))
    elif way == "fifo":
        os.mkfifo(str(path))
    elif way == "device":
        make_device(path)
    elif way == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif way == "socket":
        import socket

        make_socket(socket, path)
    else:
        path.write_bytes(b"" if way == "empty" else bytes(1000))


def make_device(path: Path) -> None:
    """/dev/zero, if this user may make one."""
    import stat

    try:
        os.mknod(str(path), 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        raise trial.Skip("only root can make a device") from None


def make_socket(socket: Any, path: Path) -> None:
    before = os.getcwd()
    os.chdir(str(path.parent))  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)
