"""Stand-in of ais_bench: importable by the host's Python alone, as a separate install is."""

import os
import sys

if sys.prefix != sys.base_prefix and "STANDIN_STARTED_BY" not in os.environ:
    raise ModuleNotFoundError("No module named 'ais_bench'", name="ais_bench")
