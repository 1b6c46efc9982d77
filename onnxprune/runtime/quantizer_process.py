"""The process that runs ONNX Runtime's quantization tools: one task, as JSON on stdin, and then it ends."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.containment import die_with_parent, leave_no_core
from onnxprune.runtime import library  # tells ONNX Runtime to be quiet and to send nothing

Task = Mapping[str, Any]

#: Operators that ONNX Runtime computes in float32 alone on CPUs.
_NOT_IN_HALF = ("LSTM", "GRU", "RNN")


def main() -> None:
    """Do the task, and open what it made: ONNX Runtime may crash on that, and then it crashes here."""
    leave_no_core()
    die_with_parent()
    task = json.load(sys.stdin)
    _TASKS[task["kind"]](task)
    if task["kind"] == "float16":
        return  # nothing but a graph: its weights are elsewhere
    library.onnxruntime.InferenceSession(task["out"], providers=["CPUExecutionProvider"])


def _static(task: Task) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # untyped
        def __init__(self) -> None:
            self._arrays = np.load(task["feeds"], allow_pickle=False)
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return int(task["runs"])

        def set_range(self, start_index: int, end_index: int) -> None:
            self._runs = iter(range(start_index, end_index))

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            run = next(self._runs, None)
            if run is None:
                return None
            return {name: self._arrays[f"{run}_{place}"] for place, name in enumerate(task["names"])}

    # ONNX Runtime for Python 3.10 keeps no ranges: it finds them again each time, with the same result
    keeps_ranges = "calibration_cache_path" in inspect.signature(quantization.quantize_static).parameters
    quantization.quantize_static(
        task["model"],
        task["out"],
        Reader(),
        per_channel=task["per_channel"],
        activation_type=quantization.QuantType.QUInt8,  # int8 would waste half its values after a Relu
        weight_type=quantization.QuantType.QInt8,
        reduce_range=task["reduced"],
        nodes_to_quantize=task["nodes"],
        calibrate_method=quantization.CalibrationMethod[task["calibration"]],
        use_external_data_format=task["large"],
        **({"calibration_cache_path": task["ranges"]} if keeps_ranges else {}),
        extra_options={
            "WeightSymmetric": True,
            "CalibTensorRangeSymmetric": False,
            # one run after the other: it would keep all inner values of all runs
            "CalibStridedMinMax": 1,
        },
    )


def _float16(task: Task) -> None:
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers import float16

    def value_info(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:  # its own reads the tensor for that
        return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))

    float16.make_value_info_from_tensor = value_info
    # of a weight that is not there it changes the type alone
    converted = float16.convert_float_to_float16(
        onnx.load(task["model"], load_external_data=False),
        keep_io_types=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_NOT_IN_HALF],
        node_block_list=task["keep_float"],
    )
    # a value that two nodes in float32 read is cast twice under one name
    once = list({tuple(node.output): node for node in reversed(converted.graph.node)}.values())[::-1]
    del converted.graph.node[:]
    converted.graph.node.extend(once)
    sorted_model = ir.from_proto(converted)  # it puts casts at the end, behind their readers
    sorted_model.graph.sort()
    onnx.save(ir.to_proto(sorted_model), task["out"])


_TASKS: dict[str, Callable[[Task], None]] = {
    "static": _static,
    "float16": _float16,
}

if __name__ == "__main__":
    main()
