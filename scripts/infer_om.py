#!/usr/bin/env python3
"""Run a compiled model over prepared images by ais_bench, so that the result folder holds exactly their results.

    python3 scripts/infer_om.py --model tresnet_m_bs1.om --input prep_dataset --output ./ --output_dirname result

In:  an .om (onnx2om.sh makes it) and every .bin and .npy of --input; ais_bench runs in the host's own python3.
Out: what ais_bench writes: OUTPUT/DIRNAME/STEM_0.txt (or .bin, .npy) and OUTPUT/DIRNAME_summary.json.
ais_bench itself would mix old results with new ones. Here old ones that the record OUTPUT/DIRNAME.record.jsonl calls
ours are removed first, others are refused; afterwards there must be one result for each image. What is up to date is
not inferred again; --force infers it.
"""
import argparse
import os
import subprocess

from common import cli, evaluation, files, manifest, record
from common.ascend import bench_command, host_versions
from common.cli import Refusal, shown, some
from common.inputs import list_inputs
from common.names import FORMATS, result_names


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", "-m", required=True, type=cli.path, help="the .om file")
    parser.add_argument("--input", "-i", required=True, type=cli.path, help="folder of .bin or .npy files")
    parser.add_argument("--output", "-o", required=True, type=cli.path, help="folder for result folder and summary")
    parser.add_argument("--output_dirname", required=True, type=cli.file_name, help="name of the result folder in it")
    parser.add_argument("--outfmt", choices=FORMATS, default="TXT", help="format of the results (default: %(default)s)")
    parser.add_argument("--device", type=cli.whole(0, 255), help="the NPU to use (default: ais_bench's, 0)")
    parser.add_argument("--force", action="store_true", help="infer again even what is up to date")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not os.path.exists(arguments.model):
        raise Refusal(f"{shown(arguments.model)} is not there; make it with scripts/onnx2om.sh")
    paths = list_inputs(arguments.input)
    evaluation.check_prepared(manifest.read(arguments.input)[0], record.notes(arguments.model).get("evaluation"),
                              arguments.input, arguments.model)
    prefix = os.path.join(arguments.output, arguments.output_dirname)
    made_by = record.recipe(__file__, {"outfmt": arguments.outfmt}, inputs=[arguments.model],
                            device=arguments.device or 0, host=host_versions())
    results = record.Folder(prefix, made_by, [prefix + "_summary.json"], arguments.force)
    states = record.states(paths)
    if results.complete and [row["inputs"] for row in results.kept] == [states]:
        print(f"{len(paths)} results in {shown(prefix)} are up to date; --force infers again")
        return
    if results.changed:
        print(f"everything is inferred anew: {results.changed}")
    expected = [name for path in paths for name in result_names(path, 1, arguments.outfmt)]
    files.make_folder(arguments.output, "--output")
    results.begin([], expected)
    try:
        options = {key: getattr(arguments, key) for key in ("input", "output", "output_dirname", "outfmt", "device")}
        status = subprocess.call(bench_command(arguments.model, **options), stdin=subprocess.DEVNULL)
        if status:
            raise Refusal(f"ais_bench failed with exit status {status}; what it said stands above")
        found = set(os.listdir(prefix))
        missing, foreign = set(expected) - found, found - set(expected)
        if missing or foreign:
            what = f"{len(missing)} of {len(expected)} images have no result" if missing else (
                f"{len(foreign)} files are no result of any of the {len(expected)} images")
            raise Refusal(f"{what} in {shown(prefix)}: {some(missing or foreign)}; ais_bench stopped early, or did not "
                          "do what was expected: what it said stands above; the same command infers again")
        results.add(states, [record.made(os.path.join(prefix, name)) for name in expected])
        results.finish()
    finally:
        results.close()
    print(f"{len(paths)} results, one for each image")


if __name__ == "__main__":
    cli.run(main, "the same command infers again")
