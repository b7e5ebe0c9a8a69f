"""Keep track of an inference by ais_bench: whether its results are complete, and whether they are still current.

    python3 scripts/result_state.py tresnet_bs1.om prep_dataset result --record
    python3 scripts/result_state.py tresnet_bs1.om prep_dataset result --is-current

--record: refuses unless every .bin of the prepared folder has exactly one result; then notes model and images in
RESULT_state.json. --is-current: exit status 0 if that note still fits what is there, so that nothing needs inferring
again.
"""
import argparse
import json
import os
import sys
from typing import Any, Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]
from infer_onnx import identity, list_inputs, stem  # noqa: E402

from TResNet_postprocess import result_files  # noqa: E402
from TResNet_preprocess import write_whole  # noqa: E402

SHOWN = 5  # names in a message


def state(model: str, inputs: List[str], results: Dict[str, str]) -> Dict[str, Any]:
    """Names, sizes and modification times of the model, the inputs and the results."""
    return {"model": identity([model])[0], "inputs": identity(inputs),
            "results": identity([results[name] for name in sorted(results)])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prepared")
    parser.add_argument("result")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--record", action="store_true")
    action.add_argument("--is-current", action="store_true")
    arguments = parser.parse_args()
    result = arguments.result.rstrip("/")
    note = result + "_state.json"
    inputs = list_inputs(arguments.prepared)
    if arguments.is_current:
        if not os.path.exists(note) or not os.path.isdir(result):
            return 1
        with open(note, encoding="utf-8") as file:
            if json.load(file) != state(arguments.model, inputs, result_files(result)):
                return 1
        print(f"{len(inputs)} results in {result} are up to date; --force infers again")
        return 0
    results = result_files(result)
    wanted = {stem(path) for path in inputs}
    missing, foreign = sorted(wanted - set(results)), sorted(set(results) - wanted)
    if missing or foreign:
        what, names = ("have no result", missing) if missing else ("are results of no prepared image", foreign)
        raise SystemExit(f"result_state.py: {len(names)} of {len(inputs)} images {what} in {result}: "
                         f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}; ais_bench stopped early or "
                         "the folder is not its own: run it again")
    write_whole(note, json.dumps(state(arguments.model, inputs, results)).encode())
    print(f"{len(results)} results, one for each of {len(inputs)} images")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"result_state.py: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
