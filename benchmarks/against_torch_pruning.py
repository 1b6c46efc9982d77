"""Time of pruning full-size torchvision models at 50 %: Torch-Pruning beside onnxprune, turn by turn.

    python benchmarks/against_torch_pruning.py                 # makes its own environment, exports, times
    python benchmarks/against_torch_pruning.py --python ENV/bin/python --models FOLDER resnet50 vit_b_16

Torch-Pruning is timed from the torch module to the pruned module: building the dependency graph, and
MagnitudePruner (L2, the last layer left alone); nothing is read or written. onnxprune is timed from the model
in memory to the written file: analysis, scores, plan, cut, write. Reading the exported file stands in a
column of its own, and so does the proof, which Torch-Pruning has no counterpart of; the ratio is given
without reading and with it, never with the proof. CPU time stands beside wall time, which other work on the
machine stretches; that of onnxprune counts the digest of all weights, which a second thread makes meanwhile.

The last column is what the same file costs when nothing is pruned: onnx_ir copies the model, serialises the
copy and writes it, as a share of Torch-Pruning's time (CPU, without reading). No tool that is built on these
packages and leaves its input as it is can be much faster than that on small models; on large ones onnxprune
is, as it writes tensors without serialising them.

One thread each; a round starts one process of each, in an order that changes. The environment holds CPU torch
(as in constraints.txt), torchvision and torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "densenet121", "googlenet", "regnet_y_400mf", "shufflenet_v2_x1_0", "squeezenet1_0", "convnext_tiny",
    "vit_b_16", "swin_t",
)  # fmt: skip
PACKAGES = ("torch", "torchvision", "torch-pruning", "onnx", "onnxscript")
GOAL = 0.25

#: A side that takes longer for one model has failed.
LIMIT_SECONDS = 300

#: Runs in the other environment. torchvision's binary operators belong to another build of torch: their names
#: alone are enough here.
OTHER_SIDE = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    try:
        library.define(name + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    except RuntimeError:
        pass  # the build fits, and has them
import torchvision
task, name, path = sys.argv[1:]
torch.manual_seed(0)
options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
model = getattr(torchvision.models, name)(weights=None, **options).eval()
example = torch.randn(1, 3, 224, 224)
if task == "export":
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(model, example, path, dynamo=False, opset_version=17, **names)
else:
    import torch_pruning
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    layers = layers or [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    before = sum(p.numel() for p in model.parameters())
    started, cpu = time.perf_counter(), time.process_time()
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, example, importance=importance, pruning_ratio=0.5, ignored_layers=layers[-1:]
    )
    graph = time.perf_counter() - started
    pruner.step()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    kept = sum(p.numel() for p in model.parameters()) / before
    print(json.dumps({"graph": graph, "seconds": seconds, "cpu": cpu, "kept": kept}))
"""

#: The proof is timed by itself, as wall and as CPU time.
THIS_SIDE = """
import json, sys, time
import onnxprune
from onnxprune import pipeline
import onnxruntime, scipy.sparse.csgraph
source, output = sys.argv[1:]
now = lambda: (time.perf_counter(), time.process_time())
proof = [0.0, 0.0]
prove = pipeline.prove_cut
def timed(*arguments):
    started = now()
    check = prove(*arguments)
    proof[:] = [a - b for a, b in zip(now(), started)]
    return check
pipeline.prove_cut = timed
started = now()
model = onnxprune.load(source)
read = now()
result = onnxprune.prune(model, amount=0.5)
onnxprune.save(result.model, output)
ended = now()
before, after = result.plan.predicted
wall, cpu = (a - b - c for a, b, c in zip(ended, read, proof))
read_wall, read_cpu = (a - b for a, b in zip(read, started))
print(json.dumps({
    "seconds": wall, "cpu": cpu, "read": read_wall, "read cpu": read_cpu, "proof": proof[0],
    "kept": after.params / before.params,
}))
"""

#: What the packages below cost alone.
FLOOR = """
import json, sys, time
import onnx_ir
source, output = sys.argv[1:]
model = onnx_ir.load(source)
started = time.process_time()
contents = onnx_ir.to_proto(model.clone()).SerializeToString()
with open(output, "wb") as stream:
    stream.write(contents)
print(json.dumps({"cpu": time.process_time() - started}))
"""


def make_environment(folder: Path) -> Path:
    """Install what the other side needs into an environment of its own, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *PACKAGES]
    subprocess.run(install, check=True)
    return python


def other_side(python: Path, task: str, name: str, path: Path) -> str:
    """Run a task in the other environment, and return what it printed last.

    Raises:
        RuntimeError: it failed; with the last line of what it said.
    """
    return _run([str(python), "-c", OTHER_SIDE, task, name, str(path)])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {LIMIT_SECONDS} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, without a word"]
        raise RuntimeError(said[-1][:100])
    return (done.stdout.strip().splitlines() or [""])[-1]


def measure(python: Path, name: str, source: Path, folder: Path, rounds: int) -> dict[str, float | str]:
    """Time both sides in turn; medians over the rounds, or what Torch-Pruning failed with."""
    theirs: list[dict[str, float]] = []
    ours: list[dict[str, float]] = []
    floor: list[dict[str, float]] = []
    failure = ""
    for number in range(rounds):
        for side in ((0, 1), (1, 0))[number % 2]:
            if side:
                for script, rows in ((THIS_SIDE, ours), (FLOOR, floor)):
                    command = [sys.executable, "-c", script, str(source), str(folder / "small.onnx")]
                    rows.append(json.loads(_run(command)))
            elif not failure:
                try:
                    theirs.append(json.loads(other_side(python, "prune", name, source)))
                except RuntimeError as error:
                    failure = str(error)
    row: dict[str, float | str] = {f"our {key}": _median(ours, key) for key in ours[0]}
    if failure:
        return {**row, "failure": failure}
    row |= {f"their {key}": _median(theirs, key) for key in theirs[0]}
    for key in ("seconds", "cpu"):
        row[f"{key} ratio"] = _median(ours, key) / _median(theirs, key)
    with_reading = _median(ours, "seconds") + _median(ours, "read")
    row["ratio with reading"] = with_reading / _median(theirs, "seconds")
    row["floor"] = _median(floor, "cpu") / _median(theirs, "cpu")
    return row


def _median(rounds: list[dict[str, float]], key: str) -> float:
    return statistics.median(entry[key] for entry in rounds)


HEAD = (
    f"{'':20} {'Torch-Pruning':>31} | {'onnxprune':>39} | {'ratio':>20} |\n"
    f"{'model':20} {'wall s':>8}{'CPU s':>8}{'graph':>8}{'kept':>7} | "
    f"{'wall s':>8}{'CPU s':>8}{'+ read':>8}{'+ proof':>8}{'kept':>7} | "
    f"{'wall':>6}{'CPU':>6}{'+ read':>8} | {'floor':>6}"
)


def line(name: str, row: dict[str, float | str]) -> str:
    """Return a row of the table."""
    ours = (
        f"{row['our seconds']:8.3f}{row['our cpu']:8.3f}{row['our read']:8.3f}{row['our proof']:8.3f}"
        f"{row['our kept']:7.3f}"
    )
    if "failure" in row:
        return f"{name:20} {'fails':>31} | {ours} | Torch-Pruning: {row['failure']}"
    theirs = (
        f"{row['their seconds']:8.3f}{row['their cpu']:8.3f}{row['their graph']:8.3f}{row['their kept']:7.3f}"
    )
    ratios = f"{row['seconds ratio']:6.2f}{row['cpu ratio']:6.2f}{row['ratio with reading']:8.2f}"
    verdict = "" if float(row["seconds ratio"]) <= GOAL else f"  over {GOAL}"
    return f"{name:20} {theirs} | {ours} | {ratios} | {row['floor']:6.2f}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "names", nargs="*", default=MODELS, help="torchvision models; all of the list if none"
    )
    parser.add_argument(
        "--python", type=Path, help="of an environment with torch, torchvision, torch-pruning"
    )
    parser.add_argument("--models", type=Path, help="a folder of exports: NAME.onnx or full_NAME.ts.onnx")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = options.python or make_environment(folder / "environment")
        print(HEAD)
        started = time.perf_counter()
        for name in options.names:
            names = (f"{name}.onnx", f"full_{name}.ts.onnx") if options.models else ()
            places = [options.models / file for file in names]
            source = next((place for place in places if place.exists()), folder / f"{name}.onnx")
            if not source.exists():
                other_side(python, "export", name, source)
            print(line(name, measure(python, name, source, folder, options.rounds)), flush=True)
        print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
