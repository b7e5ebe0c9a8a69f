#!/usr/bin/env python3
"""Which Ascend chips this machine has, read from `npu-smi info`.

    python3 scripts/npu_info.py                  # 310P3
    python3 scripts/npu_info.py --soc-version    # Ascend310P3, what atc wants
    python3 scripts/npu_info.py --json           # [{"npu": 0, "chip": 0, "name": "310P3", "health":
    "OK", ...}]

ASCEND_RT_VISIBLE_DEVICES counts: only the chips that it shows are listed, in the order in which
--device numbers them.
Standard library only: it must run in the host's own Python.
"""

import json

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend.chips import TIMEOUT, find_chips, named, the_chip
from common.core import options


def main() -> None:
    parser = cli.parser(__doc__)
    form = parser.add_mutually_exclusive_group()
    options.add(form, "as_soc_version", "as_json", help={"as_json": "print all chips as JSON"})
    options.add(parser, "timeout", default={"timeout": TIMEOUT})
    arguments = options.parse(parser)
    chips = find_chips(arguments.timeout)
    if arguments.json:
        print(json.dumps([chip._asdict() for chip in chips]))
    else:
        chip = the_chip(chips)
        print(named(chip.name, chip.soc) if arguments.soc_version else chip.name)


if __name__ == "__main__":
    cli.run(main)
