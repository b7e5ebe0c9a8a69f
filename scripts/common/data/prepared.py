"""The prepared folder: which .bin was made from which image and with which settings, which are bad.

Its record is FOLDER/manifest.jsonl. The options in the recipe are the settings: those of the
evaluation, the type of the values, the source and the shard. Each image is a piece: its key is the
image's path below the source, its input the image's size and times, its file the .bin. A bad image
has no file, and its notes say why. Standard library only.
"""

import functools
import hashlib
import json
import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from common.core import recipe, record
from common.core.cli import counted, shown
from common.core.names import result_stem
from common.core.record import MANIFEST, Recipe, Record, Row
from common.data.labels import label_offset, match_labels, read_labels

TOOL = "TResNet_preprocess.py"
ALL_IMAGES = [1, 1]  # the shard that is all images
LABELS = "val_label.txt"
BESIDE = ""  # the key of the piece that holds the files beside the .bin files
PACKAGES = ("numpy", "Pillow", "simplejpeg")  # the bytes depend on their versions


class Clipped(NamedTuple):
    """What became of an image whose values do not fit 8 bits. Pillow and timm cut them."""

    mode: str  # Pillow's, such as I;16
    to: str  # "white": values above 255 became 255; "black": values up to 1, or below 0, became 0


class Prepared(NamedTuple):
    """What is known of a prepared folder; all is empty if TResNet_preprocess.py did not make it.

    After a power loss in the middle of a run, `sources` and `bad` are empty until the step has run
    again.
    """

    settings: Row  # see make_recipe()
    # "given": the settings that were options; "labels": bool; "class_folders": names; "folder":
    # where this folder was made
    about: Row
    versions: Row  # {package: version}
    sources: Dict[str, str]  # {stem of a .bin: its image's path below the source}
    bad: Dict[str, str]  # {an image's path below the source: why it has no .bin}
    checksums: Dict[str, str]  # {name of a .bin: files.checksum() of its content}
    clipped: Dict[str, Clipped]  # by an image's path below the source


def open_record(folder: str) -> Record:
    """The record of a prepared folder, which need not exist yet."""
    return record.read_path(os.path.join(folder, MANIFEST))


@functools.lru_cache(maxsize=8)
def described(about: Record) -> Prepared:
    if about.recipe.get("tool") != TOOL:
        return Prepared({}, {}, {}, {}, {}, {}, {})
    sources, bad, checksums, clipped = {}, {}, {}, {}
    for key, piece in about.pieces.items():
        if key == BESIDE:
            continue
        for made in piece.files:
            checksums[made.name] = made.checksum
            if about.believed:
                sources[result_stem(made.name)] = key
        if "error" in piece.notes and about.believed:
            bad[key] = str(piece.notes["error"])
        if "clipped" in piece.notes and about.believed:
            clipped[key] = Clipped(str(piece.notes.get("mode")), str(piece.notes["clipped"]))
    settings = dictionary(about.recipe.get("options"))
    versions = dictionary(about.recipe.get("versions"))
    return Prepared(settings, about.about, versions, sources, bad, checksums, clipped)


def describe_clipped(rows: Iterable[Row]) -> List[str]:
    """Sentences about clipped images; rows: {"mode", "to", "images": how many}."""
    sentences = []
    for row in rows:
        verb, owner, them = ("are", "their", "them")
        if row["images"] == 1:
            verb, owner, them = ("is", "its", "it")
        values = {
            "white": f"{owner} values above 255 become 255",
            "black": f"{owner} values of at most 1, or below 0, become 0 or 1 of 255",
        }.get(row["to"], "")
        sentences.append(
            f"{counted(row['images'], 'image')} of mode {row['mode']} {verb} clipped to "
            f"{row['to']}: {values}, as in Pillow and timm; convert {them} to 8 bits, "
            "unless the training had the same"
        )
    return sentences


def dictionary(value: Any) -> Row:
    """A field of a record that should be a JSON object; {} if it is something else."""
    return dict(value) if isinstance(value, dict) else {}


def read(folder: str) -> Prepared:
    """What is known of a prepared folder."""
    return described(open_record(folder))


def make_recipe(program: str, settings: Row) -> Recipe:
    """What every .bin depends on, apart from its image. program: the path of the step."""
    return recipe.make(program, settings, PACKAGES)


def place_for(workdir: str, settings: Dict[str, Any]) -> str:
    """The prepared folder in a work folder for some settings of make_recipe().

    That is prep_dataset, unless it was made with other settings. Then the folder is named after the
    settings, so that nothing is made again when somebody tries other settings and comes back.
    """
    plain = os.path.join(workdir, "prep_dataset")
    own = dict(settings, source=beside(settings["source"], plain))
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    named = f"{plain}-{digest[:8]}"
    differs = bool(differing(open_record(plain), settings))
    return named if differs or os.path.isdir(named) else plain


def place_of_others(workdir: str, settings: Dict[str, Any]) -> str:
    """The prepared folder in a work folder for some settings, wherever the images were then.

    Returns "" if there is not one.
    """
    names = sorted(os.listdir(workdir)) if os.path.isdir(workdir) else []
    for name in names:
        folder = os.path.join(workdir, name)
        before = open_record(folder) if name.startswith("prep_dataset") else None
        if before and before.recipe and differing(before, settings) in ([], ["source"]):
            return folder
    return ""


def beside(source: str, folder: str) -> str:
    """A source relative to what the prepared folder lies in; a source elsewhere stays absolute."""
    above = os.path.dirname(os.path.abspath(folder))
    inside = os.path.commonpath([above, os.path.abspath(source)]) == above
    return os.path.relpath(source, above) if inside and above != "/" else source


def differing(before: Record, settings: Row) -> List[str]:
    """The names of the settings that differ from those of a prepared folder.

    Images that moved together with the folder are the same source: a work folder may be copied.
    """
    old = dictionary(before.recipe.get("options"))
    names = [name for name, value in settings.items() if old.get(name, value) != value]
    folder = before.about.get("folder")
    if "source" in names and isinstance(folder, str):
        source = beside(str(old["source"]), folder)
        if not os.path.isabs(source) and source == beside(settings["source"], before.folder):
            names.remove("source")
    return names


def changed_settings(before: Record, new: Recipe) -> List[str]:
    """Which settings of the folder differ from a recipe's, in words."""
    old = dictionary(before.recipe.get("options"))
    names = differing(before, new.row["options"])
    return [f"{name} was {shown(str(old[name]))}" for name in names]


def changed_program(before: Record, new: Recipe) -> List[str]:
    """What else of a folder's recipe differs from another: this program, the packages; in words."""
    changes = []
    if before.recipe.get("sources") != new.row["sources"]:
        changes.append("this program was updated")
    old = dictionary(before.recipe.get("versions"))
    for package, version in new.row["versions"].items():
        if old and old.get(package) != version:
            was = shown(str(old.get(package) or "missing"))
            changes.append(f"{package} was {was} and is {version or 'missing'}")
    return changes


def set_damaged_aside(path: str) -> None:
    """Move a .bin whose content is not what the manifest says out of its folder."""
    folder, name = os.path.split(path)
    open_record(folder).set_aside([name])


def true_classes(
    labels: str,
    folder: str,
    stems: List[str],
    classes: int,
    offset: Optional[int] = None,
    background: Optional[bool] = None,
    encoding: Optional[str] = None,
) -> List[int]:
    """The class of each image of a prepared folder, 0 to classes - 1, from the file `labels`.

    stems: of their .bin files.
    offset, background: see label_offset(); encoding: see read_labels().
    Raises: Refusal if a label is missing, ambiguous or not a class.
    """
    lines = read_labels(labels, encoding)
    shift = label_offset(lines, classes, labels, asked=offset, background=background)
    about = read(folder)
    matched = match_labels(
        {stem: about.sources.get(stem, stem) for stem in stems},
        lines,
        labels,
        [*about.sources.values(), *about.bad],
    )
    return [matched[stem].classes[0] + shift for stem in stems]
