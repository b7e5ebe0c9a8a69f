#!/usr/bin/env python3
"""Forecasts without a card how fast a model will be on one Ascend 310P3: images/s per batch size.

    python3 scripts/forecast_speed.py tresnet_m.onnx
    python3 scripts/forecast_speed.py tresnet_m.onnx --output work --uint8
    python3 scripts/forecast_speed.py tresnet_m.onnx --batch-sizes 8,16

In:  an ONNX file with float32 weights and a fixed image size, as TResNet_pth2onnx.py makes it.
Out: a table: images/s, the range that holds 80 % of such forecasts' outcomes, and what takes the
     time. Then come the ten kernels that take longest at the best batch size. OUTPUT/speed.json:
     the same, and every kernel. OUTPUT/speed.png: a plot.
It is not a measurement. It rests on figures that were published for 51 networks in 2022 and 2023,
in float16, compute only. It answers "one card or four?", not "1,500 or 1,700?". docs/speed.md says
how it is made and how far it was off.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, json_file, options, recipe, record
from common.core.cli import counted, shown
from common.model import onnx_file, speed
from common.results.work_files import SPEED

LONGEST = 10  # kernels that are named
PARTS = ("compute", "memory", "overhead", "input")


Row = Dict[str, Any]  # of speed.json: a batch size or a kernel
Report = Dict[str, Any]  # speed.json


# ---- the forecast --------------------------------------------------------------------------------


def batch_sizes_of(arguments: argparse.Namespace) -> List[int]:
    """The batch sizes of the option, else the one that the file fixes, else the usual ones."""
    fixed = onnx_file.describe(arguments.model, arguments.batch_sizes or ())["shape"][0]
    usual = [fixed] if fixed else [1, 4, 8, 16, 32]
    return list(arguments.batch_sizes or usual)


def forecast_row(row: speed.Forecast) -> Row:
    """A forecast as JSON; shares: how much of the time each part takes, 0 to 1."""
    shares = {part: getattr(row.time, part) / row.time.total for part in PARTS}
    return {
        "batch_size": row.batch_size,
        "images_per_s": row.images_per_s,
        "low_80": row.low_80,
        "high_80": row.high_80,
        "low_90": row.low_90,
        "high_90": row.high_90,
        "ms_per_batch": 1000 * row.time.total,
        "shares": shares,
    }


def kernel_rows(network: speed.Network, batch_size: int, data: speed.Data) -> List[Row]:
    """A row for each kernel, in the order in which they run.

    us: µs of a batch; mostly: the part that takes most of them.
    """
    rows = []
    for kernel in network.kernels:
        time = speed.kernel_time(kernel, batch_size, data.constants)
        largest = max(PARTS, key=lambda part: getattr(time, part))
        rows.append(
            {
                "name": kernel.name,
                "operators": list(kernel.operators),
                "kind": kernel.kind,
                "us": 1e6 * time.total,
                "mostly": largest,
            }
        )
    return rows


def report_of(arguments: argparse.Namespace, batch_sizes: List[int]) -> Report:
    """All that speed.json holds.

    Raises: Refusal for what the forecast is not for.
    """
    data = speed.read_data()
    network = speed.read_network(arguments.model)
    forecasts = speed.forecast(network, batch_sizes, data, arguments.uint8)
    best = speed.best(forecasts)
    return {
        "tool": "forecast_speed.py",
        "version": cli.VERSION,
        "chip": speed.CHIP,
        "precision": "float16",
        "model": os.path.basename(arguments.model),
        "size": [network.height, network.width],
        "uint8": arguments.uint8,
        "limits": speed.limits(network.height, network.width),
        "best_batch_size": best.batch_size,
        "rows": [forecast_row(row) for row in forecasts],
        "costly_moves": speed.costly_moves(network),
        "kernels": kernel_rows(network, best.batch_size, data),
    }


def longest(report: Report) -> List[Row]:
    """The kernels that take longest."""
    return sorted(report["kernels"], key=lambda row: -row["us"])[:LONGEST]


# ---- what is shown -------------------------------------------------------------------------------


def describe(report: Report) -> str:
    """The report in words and tables."""
    height, width = report["size"]
    lines = [
        f"forecast for one {speed.CHIP}: {shown(report['model'])}, {height}×{width} pixels, "
        f"{counted(len(report['kernels']), 'kernel')}",
        "",
        "batch  images/s  80 % range       compute  memory  overhead  input",
    ]
    for row in report["rows"]:
        between = f"{row['low_80']:,.0f} to {row['high_80']:,.0f}"
        shares = row["shares"]
        lines.append(
            f"{row['batch_size']:5d}  {row['images_per_s']:8,.0f}  {between:14}  "
            f"{shares['compute']:7.0%}  {shares['memory']:6.0%}  {shares['overhead']:8.0%}  "
            f"{shares['input']:5.0%}"
        )
    best_size = report["best_batch_size"]
    ms_of = {row["batch_size"]: row["ms_per_batch"] for row in report["rows"]}
    lines += [
        "",
        f"the kernels that take longest at batch size {best_size}",
        "",
        "     µs  share  mostly    kernel",
    ]
    for row in longest(report):
        share = row["us"] / 1000 / ms_of[best_size]
        operators = " + ".join(map(shown, row["operators"]))
        lines.append(
            f"{row['us']:7.1f}  {share:5.1%}  {shown(row['mostly']):8}  {shown(row['name'])} "
            f"({operators})"
        )
    limits = "; ".join(speed.limits(height, width))
    return "\n".join([*lines, "", f"This is a forecast {limits}."])


# ---- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("model", type=options.path, help="the .onnx file")
    options.add(
        parser,
        "batch_sizes",
        "soc_version",
        "uint8",
        "output",
        "force",
        default={"soc_version": speed.CHIP, "batch_sizes": None},
        help={
            "batch_sizes": "(default: 1,4,8,16,32, or the one that the file fixes)",
            "soc_version": "the chip (default: %(default)s, the only one)",
            "uint8": "the images come as bytes (AIPP), a quarter of float32",
        },
    )
    return options.parse(parser)


def compute(
    arguments: argparse.Namespace, batch_sizes: List[int], product: str, made_by: record.Recipe
) -> Report:
    """Make the forecast and write its files; returns what speed.json holds."""
    from common.results import plots  # here: an up-to-date forecast does not need matplotlib

    report = report_of(arguments, batch_sizes)
    contents = {
        product + ".json": json_file.encode(report),
        product + ".png": plots.forecast_speed_png(report),
    }
    record.write(product, made_by, contents)
    return report


def main() -> None:
    arguments = parse_arguments()
    speed.refuse_chip(arguments.soc_version)
    batch_sizes = batch_sizes_of(arguments)
    files.make_folder(arguments.output, "--output")
    product = os.path.join(arguments.output, "speed")
    settings = {"batch_sizes": batch_sizes, "uint8": arguments.uint8}
    inputs = onnx_file.all_files(arguments.model)
    made_by = recipe.make(__file__, settings, ("onnx",), inputs, [speed.DATA])
    names = [product + ".json", product + ".png"]
    if record.is_up_to_date(product, made_by, names, arguments.force):
        report = SPEED.read(product + ".json")
        print(describe(report))
        print(f"{shown(product + '.json')} is up to date; --force computes it again")
    else:
        report = compute(arguments, batch_sizes, product, made_by)
        print(describe(report))
        print(f"speed.json, speed.png in {shown(arguments.output)}")


if __name__ == "__main__":
    cli.run(main)
