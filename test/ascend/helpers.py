"""What the tests of the Ascend side share: small networks, a machine with a card, programs."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple
from unittest import mock

import numpy as np
from ascend.environment import HERE, ascend_environment
from conftest import ROOT

if TYPE_CHECKING:
    Done = subprocess.CompletedProcess[str]
else:  # Python 3.7 knows no brackets there
    Done = subprocess.CompletedProcess
SIZE = 32
CONTRACT = [
    *"atc --framework=5 --model=net.onnx --output=net_bs1 --input_format=NCHW".split(),
    f"--input_shape=image:1,3,{SIZE},{SIZE}",
    "--log=error",
    "--soc_version=Ascend310P3",
]
CONTRACT_INFER = (
    "--model net_bs4.om --input in --output ./ --output_dirname result --outfmt TXT".split()
)
SUMMARY_KEYS = {
    *"filesinfo args NPU_compute_time H2D_latency D2H_latency throughput".split(),
    *"npu_compute_time_list pid".split(),
}
AIPP = "aipp_op {\n aipp_mode : static\n input_format : RGB888_U8\n related_input_rank : 0\n"


class Machine(NamedTuple):
    """A machine with an Ascend card, made of the stand-ins."""

    environment: Dict[str, str]
    folder: Path  # the work folder, which ais_bench's later versions accept, with net.onnx in it


# ---- a small network -----------------------------------------------------------------------------


def layers(name: str) -> List[Any]:
    """A convolution, a pooling and a linear layer as nodes; name: of the input."""
    from onnx import helper

    nodes = [helper.make_node("Conv", [name, "w", "b"], ["conv"], pads=[1] * 4, strides=[2, 2])]
    for operator, inputs, output in (
        ("Relu", ["conv"], "relu"),
        ("GlobalAveragePool", ["relu"], "pool"),
        ("Flatten", ["pool"], "flat"),
        ("MatMul", ["flat", "head"], "class"),
    ):
        nodes.append(helper.make_node(operator, inputs, [output]))
    return nodes


def save_network(
    path: Path, opset: int = 11, batch: Any = "batch", dtype: str = "FLOAT", name: str = "image"
) -> Path:
    """The network of layers(): float32 [batch, 3, 32, 32] -> [batch, 10]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.RandomState(0)
    weights = {"w": 0.3 * rng.randn(8, 3, 3, 3), "b": 0.1 * rng.randn(8), "head": rng.randn(8, 10)}
    nodes = layers(name)
    if dtype != "FLOAT":
        nodes[0].input[0] = "cast"
        nodes.insert(0, helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
    for node in nodes:
        node.name = node.output[0]
    image = helper.make_tensor_value_info(name, getattr(TensorProto, dtype), [batch, 3, SIZE, SIZE])
    scores = helper.make_tensor_value_info("class", TensorProto.FLOAT, [batch, 10])
    tensors = [
        numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "net", [image], [scores], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 6
    onnx.helper.set_model_props(model, {"variant": "tresnet_m", "img_size": str(SIZE)})
    onnx.save(model, str(path))
    return path


def save_tiny_tresnet(
    path: Path, lineage: str = "ascend", stem: str = "conv4", size: int = 64
) -> Path:
    """A narrow TResNet with one block in each stage; it has every operator.

    float32 [batch, 3, size, size] -> [batch, 10]; the weights are random, and its statistics are
    those of random images.
    """
    from common.model.graph import build_model
    from common.model.network import TIMM, create_network

    import onnx
    import torch

    create_network("tresnet_m", 10)  # imports the patched timm, and refuses another
    with mock.patch.object(sys, "path", [TIMM, *sys.path]):
        from timm.models.tresnet import TResNet
    torch.manual_seed(0)
    network = TResNet([1, 1, 1, 1], num_classes=10, width_factor=0.25).train()
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        if lineage == "miil" and hasattr(module, "pad_mode"):
            module.pad_mode = "reflect"
        if lineage == "miil" and name.startswith("body.layer"):
            if isinstance(module, torch.nn.LeakyReLU):
                module.negative_slope = 1e-3
    torch.nn.init.normal_(network.head.fc.weight, 0, 0.5)
    with torch.no_grad():
        network(torch.rand(8, 3, size, size))
    model = build_model(network.eval(), size, 11, None, stem)
    onnx.helper.set_model_props(
        model,
        {"variant": "tresnet_m", "img_size": str(size), "num_classes": "10", "lineage": lineage},
    )
    onnx.save(model, str(path))
    return path


def save_images(folder: Path, count: int, size: int = 64) -> Path:
    """Prepared images i1.bin, i2.bin, …: smooth random colours, each another one."""
    folder.mkdir(mode=0o750)
    rng = np.random.RandomState(5)
    for number in range(1, count + 1):
        coarse = rng.rand(3, 4, 4) ** rng.randint(1, 4)
        image = np.kron(coarse, np.ones((size // 4, size // 4))) * 0.8 + 0.2 * rng.rand(
            3, size, size
        )
        image.astype(np.float32).tofile(str(folder / f"i{number}.bin"))
    return folder


def onnx_outputs(model: Any, images: np.ndarray) -> List[np.ndarray]:
    """All outputs of an ONNX file, or of its bytes."""
    import onnxruntime

    model = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(
        None, {"image": images}
    )


def onnx_scores(model: Any, images: np.ndarray) -> np.ndarray:
    return onnx_outputs(model, images)[0]


# ---- starting programs ---------------------------------------------------------------------------


def start(environment: Dict[str, str], folder: Path, *command: object) -> Done:
    """Run a command in `folder` under the environment of an Ascend machine."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=str(folder),
        env=dict(os.environ, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        universal_newlines=True,
    )


def start_here(
    main: Callable[[], Any], environment: Dict[str, str], folder: Path, *words: object
) -> Done:
    """What start() would give for the program with this main(), without a process.

    words: the program's name, then its arguments.
    """
    from common.ascend import bench, chips, host
    from common.core.cli import Refusal

    chips.find_all_chips.cache_clear()  # a process asks each of them once
    host.host_facts.cache_clear()
    bench.spelling.cache_clear()
    out, err = io.StringIO(), io.StringIO()
    before, mask = os.getcwd(), os.umask(0)
    os.umask(mask)
    with mock.patch.dict(os.environ, environment), mock.patch.object(
        sys, "argv", list(map(str, words))
    ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            os.chdir(str(folder))
            status = main() or 0
        except Refusal as refusal:
            print(f"{words[0]}: {refusal.sentence}", file=err)
            status = refusal.status
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            os.chdir(before)
            os.umask(mask)
    return subprocess.CompletedProcess(
        list(map(str, words)), status, out.getvalue(), err.getvalue()
    )


def load(path: Path) -> ModuleType:
    """A stand-in's program as a module."""
    if str(HERE / "python") not in sys.path:
        sys.path.insert(0, str(HERE / "python"))
    spec = importlib.util.spec_from_file_location(f"standin_{path.stem.strip('_')}", str(path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def atc_here(machine: Machine, *words: object, **switches: str) -> Done:
    """The stand-in of atc without a process, as if it had found the host's Python on the PATH."""
    environment = dict(machine[0], STANDIN_STARTED_BY="python3", **switches)
    return start_here(load(HERE / "atc.py").main, environment, machine[1], "atc", *words)


def ais_bench_here(machine: Machine, *words: object, **switches: str) -> Done:
    """The stand-in of ais_bench without a process."""
    environment = dict(machine[0], STANDIN_STARTED_BY="python3", **switches)
    main = load(HERE / "python" / "ais_bench" / "__main__.py").main
    return start_here(main, environment, machine[1], "ais_bench", *words)


def start_ais_bench(machine: Machine, *words: object, **switches: str) -> Done:
    """python3 -m ais_bench in the work folder."""
    command = ["python3", "-m", "ais_bench", *words]
    return start(dict(machine[0], **switches), machine[1], *command)


def compile_net(machine: Machine, *words: object, **switches: str) -> Done:
    """scripts/onnx2om.sh net.onnx in the work folder."""
    command = ["bash", ROOT / "scripts" / "onnx2om.sh", "net.onnx", *words]
    return start(dict(machine[0], **switches), machine[1], *command)


def calls(environment: Dict[str, str], tool: str = "") -> List[Dict[str, Any]]:
    """What the stand-ins were started with so far, oldest first."""
    log = Path(environment["STANDIN_LOG"])
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row for row in rows if tool in ("", row["tool"])]


def processes(folder: Path = Path("/")) -> str:
    """The command lines of all living processes at work below a folder.

    They are read from /proc: not every machine has ps.
    """
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended in between
            if str(folder) in ("/", *map(str, Path(os.readlink(str(path.parent / "cwd"))).parents)):
                lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


# ---- the machine and what is on it ---------------------------------------------------------------


def make_machine(tmp_path: Path) -> Machine:
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o750)
    save_network(work / "net.onnx")
    environment = ascend_environment(
        tmp_path / "machine", HOME=str(tmp_path), TRESNET_PYTHON=sys.executable
    )
    return Machine(environment, work)


def put_model_and_images(machine: Machine, compiled: Path, count: int = 0) -> np.ndarray:
    """Put net_bs4.om and `count` images i1.bin, i2.bin, … into the work folder.

    Returns: the images, float32 [count, 3, 32, 32].
    """
    work = machine.folder
    (work / "net_bs4.om").write_bytes(compiled.read_bytes())
    (work / "net_bs4.om").chmod(0o640)
    (work / "in").mkdir(mode=0o750)
    images = np.random.RandomState(1).rand(count, 3, SIZE, SIZE).astype(np.float32)
    for number, image in enumerate(images, start=1):
        image.tofile(str(work / "in" / f"i{number}.bin"))
    return images
