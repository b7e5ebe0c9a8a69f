"""timm's patched source: a file that changed since is noticed before the network is made."""

import shutil
from pathlib import Path

from common.core import patched
from common.core.cli import Refusal
from common.core.places import PATCHED
from common.model import network

import pytest
import timm_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the patched source with a new stamp."""
    folder = tmp_path / "timm"
    shutil.copytree(network.TIMM, str(folder))
    patched.write_stamp(str(folder), timm_source.sha256(timm_source.PATCH), patched.OURS)
    return folder


def test_one_changed_bit_is_noticed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm_source.is_complete(str(source)) and patched.changed(str(source)) == []
    path = source / "timm" / "models" / "tresnet.py"
    content = path.read_bytes()
    place = content.index(b"act_param=1e-3") + len(b"act_param=1e-")  # 3 becomes 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert patched.changed(str(source)) == ["timm/models/tresnet.py"]
    assert not timm_source.is_complete(str(source))
    monkeypatch.setattr(network, "TIMM", str(source))
    with pytest.raises(Refusal, match="timm/models/tresnet.py changed; run: python3 scripts/timm"):
        network.create_network("tresnet_m", 10)


def test_a_lost_file_and_a_stamp_of_an_early_version(source: Path) -> None:
    stamp = source / PATCHED
    lines = [line.split(" ")[0] for line in stamp.read_text().split("\n")]
    stamp.write_text("\n".join([lines[0], patched.OURS, *lines[2:]]))
    assert timm_source.is_complete(str(source)), "it lists the files without their content"
    (source / "timm" / "data" / "mixup.py").unlink()
    assert patched.changed(str(source)) == ["timm/data/mixup.py"]
    assert not timm_source.is_complete(str(source))
    stamp.write_bytes(b"\xff\xfe")
    assert patched.read_stamp(str(source)).patch == ""
