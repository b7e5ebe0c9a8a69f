#!/usr/bin/env python3
"""Compare two result folders image by image: does the compiled model still say what the ONNX file says?

    python3 scripts/compare_results.py work/result work/result_onnx
    python3 scripts/compare_results.py result result_onnx --first 64 --json compare.json --min-agreement 99

In:  two folders of results (STEM_0.txt, .bin or .npy, each in its own format) of any two runs over the same images.
Out: cosine similarity of the scores (min, mean), the largest absolute difference, Top-1 agreement, and the images on
     which the two disagree; printed, and with --json written to a file with all their names.
Exit status: 0 good, 1 the folders cannot be compared, 2 wrong usage, 3 below --min-cosine or --min-agreement.
"""
import argparse
import json
import os
import re
import sys
from typing import Any, Dict, List, Optional

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from TResNet_postprocess import read_result, result_files  # noqa: E402
from TResNet_preprocess import VERSION, write_whole  # noqa: E402

SHOWN = 20  # disagreeing images that are printed; all are in the JSON file
BELOW_MINIMUM = 3  # exit status


def natural_key(name: str) -> List[Any]:
    """Sort key by which the runners order images, so that "the first N" are the same ones: img_2 before img_10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split("([0-9]+)", name)]


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Of two score vectors [classes], in float64; 1 for two zero vectors, 0 if only one is zero."""
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.dot(a, b)) / lengths


def compare(folder_a: str, folder_b: str, first: Optional[int] = None) -> Dict[str, Any]:
    """All figures of the comparison, over the images that both folders have (the first N of them by natural order).

    Returns what goes into the JSON file: images, classes, cosine {min, mean, image}, largest_difference {value, image},
    top1_agreement in per cent, disagreements [{image, a, b}], only_in_a, only_in_b.
    Raises: SystemExit if a folder or file is unreadable, nothing is common, or the numbers of classes differ.
    """
    files_a, files_b = result_files(folder_a), result_files(folder_b)
    common = sorted(set(files_a) & set(files_b), key=natural_key)[:first]
    if not common:
        raise SystemExit(f"{folder_a!a} and {folder_b!a} have no image in common (for instance {min(files_a)!a} and "
                         f"{min(files_b)!a}); give two folders with the results of the same images")
    cosines, differences, disagreements = [], [], []
    classes = 0
    for name in common:
        a = read_result(files_a[name]).astype(np.float64)
        b = read_result(files_b[name]).astype(np.float64)
        if len(a) != len(b):
            raise SystemExit(f"{files_a[name]!a} has {len(a)} classes, but {files_b[name]!a} has {len(b)}; compare "
                             "results of models with the same classes")
        classes = len(a)
        cosines.append(cosine_similarity(a, b))
        differences.append(float(np.abs(a - b).max()))
        top_a, top_b = int(a.argmax()), int(b.argmax())  # of equal scores the lower class counts, as in postprocess
        if top_a != top_b:
            disagreements.append({"image": name, "a": top_a, "b": top_b})
    worst, furthest = int(np.argmin(cosines)), int(np.argmax(differences))
    return {"tool": "compare_results.py", "version": VERSION,
            "a": os.path.abspath(folder_a), "b": os.path.abspath(folder_b),
            "images": len(common), "classes": classes,
            "cosine": {"min": cosines[worst], "mean": float(np.mean(cosines)), "image": common[worst]},
            "largest_difference": {"value": differences[furthest], "image": common[furthest]},
            "top1_agreement": 100 * (1 - len(disagreements) / len(common)), "disagreements": disagreements,
            "only_in_a": sorted(set(files_a) - set(files_b), key=natural_key),
            "only_in_b": sorted(set(files_b) - set(files_a), key=natural_key)}


def describe(report: Dict[str, Any]) -> str:
    """The report in lines to read."""
    cosine, difference = report["cosine"], report["largest_difference"]
    same = report["images"] - len(report["disagreements"])
    lines = [f"compared {report['images']} images of {report['classes']} classes: {report['a']!a} and {report['b']!a}",
             f"cosine similarity: min {cosine['min']:.6f} ({cosine['image']!a}), mean {cosine['mean']:.6f}",
             f"largest absolute difference: {difference['value']:.6g} ({difference['image']!a})",
             f"Top-1 agreement: {report['top1_agreement']:.2f} % ({same} of {report['images']})"]
    for row in report["disagreements"][:SHOWN]:
        lines.append(f"    {row['image']!a}: class {row['a']}, but {row['b']} in the second folder")
    if len(report["disagreements"]) > SHOWN:
        lines.append(f"    ... and {len(report['disagreements']) - SHOWN} more (--json FILE lists all)")
    for folder, key in (("first", "only_in_a"), ("second", "only_in_b")):
        if report[key]:
            lines.append(f"{len(report[key])} images are only in the {folder} folder and were left out, "
                         f"for instance {report[key][0]!a}")
    return "\n".join(lines)


def shortfalls(report: Dict[str, Any], min_cosine: Optional[float], min_agreement: Optional[float]) -> List[str]:
    """What is below the given minimum, in words."""
    found = []
    if min_cosine is not None and report["cosine"]["min"] < min_cosine:
        found.append(f"the cosine similarity falls to {report['cosine']['min']:.6f} ({report['cosine']['image']!a}), "
                     f"below --min-cosine {min_cosine:g}")
    if min_agreement is not None and report["top1_agreement"] < min_agreement:
        found.append(f"the Top-1 agreement is {report['top1_agreement']:.2f} %, "
                     f"below --min-agreement {min_agreement:g}")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare two folders of inference results image by image.")
    parser.add_argument("a", metavar="A", help="folder of results, e.g. of the NPU")
    parser.add_argument("b", metavar="B", help="folder of results, e.g. of the CPU runner")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N common images, in natural order")
    parser.add_argument("--json", metavar="FILE", help="write all figures and all disagreeing images to FILE")
    parser.add_argument("--min-cosine", type=float, metavar="X",
                        help="exit with 3 if the similarity of an image is lower (-1 to 1)")
    parser.add_argument("--min-agreement", type=float, metavar="P",
                        help="exit with 3 if fewer per cent of the images agree")
    arguments = parser.parse_args()
    if arguments.first is not None and arguments.first < 1:
        parser.error("--first must be at least 1")
    if arguments.min_cosine is not None and not -1 <= arguments.min_cosine <= 1:
        parser.error("--min-cosine must lie between -1 and 1")
    if arguments.min_agreement is not None and not 0 <= arguments.min_agreement <= 100:
        parser.error("--min-agreement is in per cent and must lie between 0 and 100")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    try:
        report = compare(arguments.a, arguments.b, arguments.first)
    except SystemExit as error:  # also of the functions that read results: they name the file, not this script
        raise SystemExit("compare_results.py: " + re.sub(r"^\w+\.py: ", "", str(error))) from None
    print(describe(report))
    if arguments.json:
        try:
            write_whole(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
        except OSError as error:
            raise SystemExit(f"compare_results.py: {arguments.json!a} cannot be written ({error.strerror}); choose "
                             "another file for --json") from None
    below = shortfalls(report, arguments.min_cosine, arguments.min_agreement)
    if below:
        print(f"compare_results.py: {', and '.join(below)}", file=sys.stderr)
    return BELOW_MINIMUM if below else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("compare_results.py: interrupted", file=sys.stderr)
        sys.exit(130)
