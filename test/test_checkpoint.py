"""Checkpoints as people have them, and other files: read without running anything, or refused."""

import argparse
import builtins
import datetime
import json
import os
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, Sequence
from unittest import mock

from common.core.cli import Refusal
from common.model import network
from common.model.checkpoint import NAMES_GLOBALS, find_state_dict, load_checkpoint

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import ROOT

NAMES = [
    "body.conv1.0.weight",
    *(f"body.layer1.{index}.conv1.0.weight" for index in range(28)),
    "head.fc.weight",
]


def made_up_weights(fill: float = 1.0) -> Dict[str, torch.Tensor]:
    return OrderedDict((name, torch.full((2, 3), float(fill))) for name in NAMES)


def refusal_of(held: Any, **options: Any) -> str:
    """What find_state_dict() says when it refuses what a checkpoint holds."""
    with pytest.raises(Refusal) as refusing:
        find_state_dict(held, "x.pth", **options)
    return refusing.value.sentence


def saved(path: Path, held: Any, **options: Any) -> str:
    """The path of a file that torch.save wrote."""
    torch.save(held, str(path), **options)
    return str(path)


# ---- the state dict in its wrapping --------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    "net model_state_dict model_state teacher student module weights params ema model_ema "
    "state_dict checkpoint.model.state_dict".split(),
)
def test_the_only_state_dict_is_found_under_any_key(key: str) -> None:
    held: Any = made_up_weights()
    for part in reversed(key.split(".")):
        held = {
            part: held,
            "epoch": 3,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
        }
    state = find_state_dict(held, "x.pth")
    assert (list(state.tensors), state.key, state.prefix) == (NAMES, key, "")


def test_prefixes_of_wrappers_are_taken_off_in_any_order() -> None:
    prefixes = (
        "module. _orig_mod. model. net. backbone. module._orig_mod. _orig_mod.module. "
        "model.net.backbone."
    )
    for prefix in prefixes.split():
        wrapped = {prefix + name: tensor for name, tensor in made_up_weights().items()}
        state = find_state_dict(wrapped, "x.pth")
        assert (list(state.tensors), state.prefix) == (NAMES, prefix)


def test_what_stands_beside_the_tensors_of_a_bare_state_dict_is_left_out() -> None:
    checkpoint = dict(made_up_weights(), epoch=5, arch="tresnet_m")
    assert list(find_state_dict(checkpoint, "x.pth").tensors) == NAMES


def test_the_user_chooses_one_of_several_equal_state_dicts() -> None:
    held = {
        "student": made_up_weights(1),
        "teacher": made_up_weights(2),
        "head": {"a": torch.ones(1)},
    }
    assert refusal_of(held) == (
        "x.pth holds several state dicts: student (30 tensors), teacher (30 tensors); "
        "choose one of them, for example --key student"
    )
    assert float(find_state_dict(held, "x.pth", key="teacher").tensors[NAMES[0]][0, 0]) == 2
    assert "--key net fits none of the state dicts in x.pth: student (30 " in refusal_of(
        held, key="net"
    )
    nested = {"a": {"model": made_up_weights(1)}, "b": {"model": made_up_weights(2)}}
    assert "fits 2 of the state dicts" in refusal_of(nested, key="model")
    assert float(find_state_dict(nested, "x.pth", key="b.model").tensors[NAMES[0]][0, 0]) == 2


def test_averaged_weights_are_taken_when_asked_for_or_alone() -> None:
    held = {
        "model": made_up_weights(1),
        "model_ema": made_up_weights(2),
        "state_dict": made_up_weights(3),
    }
    assert find_state_dict(held, "x.pth").key == "state_dict"
    assert find_state_dict(held, "x.pth", ema=True).key == "model_ema"
    assert find_state_dict({"ema": {"module": made_up_weights()}}, "x.pth").key == "ema.module"
    assert (
        "has no averaged weights (state_dict_ema), only net (30 tensors); leave out --ema"
        in refusal_of({"net": made_up_weights()}, ema=True)
    )


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: torch.empty(3, 3, device="meta"), "is on the meta device, so it has no values"),
        (lambda: torch.ones(3, dtype=torch.complex64), "has complex values"),
        (
            lambda: torch.ones(1, 2048).expand(10**9, 2048),
            "has far more values than are stored for it",
        ),
    ],
)
def test_tensors_that_cannot_be_weights_are_named(
    make: Callable[[], torch.Tensor], problem: str, tmp_path: Path
) -> None:
    try:
        tensor = make()
    except RuntimeError as error:
        pytest.skip(f"PyTorch {torch.__version__} has no such tensors: {error}")
    path = saved(tmp_path / "x.pth", dict(made_up_weights(), **{"head.fc.weight": tensor}))
    try:
        held = load_checkpoint(path)
    except Refusal as refusal:  # the reader for older ones builds plain tensors alone
        assert tuple(map(int, torch.__version__.split(".")[:2])) < NAMES_GLOBALS
        assert "which weights do not need" in refusal.sentence
        return
    assert f"the tensor head.fc.weight of shape {list(tensor.shape)} {problem}" in refusal_of(held)


def test_a_tensor_under_a_number_is_named() -> None:
    assert "the tensor 7 of shape [1] is named by a number" in refusal_of(
        {**made_up_weights(), 7: torch.ones(1)}
    )


# ---- what may lie beside the weights -----------------------------------------------------------


def test_harmless_extras_are_read_by_name_and_nothing_runs(tmp_path: Path) -> None:
    extras = {
        "path": pathlib.PosixPath("/a/b"),
        "windows": pathlib.PureWindowsPath("c:/d"),
        "time": datetime.datetime(2024, 1, 2, 3),
        "took": datetime.timedelta(seconds=5),
        "history": defaultdict(list, {"loss": [1.0]}),
        "array": np.arange(6.0).reshape(2, 3),
        "random": random.getstate(),
        "numpy_random": np.random.RandomState(0).get_state(),
        "torch_random": torch.get_rng_state(),
        "args": argparse.Namespace(lr=0.1),
        "config": types.SimpleNamespace(a=1, nested=types.SimpleNamespace(b=np.float64(2))),
    }
    for name, options in (
        ("zip.pth", {}),
        ("legacy.pth", {"_use_new_zipfile_serialization": False}),
    ):
        held = load_checkpoint(
            saved(tmp_path / name, dict(extras, state_dict=made_up_weights()), **options)
        )
        assert list(find_state_dict(held, "x.pth").tensors) == NAMES
        assert held["history"] == {"loss": [1.0]} and held["array"].tolist() == [
            [0, 1, 2],
            [3, 4, 5],
        ]
        assert (
            held["config"].nested.b == 2 and str(held["path"]) == "/a/b" and held["time"].hour == 3
        )


class Calls:
    """Unpickled naively, calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "function, arguments",
    [
        (builtins.eval, ("__import__('os').mkdir('executed')",)),
        (builtins.getattr, (pathlib.Path, "cwd")),
        (os.mkdir, ("executed",)),
        (pathlib.Path.mkdir, (pathlib.PosixPath("executed"),)),
        (np.save, ("executed", np.ones(1))),
        (builtins.open, ("executed", "w")),
    ],
)
def test_functions_are_refused_by_name(
    function: Any, arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(
        tmp_path / "x.pth", {"state_dict": made_up_weights(), "extra": Calls(function, *arguments)}
    )
    with pytest.raises(Refusal, match="which weights do not need and which could run code"):
        load_checkpoint(path)
    assert os.listdir(str(tmp_path)) == ["x.pth"]


# ---- damage, and what is not a checkpoint --------------------------------------------------------


def test_flipped_bits_are_seen_by_the_archives_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    saved(path, {"state_dict": {"body.conv1.0.weight": torch.ones(100000)}})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1
    data[middle + 100] ^= 128
    path.write_bytes(bytes(data))
    assert torch.load(str(path))["state_dict"]["body.conv1.0.weight"].numel() == 100000, (
        "PyTorch does not see it"
    )
    with pytest.raises(Refusal, match="is damaged: the checksum of .* in it is wrong"):
        load_checkpoint(str(path))


def test_an_archive_that_is_larger_unpacked_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(str(tmp_path / "x.pth"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(Refusal, match="holds compressed files"):
        load_checkpoint(str(tmp_path / "x.pth"))


def test_a_pickle_of_another_kind_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}, protocol=2))
    with pytest.raises(Refusal) as refusing:
        load_checkpoint(str(tmp_path / "x.pth"))
    assert "is a Python pickle that torch.save did not write" in refusing.value.sentence
    assert "weights_only" not in refusing.value.sentence


@pytest.mark.parametrize(
    "error, sentence",
    [
        (MemoryError(), "there is not enough memory to load"),
        (
            RuntimeError("[alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you"),
            "there is not enough memory to load",
        ),
        (
            ModuleNotFoundError("No module named 'numpy'", name="numpy"),
            "the package numpy is not installed",
        ),
        (OSError(5, "Input/output error"), r"cannot be read \(Input/output error\)"),
    ],
)
def test_what_is_not_the_files_fault_is_not_called_damage(
    error: Exception, sentence: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.pth", made_up_weights())
    with mock.patch("common.model.checkpoint.load_weights_only", side_effect=error), pytest.raises(
        Refusal, match=sentence
    ):
        load_checkpoint(path)


def test_weights_of_another_type_and_nothing_at_all_are_not_called_damage(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(
        Refusal,
        match="the tensor w has the type F8_E4M3; save the network's plain state_dict.. in fl",
    ):
        load_checkpoint(str(tmp_path / "x.safetensors"))
    with pytest.raises(Refusal, match="but holds a dict of nothing"):
        find_state_dict({}, "x.pth")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be read .Is a directory.; give the path"):
        load_checkpoint(str(tmp_path))


# ---- what the tensors say ------------------------------------------------------------------------


def tresnet(width: int, *blocks: int) -> Dict[str, torch.Tensor]:
    """What recognise() looks at."""
    tensors = {network.STEM: torch.zeros(width, 48, 3, 3), "head.fc.weight": torch.zeros(10, 2048)}
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            tensors[f"body.layer{stage}.{block}.conv1.0.weight"] = torch.zeros(1)
    return tensors


def test_a_tresnet_of_another_kind_is_named_as_what_it_is() -> None:
    with pytest.raises(
        Refusal,
        match="a kind that is not supported: 64 channels in its first convolution and 3-4-6-3 "
        "blocks in its stages, but tresnet_m has 3-4-11-3",
    ):
        network.recognise(tresnet(64, 3, 4, 6, 3), "x.pth", None, None, None)


@pytest.mark.parametrize(
    "arch", ["TResNet-M", "tresnetm", "tresnet_m_448", "TRESNET_M.miil_in1k", "my_network"]
)
def test_another_spelling_of_arch_is_no_contradiction(
    arch: str, capsys: pytest.CaptureFixture
) -> None:
    assert (
        network.recognise(tresnet(64, 3, 4, 11, 3), "x.pth", arch, None, None).variant
        == "tresnet_m"
    )
    assert ("says my_network, which is not the name of a TResNet" in capsys.readouterr().err) == (
        arch == "my_network"
    )


def test_the_lineage_is_known_from_the_counters_or_from_the_user() -> None:
    plain = tresnet(64, 3, 4, 11, 3)
    tracked = dict(plain, **{"body.conv1.1.num_batches_tracked": torch.zeros(1)})
    for tensors, lineage, known in (
        (plain, None, False),
        (plain, "ascend", True),
        (tracked, None, True),
    ):
        seen = network.recognise(tensors, "x.pth", None, None, lineage)
        assert seen.lineage_is_known == known


@pytest.mark.parametrize(
    "note, assumed", [(False, True), (True, False), ("False", True), ("True", False), (None, False)]
)
def test_a_record_says_whether_the_lineage_is_assumed(note: Any, assumed: bool) -> None:
    """Up to version 1.2.0 records held a text."""
    assert network.lineage_is_assumed({"lineage_told": note}) == assumed


# ---- .safetensors --------------------------------------------------------------------------------


def entry(begin: int, end: int, shape: Sequence[int] = (1,), dtype: str = "F32") -> Dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_safetensors(path: Path, header: Any, data: bytes) -> str:
    """Write a .safetensors file by the format's description; the header a dict, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(path)


@pytest.mark.parametrize("kind", ("float64", "float32", "float16", "int64", "int32"))
def test_a_file_that_the_safetensors_package_wrote_is_read_to_the_bit(
    kind: str, tmp_path: Path
) -> None:
    generator = np.random.RandomState(1)
    arrays = {"b": generator.randint(-9, 9, (3, 1, 5)), "a": np.array(7), "none": np.zeros((0, 4))}
    arrays = {name: array.astype(kind) for name, array in arrays.items()}
    path = str(tmp_path / "x.safetensors")
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    read = load_checkpoint(path)
    assert list(read) == ["a", "b", "none"]
    for name, array in arrays.items():
        assert read[name].dtype == getattr(torch, kind)
        assert tuple(read[name].shape) == array.shape
        assert read[name].numpy().tobytes() == array.tobytes()
        read[name] += 1  # memory of its own


ONE = entry(0, 4)
DAMAGED = {  # name: header, data
    "truncated data": ({"a": entry(0, 8, (2,))}, bytes(7)),
    "more data than tensors": ({"a": ONE}, bytes(5)),
    "beyond the end": ({"a": entry(0, 16, (4,))}, b""),
    "overlap": ({"a": ONE, "b": entry(2, 6)}, bytes(6)),
    "hole": ({"a": ONE, "b": entry(6, 10)}, bytes(10)),
    "end before begin": ({"a": entry(4, 0)}, bytes(4)),
    "negative offset": ({"a": entry(-4, 0)}, bytes(4)),
    "another size than its shape": ({"a": entry(0, 4, (2,))}, bytes(4)),
    "shape that overflows": ({"a": entry(0, 4, (1 << 62, 1 << 62))}, bytes(4)),
    "empty, and wider than any array": ({"a": entry(0, 0, (0, (1 << 63) - 1))}, b""),
    "one name twice": (
        b'{"a": %s, "a": %s}' % (json.dumps(ONE).encode(), json.dumps(entry(4, 8)).encode()),
        bytes(8),
    ),
    "type that does not exist": ({"a": entry(0, 4, dtype="Q7")}, bytes(4)),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a list": ([], b""),
    "nested too deep": (b'{"a":' * 100000, b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "metadata that are not texts": ({"__metadata__": {"epoch": 5}, "a": ONE}, bytes(4)),
    "too large a header": (b'{"a":{"dtype":"F32","shape":[0' + b",0" * (1 << 23) + b"]}}", b""),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_safetensors_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", *DAMAGED[name])
    with pytest.raises(Refusal) as refusing:
        load_checkpoint(path)
    assert re.fullmatch(
        re.escape(path) + r" cannot be read as a checkpoint \([^\n]+\); it is damaged "
        "or incomplete: copy it again",
        refusing.value.sentence,
    )


def test_a_truncated_safetensors_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = Path(write_safetensors(path, {"a": ONE}, bytes(4))).read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(Refusal, match="cannot be read as a checkpoint .*copy it again"):
            load_checkpoint(str(path))
    path.write_bytes(content)
    assert load_checkpoint(str(path))["a"].tolist() == [0.0]


@pytest.mark.parametrize("kind", ("U8", "BOOL", "I8", "F8_E4M3"))
def test_a_type_that_weights_cannot_have_is_named(kind: str, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"a": entry(0, 4, (4,), kind)}, bytes(4))
    with pytest.raises(
        Refusal, match=f"the tensor a has the type {kind}; save the network's plain"
    ):
        load_checkpoint(path)


def test_too_little_memory_for_a_safetensors_file_is_reported(tmp_path: Path) -> None:
    """The package itself ends in a panic there."""
    path = write_safetensors(tmp_path / "x.safetensors", {"a": entry(0, 1 << 28, (1 << 26,))}, b"")
    os.truncate(path, os.path.getsize(path) + (1 << 28))
    code = (
        "import resource, sys, numpy, torch\nfrom common.model.checkpoint import load_checkpoint\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)\n"
        "load_checkpoint(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "scripts")),
        timeout=120,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        f"there is not enough memory to load {re.escape(path)} .*\n", done.stderr.decode()
    )
