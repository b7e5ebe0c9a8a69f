#!/usr/bin/env python3
"""Find or make a Python environment with the packages of requirements.txt; print its interpreter.

    python3 scripts/setup_env.py
    python3 scripts/setup_env.py -r requirements.txt -r test/requirements.txt

Takes the first of these: a finished `.venv`; the Python that runs this script, if it has all
packages; a new `.venv`, which pip fills. An interrupted set-up leaves no finished `.venv`, so the
next call repairs it. If the environment variable PYTHON names another Python, the folder is
`.venv-3.7` and so on. The set-up also compiles the C files.
Prints only the interpreter's path to stdout; messages go to stderr, with pip's output if it fails.
Runs on a bare Python 3.7 or newer.
"""

import os

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before imports that may fail

from common.core import environment, options


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "requirements",
        "dry_run",
        help={"dry_run": "make nothing, only print the interpreter"},
    )
    arguments = options.parse(parser)
    requirements = [
        os.path.abspath(path) for path in arguments.requirements or [environment.REQUIREMENTS]
    ]
    print(environment.python(requirements, arguments.dry_run))


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
