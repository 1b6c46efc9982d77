import io
import os
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxprune import machine, npz
from onnxprune.data import Dataset, load_data
from onnxprune.errors import DataError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS = np.arange(6)
INPUTS = {"x": ((None, 4), np.dtype(np.float32))}


def refused(source, match):
    with pytest.raises(DataError, match=match) as caught:
        load_data(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


class TestFile:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_arrays_labels_and_segments(self, tmp_path, save):
        path = tmp_path / "eval.npz"
        save(path, x=X, label=LABELS, segment=np.array(["a", "b"] * 3))
        data = load_data(str(path))
        assert len(data) == 6
        assert list(data.arrays) == ["x"]
        np.testing.assert_array_equal(data.arrays["x"], X)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.segments.tolist() == ["a", "b"] * 3
        data.check_against(INPUTS)

    def test_batches_cover_all_samples_in_order(self, tmp_path):
        np.savez(tmp_path / "d.npz", x=X)
        data = load_data(tmp_path / "d.npz")
        assert data.labels is None
        batches = [batch["x"] for batch in data.batches(4)]
        assert [len(batch) for batch in batches] == [4, 2]
        np.testing.assert_array_equal(np.concatenate(batches), X)
        with pytest.raises(ValueError, match="positive"):
            next(data.batches(0))

    def test_foreign_byte_order_and_fortran_order(self, tmp_path):
        np.savez(tmp_path / "d.npz", x=np.asfortranarray(X.astype(">f4")))
        data = load_data(tmp_path / "d.npz")
        np.testing.assert_array_equal(data.arrays["x"], X)
        data.check_against(INPUTS)

    def test_digest_sees_every_change(self, tmp_path):
        variants = [
            {"x": X, "label": LABELS},
            {"x": X + 1, "label": LABELS},
            {"x": X, "label": LABELS[::-1]},
            {"x": X},
            {"z": X, "label": LABELS},
            {"x": X.reshape(6, 2, 2), "label": LABELS},
            {"x": X.view(np.int32), "label": LABELS},
            {"x": X, "label": LABELS, "segment": LABELS},
        ]
        digests = []
        for index, arrays in enumerate(variants):
            np.savez(tmp_path / f"{index}.npz", **arrays)
            digests.append(load_data(tmp_path / f"{index}.npz").digest)
        assert len(set(digests)) == len(variants)
        np.savez_compressed(tmp_path / "again.npz", label=LABELS, x=X)
        assert load_data(tmp_path / "again.npz").digest == digests[0]


class TestUnsafeFiles:
    def test_missing_and_odd_paths(self, tmp_path):
        refused(tmp_path / "none.npz", "no such file")
        refused("no.such.thing", "no such file or folder")
        (tmp_path / "d.csv").write_text("1,2")
        refused(tmp_path / "d.csv", r"is no \.npz file, folder or module:function")
        (tmp_path / "d.npz").mkdir()
        refused(tmp_path / "d.npz", "the folder holds no .npz file")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "p.npz")
        refused(tmp_path / "p.npz", "is no regular file")

    @pytest.mark.parametrize("keep", [0, 1, 100, -30])
    def test_truncated(self, tmp_path, keep):
        path = tmp_path / "d.npz"
        np.savez(path, x=X, label=LABELS)
        path.write_bytes(path.read_bytes()[:keep])
        refused(path, "is no .npz archive, or a truncated one")

    def test_flipped_byte_in_the_data(self, tmp_path):
        path = tmp_path / "d.npz"
        np.savez(path, x=X)
        content = bytearray(path.read_bytes())
        at = bytes(content).index(X.tobytes()) + 5
        content[at] ^= 1
        path.write_bytes(content)
        refused(path, "CRC")

    def test_flipped_byte_in_compressed_data(self, tmp_path):
        path = tmp_path / "d.npz"
        np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(5000))
        content = bytearray(path.read_bytes())
        content[2000] ^= 0x55
        path.write_bytes(content)
        refused(path, "d.npz: ")

    def test_pickled_objects_are_never_loaded(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        np.savez(tmp_path / "d.npz", x=np.array([Payload()], dtype=object))
        refused(tmp_path / "d.npz", "pickled Python objects")
        assert not (tmp_path / "ran").exists()

    def test_a_header_that_declares_more_than_there_is(self, tmp_path, monkeypatch):
        def allocate(*_):
            raise AssertionError("allocated before the check")

        monkeypatch.setattr(np.lib.format, "read_array", allocate)
        content = npy(X).replace(b"(6, 4)", b"(1099511627776, 4)")
        header_growth = len(b"(1099511627776, 4)") - len(b"(6, 4)")
        content = content.replace(b" " * header_growth + b"\n", b"\n")  # the header keeps its length
        path = archive(tmp_path / "d.npz", [("x.npy", content)])
        refused(path, "declares 17592186044416 bytes, the archive holds 96")

    def test_a_header_that_declares_less_than_there_is(self, tmp_path):
        path = archive(tmp_path / "d.npz", [("x.npy", npy(X) + b"more")])
        refused(path, "declares 96 bytes, the archive holds 100")

    def test_a_negative_size(self, tmp_path):
        path = archive(tmp_path / "d.npz", [("x.npy", npy(X).replace(b"(6, 4), ", b"(-6,-4),"))])
        refused(path, "negative size")

    def test_a_huge_header(self, tmp_path):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), " + b" " * 70_000 + b"}\n"
        content = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(4)
        refused(archive(tmp_path / "d.npz", [("x.npy", content)]), "[Hh]eader")

    def test_more_than_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(machine, "memory_bytes", lambda: 1000)
        np.savez_compressed(tmp_path / "d.npz", x=np.zeros(5000))
        refused(tmp_path / "d.npz", "more than this machine's memory")

    def test_structured_and_complex_types(self, tmp_path):
        np.savez(tmp_path / "s.npz", x=np.zeros(3, dtype=[("a", "f4")]))
        refused(tmp_path / "s.npz", "numbers, truth values and text")
        np.savez(tmp_path / "c.npz", x=np.zeros(3, dtype=complex))
        refused(tmp_path / "c.npz", "numbers, truth values and text")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_members(self, tmp_path):
        twice = archive(tmp_path / "twice.npz", [("x.npy", npy(X)), ("x.npy", npy(X + 1))])
        refused(twice, "twice")
        refused(archive(tmp_path / "other.npz", [("x.txt", b"")]), "is no array")
        many = [(f"{index}.npy", b"") for index in range(npz.MEMBER_LIMIT + 1)]
        refused(archive(tmp_path / "many.npz", many), "at most 1024")
        refused(archive(tmp_path / "bz2.npz", [("x.npy", npy(X))], zipfile.ZIP_BZIP2), "as numpy never does")
        refused(archive(tmp_path / "none.npz", []), "no array for a model input")
        assert r"a\x1b" in refused(archive(tmp_path / "escape.npz", [("a\x1b[2J.txt", b"")]), "is no array")


class TestContents:
    @pytest.mark.parametrize(
        ("arrays", "match"),
        [
            ({"label": LABELS}, "no array for a model input"),
            ({"x": X[:0]}, "'x' is empty"),
            ({"x": X, "label": LABELS[:0]}, "'label' is empty"),
            ({"x": np.float32(3)}, "no first axis"),
            ({"x": X, "label": LABELS[:5]}, "'label' has 5 samples, 'x' has 6"),
            ({"x": X, "z": X[:4]}, "'z' has 4 samples"),
            ({"x": X, "segment": LABELS[:3]}, "'segment' has 3 samples"),
            ({"x": X, "segment": X}, "one entry per sample"),
            ({"x": np.array(["text"])}, "no number"),
            ({"x": np.where(X == 9, np.nan, X)}, r"'x' is nan at \[2, 1\]"),
            ({"x": np.where(X == 9, -np.inf, X)}, r"'x' is -inf at \[2, 1\]"),
            ({"x": X, "label": np.full(6, np.nan)}, "'label' is nan"),
        ],
    )
    def test_refused(self, tmp_path, arrays, match):
        np.savez(tmp_path / "d.npz", **arrays)
        refused(tmp_path / "d.npz", match)

    def test_types_of_ml_dtypes_are_numbers(self):
        x = X.astype(ml_dtypes.bfloat16)
        Dataset.from_arrays({"x": x}).check_against({"x": ((None, 4), np.dtype(ml_dtypes.bfloat16))})
        x[1, 1] = np.nan
        with pytest.raises(DataError, match=r"'x' is nan at \[1, 1\]"):
            Dataset.from_arrays({"x": x})

    @pytest.mark.parametrize(
        ("inputs", "match"),
        [
            ({"image": ((None, 4), np.dtype(np.float32))}, "'x' is no input of the model; inputs: image"),
            ({**INPUTS, "mask": ((None,), np.dtype(bool))}, "no array for input 'mask'; it has: x"),
            ({"x": ((None, 5), np.dtype(np.float32))}, r"has shape \(6, 4\), the model takes \[samples, 5\]"),
            ({"x": ((None,), np.dtype(np.float32))}, r"the model takes \[samples\]"),
            ({"x": ((None, 2, None), np.dtype(np.float32))}, r"the model takes \[samples, 2, \?\]"),
            ({"x": ((None, 4), np.dtype(np.float64))}, "is float32, the model takes float64"),
        ],
    )
    def test_against_the_model(self, inputs, match):
        with pytest.raises(DataError, match=match):
            Dataset.from_arrays({"x": X}).check_against(inputs)

    def test_misspelt_label(self):
        data = Dataset.from_arrays({"x": X, "labels": LABELS})
        with pytest.raises(DataError, match="did you mean 'label'"):
            data.check_against(INPUTS)

    def test_any_number_of_samples_fits_a_static_batch(self):
        Dataset.from_arrays({"x": X}).check_against({"x": ((4, 4), np.dtype(np.float32))})


class TestFolder:
    def test_files_are_concatenated_by_name(self, tmp_path, monkeypatch):
        listed = Path.iterdir
        monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
        np.savez(tmp_path / "b.npz", x=X[2:], label=LABELS[2:], segment=np.array(["long name"] * 4))
        np.savez(tmp_path / "a.npz", x=X[:2], label=LABELS[:2], segment=np.array(["s"] * 2))
        (tmp_path / "notes.txt").write_text("not data")
        data = load_data(tmp_path)
        np.testing.assert_array_equal(data.arrays["x"], X)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.segments.tolist() == ["s"] * 2 + ["long name"] * 4

    @pytest.mark.parametrize(
        ("second", "match"),
        [
            ({"x": X}, "part 1 holds x, those before it x, label"),
            ({"x": X.astype(np.float64), "label": LABELS}, "'x' of part 1 is float64"),
            ({"x": X[:, :3], "label": LABELS}, r"'x' of part 1 is float32\(6, 3\)"),
        ],
    )
    def test_files_that_do_not_belong_together(self, tmp_path, second, match):
        np.savez(tmp_path / "a.npz", x=X, label=LABELS)
        np.savez(tmp_path / "b.npz", **second)
        refused(tmp_path, match)


class TestUserCode:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "sibling_of_my_data.py").write_text("scale = 2\n")
        (tmp_path / "my_data_module.py").write_text(
            "import numpy as np\n"
            "def batches():\n"
            "    from sibling_of_my_data import scale\n"
            "    for start in (0, 2):\n"
            "        yield {'x': scale * np.ones((2, 4), np.float32), 'label': np.arange(start, start + 2)}\n"
            "def nothing(): return iter(())\n"
            "def fails(): raise KeyError('a\\nb')\n"
            "def lists(): yield [1, 2]\n"
            "constant = 3\n"
        )
        (tmp_path / "my_broken_module.py").write_text("raise SystemError('no')\n")
        monkeypatch.chdir(tmp_path)
        yield
        for name in ("my_data_module", "my_broken_module", "sibling_of_my_data"):
            sys.modules.pop(name, None)

    def test_dictionaries_are_concatenated(self):
        before = list(sys.path)
        data = load_data("my_data_module:batches")
        assert data.arrays["x"].tolist() == [[2.0] * 4] * 4
        assert data.labels.tolist() == [0, 1, 2, 3]
        assert sys.path == before

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("my_data_module:batch", "has no 'batch' .did you mean 'batches'"),
            ("my_data_module:constant", "is no function"),
            ("my_data_module:nothing", "holds no samples"),
            ("my_data_module:fails", "raised KeyError: 'a"),
            ("my_data_module:lists", "part 0 is list"),
            ("my_broken_module:f", "raised SystemError: no"),
            ("no_such_module_at_all:f", "raised ModuleNotFoundError"),
        ],
    )
    def test_errors_are_one_line(self, name, match):
        refused(name, match)

    def test_a_path_object_never_runs_code(self, tmp_path):
        (tmp_path / "my_data_module:batches").mkdir()
        refused("my_data_module:batches", "the folder holds no .npz file")
        assert "my_data_module" not in sys.modules


def test_calibration_data_reader():
    class Reader:
        def __init__(self):
            self.left = [{"x": X[:4]}, {"x": X[4:]}]

        def get_next(self):
            return self.left.pop(0) if self.left else None

    np.testing.assert_array_equal(load_data(Reader()).arrays["x"], X)


def test_errors_of_deeper_parts_name_the_data():
    data = Dataset.from_arrays({"x": X}, "some.npz")
    with pytest.raises(DataError, match=r"^some\.npz: too odd$"), data.named():
        raise DataError("too odd")
    with pytest.raises(DataError, match=r"^some\.npz is odd$"), data.named():
        raise DataError("some.npz is odd")
