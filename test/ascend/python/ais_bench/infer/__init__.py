"""Stand-in of the package that only Ascend's ais_bench has (STANDIN_AIS_BENCH=none)."""

import os

if os.environ.get("STANDIN_AIS_BENCH") == "none":
    raise ModuleNotFoundError("No module named 'ais_bench.infer'", name="ais_bench.infer")
