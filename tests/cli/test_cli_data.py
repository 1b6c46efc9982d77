"""Data that can't be used: one line that names the file and the array, status 1, and no output."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

X = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
LABELS = np.zeros(20, np.int64)


def changed(place: tuple[int, int], value: float) -> np.ndarray:
    array = X.copy()
    array[place] = value
    return array


def saved_as(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, x=X, label=LABELS)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


def raw(contents: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(contents)

    return write


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def members(**contents: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"{name}.npy", content)

    return write


def flipped(path: Path) -> None:
    np.savez(path, x=X, label=LABELS)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 3] ^= 0xFF
    path.write_bytes(contents)


#: What is wrong, how to write it, and what the line says beside the name of the file.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong name": (saved_as(z=X, label=LABELS), "'z' is no input of the model"),
    "similar name": (saved_as(X=X, label=LABELS), "'X' is no input of the model"),
    "a name too many": (saved_as(x=X, z=X, label=LABELS), "'z' is no input of the model"),
    "labels alone": (saved_as(label=LABELS), "no array for a model input"),
    "wrong size": (saved_as(x=X[:, :15], label=LABELS), "'x' has shape (20, 15)"),
    "wrong rank": (saved_as(x=X[:, :, None], label=LABELS), "'x' has shape (20, 16, 1)"),
    "no axis of samples": (saved_as(x=np.float32(1), label=LABELS), "'x' has no first axis of samples"),
    "doubles": (saved_as(x=X.astype(np.float64), label=LABELS), "'x' is float64"),
    "integers": (saved_as(x=X.astype(np.int64), label=LABELS), "'x' is int64"),
    "text": (saved_as(x=X.astype(str), label=LABELS), "'x' has type <U"),
    "complex": (saved_as(x=X.astype(np.complex64), label=LABELS), "'x.npy' has type complex64"),
    "NaN": (saved_as(x=changed((3, 5), np.nan), label=LABELS), "'x' is nan at [3, 5]"),
    "infinity": (saved_as(x=changed((19, 0), -np.inf), label=LABELS), "'x' is -inf at [19, 0]"),
    "NaN label": (saved_as(x=X, label=np.full(20, np.nan)), "'label' is nan at [0]"),
    "no samples": (saved_as(x=X[:0], label=LABELS[:0]), "'x' is empty"),
    "no numbers": (saved_as(x=X[:, :0], label=LABELS), "'x' is empty"),
    "no arrays": (saved_as(), "no array for a model input"),
    "unequal numbers of samples": (saved_as(x=X, label=LABELS[:19]), "'label' has 19 samples"),
    "pickled array": (saved_as(x=np.array([{}] * 20)), "'x.npy' holds pickled Python objects"),
    "pickled label": (members(x=npy(X), label=npy(np.array([None] * 20), True)), "'label.npy' holds pickled"),
    "a pickle": (raw(pickle.dumps({"x": X})), "is no .npz archive"),
    "an .npy file": (raw(npy(X)), "is no .npz archive"),
    "an empty file": (raw(b""), "is no .npz archive"),
    "half an archive": (cut(0.5), "truncated"),
    "an archive without its last byte": (cut(0.9999), "truncated"),
    "half an array": (members(x=npy(X)[:700], label=npy(LABELS)), "'x.npy'"),
    "more than declared": (members(x=npy(X) + b"more", label=npy(LABELS)), "'x.npy'"),
    "no header": (members(x=b"x" * 2000, label=npy(LABELS)), "'x.npy'"),
    "a wrong bit": (flipped, "'x.npy'"),
}


@pytest.fixture(params=["prune", "layers", "apply", "validate"])
def command(request, run, saved, tmp_path):
    """Return what runs a command on data, and the file that must not be there afterwards."""
    output = tmp_path / "o.onnx"
    if request.param == "validate":
        return lambda data: run("validate", saved["mlp"], saved["mlp"], "--data", data), output
    if request.param == "layers":
        arguments = ["--pattern", "layers", "--amount", "0.5"]
        return lambda data: run("prune", saved["mlp"], "-o", output, *arguments, "--data", data), output
    if request.param == "prune":
        arguments = ["--amount", "0.5", "--score", "wanda"]
        return lambda data: run("prune", saved["mlp"], "-o", output, *arguments, "--data", data), output
    plan, first = tmp_path / "p.plan", tmp_path / "first.onnx"
    assert run("prune", saved["mlp"], "-o", first, "--amount", "0.5", "--plan", plan).status == 0
    return lambda data: run("apply", plan, saved["mlp"], "-o", output, "--data", data), output


@pytest.mark.parametrize("case", list(CASES))
def test_bad_data_is_one_line_and_no_output(command, tmp_path, case):
    write, words = CASES[case]
    path = tmp_path / "calib.npz"
    write(path)
    start, output = command
    ran = start(path)
    assert (ran.status, ran.out) == (1, "")
    assert str(path) in ran.error  # one line on stderr
    assert words in ran.error
    assert not output.exists()


def test_a_folder_and_missing_files(command, tmp_path):
    start, output = command
    (tmp_path / "folder").mkdir()
    for name, words in (("folder", "holds no .npz file"), ("none.npz", "no such file"), ("plain", "no such")):
        ran = start(tmp_path / name)
        assert (ran.status, ran.out) == (1, "")
        assert words in ran.error
        assert not output.exists()
    np.savez(tmp_path / "folder" / "a.npz", x=X)
    np.savez(tmp_path / "folder" / "b.npz", x=changed((1, 1), np.nan))
    ran = start(tmp_path / "folder")
    assert ran.status == 1
    assert "'x' is nan" in ran.error


def test_noise_by_name(run, saved, tmp_path):
    output = tmp_path / "o.onnx"
    arguments = ["-o", output, "--amount", "0.5", "--score", "activation", "--data", "random:40", "--json"]
    ran = run("prune", saved["mlp"], *arguments, "--batch", "8", "--memory-limit", "64MB", "--threads", "2")
    assert ran.status == 0
    assert "calibration was random noise" in json.dumps(ran.document)
    assert output.exists()
    ran = run("prune", saved["mlp"], "-o", tmp_path / "p.onnx", *arguments[2:-1])
    assert ran.status == 0
    assert "calibration was random noise" in ran.out + ran.err


@pytest.mark.parametrize("size", ["0", "-1", "1XB", "GB", "much", "inf", "nan", ""])
def test_sizes_that_are_none(run, saved, tmp_path, size):
    ran = run("prune", saved["mlp"], "-o", tmp_path / "o.onnx", "--amount", "0.5", f"--memory-limit={size}")
    assert ran.status == 2
    assert "is no size such as 512MB" in ran.error


@pytest.mark.parametrize("size", ["1000000", "1000kb", "512MB", "2GB", "1.5 GiB", "2g"])
def test_sizes(run, saved, tmp_path, size):
    arguments = ["--amount", "0.5", "--memory-limit", size]
    assert run("prune", saved["mlp"], "-o", tmp_path / "o.onnx", *arguments).status == 0


def test_a_limit_that_is_missed_is_one_line(run, saved, tmp_path):
    arguments = ["-o", tmp_path / "o.onnx", "--pattern", "layers", "--amount", "0.5", "--data", "random"]
    ran = run("prune", saved["residual_net"], *arguments, "--memory-limit", "100")
    assert ran.status == 3
    assert "more than the limit of 100" in ran.error
    assert not (tmp_path / "o.onnx").exists()


def test_weights_by_obs_in_json(run, saved, tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32))
    arguments = ("prune", saved["mlp"], "-o", tmp_path / "small.onnx", "--pattern", "2:4", "--score", "obs")
    ran = run(*arguments, "--data", tmp_path / "calib.npz", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.document["sections"]["masks"]
    assert all(row["sparsity"] == 0.5 for row in ran.document["sections"]["masks"])
    assert all(check["passed"] for check in ran.document["checks"])
    assert "pattern 2:4" in {check["name"] for check in ran.document["checks"]}


def test_rounds_on_the_command_line(run, saved, tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32))
    arguments = ("prune", saved["mlp"], "-o", tmp_path / "small.onnx", "--amount", "0.5", "--rounds", "3")
    ran = run(*arguments, "--recover", "bias", "--data", tmp_path / "calib.npz", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert [row["round"] for row in ran.document["sections"]["rounds"]] == [1, 2, 3]
