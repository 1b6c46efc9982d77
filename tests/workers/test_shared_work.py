"""What is measured on a cluster is what is measured here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

import onnxprune
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.planning.part_timer import PartTimer
from onnxprune.workers import cluster as cluster_module

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")

SAMPLES = 12
COMMAND = (sys.executable, "-c", "from onnxprune_cli.main import run; run()", "sensitivity")


@pytest.fixture
def file(tmp_path):
    return small_models.save_model(small_models.residual_net(), tmp_path / "model.onnx")


def dataset(model_file, labels=True) -> Dataset:
    model = onnxprune.load(model_file)
    shape = [SAMPLES, *(int(size) for size in model.graph.inputs[0].shape[1:])]
    generator = np.random.default_rng(0)
    arrays = {str(model.graph.inputs[0].name): generator.standard_normal(shape).astype(np.float32)}
    classes = int(model.graph.outputs[0].shape[-1])
    if labels:
        arrays["label"] = generator.integers(0, classes, SAMPLES)
    return Dataset.from_arrays(arrays)


def trials(found) -> list[dict[str, object]]:
    return found.report.sections["trials"]


@pytest.mark.parametrize("pattern", ["channels", "unstructured"])
def test_the_table_is_the_same_bit_for_bit(two_workers, file, pattern):
    options = {"data": dataset(file), "amounts": [0.25, 0.5], "pattern": pattern}
    told = []
    alone = onnxprune.measure_sensitivity(file, **options)
    both = onnxprune.measure_sensitivity(file, scheduler=two_workers.address, progress=told.append, **options)
    assert json.dumps(trials(both)) == json.dumps(trials(alone))
    assert told == sorted(told)
    assert told[-1] == 1


def test_files_behind_links_reach_the_workers(two_workers, tmp_path):
    """In the cache of Hugging Face, they have other names there."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    link = snapshot / "model.onnx"
    onnx.save(small_models.mlp(), link, save_as_external_data=True, location="data", size_threshold=0)
    for name in ("model.onnx", "data"):
        (snapshot / name).rename(blobs / f"{name}.blob")
        (snapshot / name).symlink_to(blobs / f"{name}.blob")
    options = {"data": dataset(link, labels=False), "amounts": [0.5]}
    alone = onnxprune.measure_sensitivity(link, **options)
    there = onnxprune.measure_sensitivity(link, scheduler=two_workers.address, **options)
    assert trials(there) == trials(alone)


def test_the_model_travels_once(two_workers, file, monkeypatch):
    sent = []
    deliver = cluster_module.Cluster._deliver

    def spy(self, entry, offset, piece, addresses):
        sent.extend((entry.digest, address) for address in addresses)
        deliver(self, entry, offset, piece, addresses)

    monkeypatch.setattr(cluster_module.Cluster, "_deliver", spy)
    data = dataset(file)
    onnxprune.measure_sensitivity(file, data=data, amounts=[0.3], scheduler=two_workers.address)
    assert len(sent) == len(set(sent))
    before = len(sent)
    onnxprune.measure_sensitivity(file, data=data, amounts=[0.6], scheduler=two_workers.address)
    assert len(sent) == before  # another run, the same model and data


def test_a_worker_killed_in_the_middle_changes_nothing_but_the_time(start_cluster, file):
    cluster = start_cluster(2)
    options = {"data": dataset(file), "amounts": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
    killed = []

    def kill(_):
        if not killed:
            from distributed import Client

            with Client(cluster.address, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    there = onnxprune.measure_sensitivity(file, scheduler=cluster.address, progress=kill, **options)
    assert killed
    assert trials(there) == trials(onnxprune.measure_sensitivity(file, **options))


def test_a_model_that_changes_meanwhile_is_not_measured(two_workers, file, monkeypatch):
    from onnxprune.workers import models

    plain = models._plain

    def late(model, path):
        small_models.save_model(small_models.residual_net(seed=7), path)
        return plain(model, path)

    monkeypatch.setattr(models, "_plain", late)
    with pytest.raises(onnxprune.errors.ModelError, match="changed while it was in use"):
        onnxprune.measure_sensitivity(file, data=dataset(file), amounts=[0.5], scheduler=two_workers.address)


def test_parts_are_timed_by_workers(two_workers, monkeypatch):
    """Their times go into the same table; the whole model is timed here."""
    model = ir.from_proto(small_models.residual_net(width=64))
    put = []
    remember = PartTimer.put

    def spy(self, part, kept, timed):
        put.append(part.name)
        remember(self, part, kept, timed)

    monkeypatch.setattr(PartTimer, "put", spy)
    result = onnxprune.prune(model, target_latency=0.8, time_limit=90, scheduler=two_workers.address)
    assert len(put) > 10
    section = result.report.sections["latency"]
    assert section["measured share"] <= 0.8 * 1.03
    assert section["points timed"] >= len(put)


def test_the_command_line_measures_on_a_cluster(two_workers, file, tmp_path):
    data = dataset(file)
    np.savez(tmp_path / "data.npz", **data.arrays, label=data.labels)
    command = [
        *COMMAND,
        str(file),
        "--data",
        str(tmp_path / "data.npz"),
        "--amounts",
        "0.5",
        "--json",
        "--quiet",
    ]
    alone, there = (
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)
        for more in ([], ["--scheduler", two_workers.address])
    )
    assert there.returncode == 0, there.stderr
    assert there.stderr == alone.stderr
    assert json.loads(there.stdout)["sections"] == json.loads(alone.stdout)["sections"]


def test_the_command_line_says_in_one_line_that_nobody_answers(file, tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, str(file), "--data", "random", "--quiet", "--scheduler", "tcp://127.0.0.1:9"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in done.stderr
    assert time.monotonic() - started < 60


def test_an_interrupt_lets_go_of_the_cluster(two_workers, file, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, str(file), "--data", "random:4096", "--scheduler", two_workers.address,
         "--cache", str(tmp_path / "cache")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(600):
        if list((tmp_path / "cache").rglob("*.json")):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "address", ["10.0.0.1:8786", "tcp://host", "http://host:1", "tcp://host:99999", "tcp://a b:1"]
)
def test_an_address_is_checked_at_once(file, address):
    with pytest.raises(UsageError, match="scheduler is an address such as"):
        onnxprune.measure_sensitivity(file, data="random", scheduler=address)


def test_processes_and_a_cluster_are_one_too_many(file):
    with pytest.raises(UsageError, match="give one of them"):
        onnxprune.measure_sensitivity(file, data="random", scheduler="tcp://127.0.0.1:9", jobs=2)
