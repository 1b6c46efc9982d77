"""Sessions: models that are ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.errors import RuntimeFailure, RunTooLong
from onnxprune.runtime.library import ERRORS, FATAL_ONLY, onnxruntime, reason
from onnxprune.runtime.values import RAW, Borrowed, element_type_of, from_ort, tensor_info, to_ort
from onnxprune.runtime.watchdog import VARIABLE, Watchdog

#: Kinds of memory, as ONNX Runtime calls them, of providers that do not work in main memory.
DEVICES: Mapping[str, str] = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}


class Session:
    """A model that is ready to run; made by `open_session`.

    Attributes:
        inputs: shape and type of every input, by name, in the model's order.
        outputs: the same for every output.
        providers: ONNX Runtime's names of the providers in use, the preferred one first.
        device: the kind of memory that the first of them works in, if that is not main memory.
    """

    def __init__(
        self, native: onnxruntime.InferenceSession, label: str, kept: object = None, weight_bytes: int = 0
    ) -> None:
        self._native = native
        self._label = label
        self._kept = kept  # arrays that the session reads without owning them
        self.inputs = {node.name: tensor_info(node) for node in native.get_inputs()}
        self.outputs = {node.name: tensor_info(node) for node in native.get_outputs()}
        self.providers: tuple[str, ...] = tuple(native.get_providers())
        self.device = DEVICES.get(self.providers[0])
        self._element_types = {
            node.name: int(element_type_of(node.type) or 0)
            for node in (*native.get_inputs(), *native.get_outputs())
        }
        self._needs_raw = any(element_type in RAW for element_type in self._element_types.values())
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = FATAL_ONLY
        self._watchdog = Watchdog(self._options, weight_bytes)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the model's order."""
        return tuple(self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(self.outputs)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: one array per input, of the shape and type in ``inputs``.
            outputs: names of the outputs to compute; all of them if None.

        Returns:
            The outputs by name, in the order asked for. Types that numpy lacks are those of ml_dtypes.

        Raises:
            RuntimeFailure: ONNX Runtime refused the inputs or failed.
        """
        names = list(self.outputs if outputs is None else outputs)
        self._watchdog.begin(feeds)
        try:
            return self._run(feeds, names)
        finally:
            self._watchdog.end()

    def _run(self, feeds: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
        """Run the model once; however long that takes."""
        try:
            if self._needs_raw:
                return self._run_raw(feeds, names)
            return dict(zip(names, self._native.run(names, dict(feeds), self._options), strict=True))
        except ERRORS as error:
            raise self._failure(error) from None

    def _failure(self, error: BaseException) -> RuntimeFailure:
        if self._options.terminate:
            return RunTooLong(
                f"{self._label}: a run took longer than {self._watchdog.limit_seconds or 0:.0f} s, far too "
                f"long for a model and inputs of this size; {VARIABLE} sets another limit"
            )
        return RuntimeFailure(f"{self._label}: run failed: {reason(error)}")

    def run_in_place(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once, as `run`, for all outputs without a copy of each.

        Returns:
            The outputs by name, read-only: ONNX Runtime's own memory, which lives as long as the arrays.

        Raises:
            RuntimeFailure: ONNX Runtime refused the inputs or failed.
        """
        if self._needs_raw:
            return self.run(feeds)
        self._watchdog.begin(feeds)
        try:
            values = {name: to_ort(array, 0) for name, array in feeds.items()}
            results = self._native.run_with_ort_values(list(self.outputs), values, self._options)
        except ERRORS as error:
            raise self._failure(error) from None
        finally:
            self._watchdog.end()
        pairs = zip(self.outputs.items(), results, strict=True)
        return {name: np.asarray(Borrowed(result, info.dtype)) for (name, info), result in pairs}

    def runner(self, feeds: Mapping[str, np.ndarray], *, on_device: bool = True) -> Callable[[], object]:
        """Return what runs the model once on these inputs, for measuring.

        Args:
            feeds: one array per input.
            on_device: where the provider has memory of its own, put the inputs there once and leave the
                outputs there, so that a run does not copy them; it returns when the outputs are computed.

        Raises:
            RuntimeFailure: ONNX Runtime refused the inputs; the runner itself raises it where a run fails.
        """
        if self.device is None or not on_device:
            return self._measured(feeds)
        try:
            binding = self._bind(feeds, self.device)
        except ERRORS as error:
            raise RuntimeFailure(f"{self._label}: inputs cannot be bound: {reason(error)}") from None

        def run() -> None:
            try:
                self._native.run_with_iobinding(binding, self._options)
                binding.synchronize_outputs()  # a kernel is only queued when the call returns
            except ERRORS as error:
                raise RuntimeFailure(f"{self._label}: run failed: {reason(error)}") from None

        return run

    def _measured(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what runs the model; only the first run is watched, so that watching is not measured."""
        names = list(self.outputs)
        unwatched = False

        def run() -> object:
            nonlocal unwatched
            if unwatched:
                return self._run(feeds, names)
            result = self.run(feeds)
            unwatched = True
            return result

        return run

    def _bind(self, feeds: Mapping[str, np.ndarray], device: str) -> onnxruntime.IOBinding:
        number = int(self._native.get_provider_options().get(self.providers[0], {}).get("device_id") or 0)
        binding = self._native.io_binding()
        for name, array in feeds.items():
            if self._element_types.get(name, 0) in RAW:  # ONNX Runtime puts no such array on a device
                value = to_ort(array, self._element_types[name])
            else:
                contiguous = np.asarray(array, order="C")
                value = onnxruntime.OrtValue.ortvalue_from_numpy(contiguous, device, number)
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, device, number)
        binding.synchronize_inputs()
        return binding

    def end_profiling(self) -> str:
        """Close the profile of a session that was opened with one; return its path."""
        return str(self._native.end_profiling())

    def _run_raw(self, feeds: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
        values = {name: to_ort(array, self._element_types.get(name, 0)) for name, array in feeds.items()}
        results = self._native.run_with_ort_values(names, values, self._options)
        return {name: from_ort(result) for name, result in zip(names, results, strict=True)}
