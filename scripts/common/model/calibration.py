"""int8 for ONNX Runtime on the CPU, by its own tools: how ranges and weights are chosen.

A Variant is one of several ways. Which is best depends on the weights, so some are tried on images:
the fastest whose agreement with float32 is within the interval of the best one's is taken.
"""

import contextlib
import copy
import importlib.util
import inspect
import io
import logging
import os
import statistics
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.core import progress
from common.core.cli import counted
from common.data.inputs import Input, read_batch
from common.model import operators, quantisation
from common.model.statistics import cosine_similarity, interval

import numpy as np
import onnx

OPSET = 13  # the first whose (de)quantisation has a scale per channel
METHODS = ("minmax", "entropy", "percentile")  # by which a tensor's range is found
SCALES = ("channel", "tensor")  # a scale for each output channel of the weights, or one for all
BITS = (7, 8)  # of the weights
SEVEN_BITS = 64  # the largest magnitude of such weights: -64 to 63, or -64 to 64
AT_ONCE = 4  # images whose tensors the calibration keeps in memory
# Images for entropy and percentile: they count every value of every tensor, half a second each.
HISTOGRAM_IMAGES = 32
ROUNDS = 5  # in which models are measured in turns
ROUND = 0.2  # s: a model runs at least so long in a round
CLEARLY_FASTER = 1.03  # ratio of the medians; every round must say the same as well


class Variant(NamedTuple):
    """One way to quantise."""

    bits: int
    scales: str
    ranges: str

    def __str__(self) -> str:
        return f"weights of {self.bits} bits, a scale per {self.scales}, ranges by {self.ranges}"


class Tried(NamedTuple):
    """A variant on the images of the trial, beside float32."""

    variant: Variant
    agreement: int  # images with the same Top-1
    cosine: float  # of the logits, mean


class Speed(NamedTuple):
    """Models measured in turns."""

    batch_size: int
    images_per_s: Dict[str, List[float]]  # {model: one figure a round}

    def median(self, name: str) -> float:
        return statistics.median(self.images_per_s[name])

    def ratios(self, name: str, other: str) -> List[float]:
        """How many times as fast one is as the other, a figure for each round."""
        pairs = zip(self.images_per_s[name], self.images_per_s[other])
        return [mine / others for mine, others in pairs]

    def is_clearly_faster(self, name: str, other: str) -> bool:
        ratios = self.ratios(name, other)
        return min(ratios) > 1 and statistics.median(ratios) >= CLEARLY_FASTER


# ---- quantising ----------------------------------------------------------------------------------


class Quantiser:
    """Makes int8 models of a float32 one; each calibration runs once, however many models follow.

    The models are in QDQ form, with int8 weights and uint8 activations.
    """

    def __init__(self, model: onnx.ModelProto, paths: Sequence[str], sample: Input) -> None:
        """paths: the images of the calibration; sample: the model's input for one of them."""
        self.paths, self.sample = paths, sample
        opset = max(OPSET, model.opset_import[0].version)
        converted = onnx.version_converter.convert_version(model, opset)
        self.model = onnx.shape_inference.infer_shapes(converted)
        about = {entry.key: entry.value for entry in model.metadata_props}
        # ONNX Runtime's own mark of a model with shapes; without it, it infers them each time.
        onnx.helper.set_model_props(self.model, {**about, "onnx.infer": "onnxruntime.quant"})
        self.ranges: Dict[str, Any] = {}  # {method: what the calibration found}
        self.keeps_bits: Dict[str, bool] = {}  # {scales: whether 7 bits are kept}

    def calibrate(self, method: str) -> Any:
        """The ranges of all tensors, as ONNX Runtime's quantiser takes them."""
        if method not in self.ranges:
            paths = list(self.paths)
            if method != "minmax":
                paths = paths[:: max(1, len(paths) // HISTOGRAM_IMAGES)][:HISTOGRAM_IMAGES]
            with tempfile.TemporaryDirectory() as folder, quiet():
                self.ranges[method] = self.run_calibration(method, paths, folder)
        return copy.deepcopy(self.ranges[method])  # a quantiser changes what it is given

    def run_calibration(self, method: str, paths: List[str], folder: str) -> Any:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        class Images(CalibrationDataReader):
            """Some images, one after the other."""

            def __init__(self, some: List[str], sample: Input) -> None:
                self.images = iter([{sample.name: read_batch([path], sample)} for path in some])

            def get_next(self) -> Optional[Dict[str, np.ndarray]]:
                return next(self.images, None)

        kinds = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        onnxruntime.set_default_logger_severity(4)  # what goes wrong is in the exception
        source = os.path.join(folder, "float32.onnx")
        onnx.save(self.model, source)
        calibrator = create_calibrator(
            source,
            operator_types(),
            augmented_model_path=os.path.join(folder, "augmented.onnx"),
            calibrate_method=kinds[method],
        )
        # The bar begins here: setting up takes seconds, and says nothing about the images.
        with progress.Bar(f"calibrating ({method})", len(paths), "images", lines_every=10) as bar:
            for start in range(0, len(paths), AT_ONCE):
                some = paths[start : start + AT_ONCE]
                calibrator.collect_data(Images(some, self.sample))
                bar.advance(len(some))
        if hasattr(calibrator, "compute_data"):
            return calibrator.compute_data()
        return calibrator.compute_range()  # ONNX Runtime 1.14

    def make(self, variant: Variant, left: Sequence[str] = ()) -> onnx.ModelProto:
        """An int8 model; left: operators that stay float32."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        settings = {
            "model": copy.deepcopy(self.model),
            "per_channel": variant.scales == "channel",
            "reduce_range": variant.bits == min(BITS),
            "mode": QuantizationMode.QLinearOps,
            "static": True,
            "weight_qType": QuantType.QInt8,
            "activation_qType": QuantType.QUInt8,
            "tensors_range": self.calibrate(variant.ranges),
            "nodes_to_quantize": [],
            "nodes_to_exclude": list(left),
            "op_types_to_quantize": operator_types(),
            "extra_options": {},
        }
        known = inspect.signature(QDQQuantizer.__init__).parameters
        old = {"weight_qType", "activation_qType"}
        for name in old - set(known):  # their names differ between versions
            settings[name.replace("qType", "type")] = settings.pop(name)
        given = {name: value for name, value in settings.items() if name in known}
        with quiet():
            quantiser = QDQQuantizer(**given)
            quantiser.quantize_model()
        return quantiser.model.model

    def can_make(self, variant: Variant) -> bool:
        """Whether this ONNX Runtime keeps to the bits: 1.14 ignores 7 of them per tensor."""
        if variant.bits == max(BITS):
            return True
        if variant.scales not in self.keeps_bits:
            largest = largest_weight(self.make(variant))
            self.keeps_bits[variant.scales] = largest <= SEVEN_BITS
        return self.keeps_bits[variant.scales]


def largest_weight(model: onnx.ModelProto) -> int:
    """The largest magnitude among the int8 weights of a model."""
    largest = 0
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor).astype(np.int16)
            largest = max(largest, int(np.abs(values).max()))
    return largest


def methods_here() -> List[str]:
    """The METHODS that can be used: early ONNX Runtimes need SciPy for entropy."""
    from onnxruntime.quantization import calibrate

    has_entropy = hasattr(calibrate, "entropy") or importlib.util.find_spec("scipy") is not None
    return [method for method in METHODS if method != "entropy" or has_entropy]


def operator_types() -> List[str]:
    """The types of operators that ONNX Runtime quantises."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's tools print what they do, and advise steps that are done already."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


# ---- measuring -----------------------------------------------------------------------------------


def measure(models: Dict[str, onnx.ModelProto], images: np.ndarray) -> Speed:
    """Run models in turns. images: float32 [batch, 3, h, w]."""
    calls: Dict[str, Callable[[np.ndarray], Any]] = {}
    loops: Dict[str, int] = {}
    for name, model in models.items():
        infer = operators.logits_of(model)
        infer(images)  # the first run sets up
        start = time.perf_counter()
        infer(images)
        loops[name] = max(1, int(ROUND / max(time.perf_counter() - start, 1e-6)))
        calls[name] = infer
    figures: Dict[str, List[float]] = {name: [] for name in models}
    with progress.Bar("measuring", ROUNDS * len(models), "runs") as bar:
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(loops[name]):
                    call(images)
                seconds = time.perf_counter() - start
                figures[name].append(loops[name] * len(images) / seconds)
                bar.advance()
    return Speed(len(images), figures)


# ---- the trial -----------------------------------------------------------------------------------


def try_variants(
    quantiser: Quantiser,
    variants: Sequence[Variant],
    float32: onnx.ModelProto,
    paths: Sequence[str],
    sample: Input,
) -> List[Tried]:
    """Each variant on the images of the trial; paths: of these images."""
    reference = quantisation.logits(float32, paths, sample, "inference in float32")
    rows = []
    for number, variant in enumerate(variants, 1):
        what = f"way {number} of {len(variants)}"
        int8 = quantisation.logits(quantiser.make(variant), paths, sample, what)
        same = int(np.sum(reference.argmax(1) == int8.argmax(1)))
        cosine = float(np.mean(list(map(cosine_similarity, reference, int8))))
        rows.append(Tried(variant, same, cosine))
    return rows


def within_best(rows: Sequence[Tried], images: int) -> List[Tried]:
    """The rows whose agreement lies within the 95 % interval of the best one's."""
    low, _ = interval(max(row.agreement for row in rows), images)
    return [row for row in rows if 100 * row.agreement / images >= low]


def choose(rows: Sequence[Tried], images: int, speed: Optional[Speed]) -> Tried:
    """The fastest row within the best one's interval; of equally fast ones the best cosine's.

    images: of the trial. speed: of a model for each kind of scales, by its name; only they change
    the operators, while bits and ranges change their numbers.
    """
    fit = within_best(rows, images)
    fast = faster_scales(speed)
    return max([row for row in fit if row.variant.scales == fast] or fit, key=by_cosine)


def by_cosine(row: Tried) -> float:
    return row.cosine


def faster_scales(speed: Optional[Speed]) -> str:
    """The kind of scales that is clearly faster than the other one, "" if none is."""
    for scales, other in (SCALES, SCALES[::-1]):
        if speed and speed.is_clearly_faster(scales, other):
            return scales
    return ""


def explain(rows: Sequence[Tried], chosen: Tried, images: int, speed: Optional[Speed]) -> List[str]:
    """What was tried, what was taken and why, in three lines."""
    fast = faster_scales(speed)
    reason = "none of these is clearly faster"
    if fast:
        reason = f"a scale per {fast} is clearly faster"
        if fast != chosen.variant.scales:
            reason += ", but not among them"
    low, high = interval(chosen.agreement, images)
    shares = [100 * row.agreement / images for row in rows]
    kept = len(within_best(rows, images))
    return [
        f"int8 was tried in {counted(len(rows), 'way')} on {counted(images, 'image')}: the same "
        f"Top-1 as float32 for {min(shares):.2f} to {max(shares):.2f} % of them",
        f"taken: {chosen.variant}: {100 * chosen.agreement / images:.2f} % (95 % interval "
        f"{low:.2f} to {high:.2f} %), cosine of the logits {chosen.cosine:.6f}",
        f"why: {counted(kept, 'way')} within the interval of the best; {reason}; of the equally "
        "fast ones its cosine is the highest",
    ]


def ratio(speed: Speed, name: str, other: str) -> Tuple[float, float, float]:
    """(median, lowest, highest) of how many times as fast one model is as the other."""
    ratios = speed.ratios(name, other)
    return statistics.median(ratios), min(ratios), max(ratios)
