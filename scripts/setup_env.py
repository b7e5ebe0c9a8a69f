#!/usr/bin/env python3
"""Find or make a Python environment with the packages of requirements.txt; print its interpreter.

    python3 scripts/setup_env.py
    python3 scripts/setup_env.py -r requirements.txt -r test/requirements.txt
    python3 scripts/setup_env.py --venv /data/tresnet-venv     # for a checkout that is read-only

    python3 scripts/setup_env.py --download packages           # on a host with a network
    python3 scripts/setup_env.py --offline packages            # on one without

Takes the first of these: a finished `.venv`; the Python that runs this script, if it has all
packages; a new `.venv`, which pip fills. An interrupted set-up leaves no finished `.venv`, so the
next call repairs it. If the environment variable PYTHON names another Python, the folder is
`.venv-3.7` and so on. The set-up also compiles the C files and fetches the names of the classes.
Prints only the interpreter's path to stdout; messages go to stderr, with pip's output if it fails.
Runs on a bare Python 3.7 or newer.
"""

import os

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before imports that may fail

from common.core import environment, files, options
from common.core.cli import shown
from common.core.packages import Source, say
from common.data import class_names
from common.data.wnids import IMAGENET_CLASSES


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "requirements",
        "venv",
        "offline",
        "download",
        "dry_run",
        help={"dry_run": "make nothing, only print the interpreter"},
    )
    arguments = options.parse(parser)
    requirements = [
        os.path.abspath(path) for path in arguments.requirements or [environment.REQUIREMENTS]
    ]
    if arguments.download:
        environment.collect(arguments.download, requirements)
        say(f"{shown(arguments.download)} has all that --offline needs")
        return
    place = environment.choose(arguments.venv, requirements=requirements)
    python = environment.python(place, requirements, arguments.offline, arguments.dry_run)
    if not arguments.dry_run and not files.unusable(place.base):
        class_names.fetch(IMAGENET_CLASSES, place, Source(python, arguments.offline))
    print(python)


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
