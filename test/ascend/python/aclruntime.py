"""Stand-in of aclruntime, ais_bench's other half, which only the host's Python can import."""

import os
import sys

if sys.prefix != sys.base_prefix and "STANDIN_STARTED_BY" not in os.environ:
    raise ModuleNotFoundError("No module named 'aclruntime'", name="aclruntime")
