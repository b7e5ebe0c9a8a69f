#!/usr/bin/env python3
"""Find or make a Python environment that has what requirements.txt asks for; print its interpreter's path.

    python3 scripts/setup_env.py
    python3 scripts/setup_env.py -r requirements.txt -r test/requirements.txt

Runs on a bare Python 3.7 or newer. In this order: a `.venv` finished earlier; the Python that runs this script, if it
has everything; a `.venv` made anew and filled by pip. `.venv` counts as finished only if a stamp, written last, names
the same Python and the same requirements, so that an interrupted set-up is repaired by the next call. With the
environment variable PYTHON set (another Python than the default one), the folder is `.venv-3.7` and so on. The C files
are compiled as well. Only the interpreter's path goes to stdout; what happens is told on stderr, pip's own output only
if it fails.
"""

import os

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import environment, options


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "requirements",
        "dry_run",
        help={"dry_run": "make nothing, print the interpreter that would be used"},
    )
    arguments = options.parse(parser)
    requirements = [
        os.path.abspath(path) for path in arguments.requirements or [environment.REQUIREMENTS]
    ]
    print(environment.python(requirements, arguments.dry_run))


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
