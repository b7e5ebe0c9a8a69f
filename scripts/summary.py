"""Print what a run of the pipeline found and where its files are.

    python3 scripts/summary.py work --backend cpu --model work/tresnet.onnx --result work/result
"""
import argparse
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import onnx

SAMPLE_NOTE = ("The sample checkpoint was fitted to these 20 photos: its accuracy proves that the chain is right, and "
               "says nothing about TResNet's.")


def read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def accuracy(workdir: str, name: str) -> Dict[str, str]:
    """{"Top1 accuracy": "93.75%", ...} of one of the work folder's accuracy files."""
    rows = read_json(os.path.join(workdir, name))["value"]
    return {row["key"]: row["value"] for row in rows if "accuracy" in row["key"]}


def against_float32(workdir: str, result: str, float32: str) -> List[Tuple[str, str]]:
    """(what, value) of the lines that set a quantised model beside the one it was made from."""
    before, now = (read_json(folder + "_summary.json")["throughput"] for folder in (float32, result))
    comparison = read_json(os.path.join(workdir, "compare.json"))
    speed = f"{now:.1f} images/s, float32 {before:.1f}: {now / max(before, 1e-9):.2f} times as fast"
    if not now or not before:  # a run was stopped after its last image and had nothing left to measure
        speed = "not measured: nothing was left to infer after an interrupted run; --force measures it"
    return [("speed", speed),
            ("agreement", f"the same Top-1 as float32 for {comparison['top1_agreement']:.2f} % of the images, "
                          f"cosine similarity of the logits {comparison['cosine']['min']:.4f} at least")]


def rows(workdir: str, backend: str, model: str, result: str, compared: bool,
         measured: bool, float32: Optional[str]) -> List[Tuple[str, str]]:
    """(what, value) of every line of the summary; what an earlier run compared or measured is not named."""
    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    counts = read_json(os.path.join(workdir, "acc_report.json"))["counts"]
    lines = [("backend", backend),
             ("network", f"{metadata['variant']}, {metadata['num_classes']} classes, "
                         f"{metadata['img_size']}×{metadata['img_size']}, {metadata['lineage']} lineage"
                         + (", int8" if metadata.get("precision") == "int8" else "")),
             ("images", ", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in (
                 "images", "labelled", "preprocessed", "inferred", "evaluated", "left_out")
                 if counts.get(key) is not None))]
    before = accuracy(workdir, "acc_float32.json") if float32 else {}
    lines += [(key, value + (f", float32 {before[key]}" if float32 else ""))
              for key, value in accuracy(workdir, "acc.json").items()]
    lines += against_float32(workdir, result, float32) if float32 else []
    files = [("accuracy", "acc.json"), ("every image's fate", "acc_report.json")]
    files += [("comparison", "compare.json")] if compared else []
    files += [("throughput", "perf.md"), ("its plot", "perf.png")] if measured else []
    lines += [(what, os.path.join(workdir, name)) for what, name in files]
    return lines + [("predictions", result), ("model", model)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", required=True, help="the ONNX file")
    parser.add_argument("--result", required=True, help="the result folder")
    parser.add_argument("--float32", metavar="FOLDER", help="the float32 model's results, if this one is quantised")
    parser.add_argument("--compared", action="store_true", help="this run compared results")
    parser.add_argument("--measured", action="store_true", help="this run measured throughput")
    parser.add_argument("--sample", action="store_true", help="the checkpoint is the sample's")
    arguments = parser.parse_args()
    lines = rows(arguments.workdir, arguments.backend, arguments.model, arguments.result,
                 arguments.compared, arguments.measured, arguments.float32)
    width = max(len(what) for what, _ in lines)
    for what, value in lines:
        print(f"{what:<{width}}  {value}")
    if arguments.sample:
        print(SAMPLE_NOTE)


if __name__ == "__main__":
    main()
