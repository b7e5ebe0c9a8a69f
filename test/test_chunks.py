"""results.chunks(): all results of a folder as arrays, in the order asked for, not a digit lost."""

from pathlib import Path
from typing import Dict, List

from common.core.cli import Refusal
from common.results import results

import numpy as np
import pytest

VALUES = np.round(np.random.RandomState(0).normal(0, 9, (7, 3)), 6)
STEMS = [f"i{place}" for place in (3, 1, 6, 0, 5, 2, 4)]  # not as they are sorted


def write(folder: Path, outfmt: str) -> Dict[str, str]:
    folder.mkdir()
    for place, row in enumerate(VALUES):
        content = results.encode(row if outfmt == "TXT" else row.astype(np.float32), outfmt)
        (folder / f"i{place}_0.{outfmt.lower()}").write_bytes(content)
    return results.result_files(str(folder))


@pytest.mark.parametrize(
    "outfmt, dtype", (("TXT", "float64"), ("NPY", "float32"), ("BIN", "float32"))
)
def test_the_results_come_in_the_order_asked_for_as_they_were_written(
    outfmt: str, dtype: str, tmp_path: Path
) -> None:
    chunks = list(results.chunks(write(tmp_path / "r", outfmt), STEMS, size=3))
    assert [chunk.shape for chunk in chunks] == [(3, 3), (3, 3), (1, 3)]
    assert {str(chunk.dtype) for chunk in chunks} == {dtype}
    expected = VALUES[[int(stem[1:]) for stem in STEMS]].astype(dtype)
    assert np.array_equal(np.concatenate(chunks), expected)


@pytest.mark.parametrize(
    "scores, answer", (([1.0, 5.0, 5.0], 1), ([2.0, 2.0, 2.0], 0), ([0.0, 1.0, 2.0], 2))
)
def test_the_answer_has_the_highest_score_and_of_equal_ones_the_lower_class(
    scores: List[float], answer: int, tmp_path: Path
) -> None:
    (tmp_path / "a_0.txt").write_bytes(results.encode(np.array(scores), "TXT"))
    assert results.answers(results.result_files(str(tmp_path)), ["a"]).tolist() == [answer]


def test_a_result_with_another_number_of_classes_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path / "r", "TXT")
    (tmp_path / "r" / "i5_0.txt").write_text("1.0 2.0 \n")
    with pytest.raises(Refusal) as error:
        list(results.chunks(paths, STEMS, size=2))
    assert error.value.sentence == (
        f"{tmp_path}/r/i5_0.txt holds 2 values, but {tmp_path}/r/i3_0.txt holds 3"
    )


def test_no_stems_are_no_chunks() -> None:
    assert list(results.chunks({}, [])) == []
