"""The command line as a whole: help, usage errors, and how commands end, whatever happens in them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import click
import pytest

from onnxprune import errors
from onnxprune_cli.main import COMMANDS, execute, main

NAMES = tuple(COMMANDS)


def raising(monkeypatch, error):
    """Let ``inspect`` end with an exception."""

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("onnxprune.inspection.inspect_model", fail)


# --- help ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command_in_order(run):
    ran = run("--help")
    assert ran.status == 0
    assert re.findall(r"^  ([a-z]+) {2,}\S", ran.out.split("Commands:")[1], re.MULTILINE) == list(NAMES)
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "..." not in ran.out.split("Commands:")[1], "a summary is cut off"


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_has_an_example_that_parses(run, name):
    ran = run(name, "--help")
    assert ran.status == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    example = ran.out.split("Example:\n")[1]
    program, *arguments = shlex.split(example.replace("\\\n", " "))
    assert program == "onnxprune"
    assert arguments[0] == name
    command = main.get_command(click.Context(main), name)
    with command.make_context(name, arguments[1:]) as context:  # raises where an option is not known
        assert context.params


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_does(name):
    command = main.get_command(click.Context(main), name)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert {"as_json", "quiet", "verbose"} <= {option.name for option in options}
    for option in options:
        assert option.help, option.name
        assert re.sub(r" \[default: [^]]*\]$", "", option.help).endswith((".", "...")), option.help


def test_commands_that_only_run_models_take_threads():
    for name in ("verify", "bench", "validate"):
        command = main.get_command(click.Context(main), name)
        assert "threads" in {parameter.name for parameter in command.params}


def test_nothing_at_all_shows_help_and_fails(run):
    ran = run()
    assert ran.status == 2
    assert ran.out == ""
    assert "Commands:" in ran.err


def test_version(run):
    ran = run("--version")
    assert ran.status == 0
    assert re.fullmatch(r"onnxprune \d+\.\d+\.\d+\n", ran.out)


# --- usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prun", "m.onnx"], ["'prun'", "did you mean 'prune'?", "onnxprune --help"]),
        (["prune", "m.onnx"], ["--output", "onnxprune prune --help"]),
        (["prune"], ["MODEL"]),
        (["prune", "m.onnx", "-o", "o.onnx", "--amout", "0.5"], ["--amout", "--amount"]),
        (["prune", "m.onnx", "-o", "o.onnx", "--amount", "1.5"], ["--amount", "1.5"]),
        (["prune", "m.onnx", "-o", "o.onnx", "--amount", "half"], ["--amount", "half"]),
        (
            ["prune", "m.onnx", "-o", "o.onnx", "--amount", "0.5", "--target-macs", "0.5"],
            ["--amount and --target-macs"],
        ),
        (["prune", "m.onnx", "-o", "o.onnx", "--align", "0"], ["--align", "neither auto nor"]),
        (["prune", "m.onnx", "-o", "o.onnx", "--input-shape", "3,4"], ["--input-shape", "x=1,3,224,224"]),
        (["inspect", "m.onnx", "--input-shape", "x=1,0"], ["--input-shape", "x=1,0"]),
        (["inspect", "m.onnx", "--input-shape", "x=1", "--input-shape", "x=2"], ["named twice"]),
        (["inspect", "m.onnx", "--groups", "some"], ["--groups", "frozen"]),
        (["bench", "a.onnx", "b.onnx", "c.onnx"], ["c.onnx"]),
        (["validate", "a.onnx"], ["--data"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_is_one_line(run, arguments, words, as_json):
    ran = run(*arguments, *(["--json"] if as_json else []))
    assert ran.status == 2
    for word in (*words, "--help)"):
        assert word in ran.error, ran.error
    if as_json:
        details = ran.document["error"]
        assert details["type"] == "UsageError"
        assert details["exit_status"] == 2
        assert details["message"] == ran.error
    else:
        assert ran.out == ""


@pytest.mark.parametrize("name", ["a=b", "onnx::x.1", "naïve name"])
def test_an_input_may_have_any_name(monkeypatch, run, name):
    seen = []
    monkeypatch.setattr(
        "onnxprune.inspection.inspect_model", lambda _path, **given: seen.append(given) or 1 / 0
    )
    run("inspect", "m.onnx", "--input-shape", f"{name}=1,3,8")
    assert seen[0]["input_shapes"] == {name: (1, 3, 8)}


# --- endings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ModelError("m.onnx: is damaged"), 1),
        (errors.MissingExtra("install it"), 1),
        (errors.UsageError("makes no sense"), 2),
        (errors.LimitMissed("too little"), 3),
        (errors.NothingToPrune("nothing", ["a: frozen"]), 4),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 1),
        (PermissionError(13, "Permission denied", "/some/file"), 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_one_line_and_a_status(monkeypatch, run, error, status, as_json):
    raising(monkeypatch, error)
    ran = run("inspect", "m.onnx", "--quiet", *(["--json"] if as_json else []))
    assert ran.status == status
    if str(error):
        assert str(getattr(error, "strerror", None) or error) in ran.error
    if as_json:
        assert ran.document["command"] == "inspect"
        assert ran.document["error"] == {
            "type": type(error).__name__,
            "message": ran.error,
            "exit_status": status,
            "reasons": list(getattr(error, "reasons", ())),
        }
    else:
        assert ran.out == ""


def test_a_message_cannot_move_the_cursor_or_add_lines(monkeypatch, run):
    raising(monkeypatch, errors.ModelError("m.onnx: node '\x1b[2J\u202e\x07' is odd\nerror: all is well"))
    ran = run("inspect", "m.onnx")
    assert ran.error == "m.onnx: node '\\x1b[2J\\u202e\\x07' is odd\\nerror: all is well"


def test_a_bug_is_one_line_and_shows_a_traceback_to_who_asks(monkeypatch, run):
    raising(monkeypatch, ZeroDivisionError("by zero"))
    ran = run("inspect", "m.onnx", "--json")
    assert ran.status == 1
    what = "internal error, please report it with what --debug shows"
    assert ran.err == f"error: m.onnx: {what}: ZeroDivisionError: by zero\n"
    assert ran.document["error"]["type"] == "ZeroDivisionError"
    ran = run("--debug", "inspect", "m.onnx")
    assert ran.err.startswith("Traceback (most recent call last):")
    assert ran.err.endswith("error: m.onnx: internal error, please report it: ZeroDivisionError: by zero\n")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("it has no rank", "m.onnx: it has no rank"),
        ("nothing to remove: 3 groups stay whole (a.b: frozen)", None),
        ("m.onnx: is damaged", "m.onnx: is damaged"),
        ("data/calib.npz: holds no arrays", "data/calib.npz: holds no arrays (for m.onnx)"),
    ],
)
def test_an_error_says_which_file_it_is_about(monkeypatch, run, message, shown):
    raising(monkeypatch, errors.DataError(message))
    assert run("inspect", "m.onnx").error == (shown or f"m.onnx: {message}")


def test_debug_shows_the_traceback_of_an_error(monkeypatch, run):
    raising(monkeypatch, errors.ModelError("m.onnx: is damaged"))
    ran = run("--debug", "inspect", "m.onnx")
    assert ran.status == 1
    assert "Traceback" in ran.err
    assert ran.err.endswith("\nerror: m.onnx: is damaged\n")


def test_a_terminated_command_cleans_up_and_says_so(monkeypatch, run):
    cleaned = []

    def wait(*_args, **_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    monkeypatch.setattr("onnxprune.inspection.inspect_model", wait)
    before = signal.getsignal(signal.SIGTERM)
    ran = run("inspect", "m.onnx")
    assert ran.status == 143
    assert ran.error.startswith("terminated")
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_is_not_swallowed_by_an_except_clause(monkeypatch, run):
    def careless(*_args, **_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except Exception:  # noqa: BLE001 # what careless code does
            return

    monkeypatch.setattr("onnxprune.inspection.inspect_model", careless)
    assert run("inspect", "m.onnx").status == 143


def test_what_others_print_does_not_reach_stdout(monkeypatch, run):
    def chatty(*_args, **_options):
        print("some library is talking")
        raise errors.ModelError("m.onnx: is damaged")

    monkeypatch.setattr("onnxprune.inspection.inspect_model", chatty)
    ran = run("inspect", "m.onnx", "--json")
    assert ran.document["error"]["message"] == "m.onnx: is damaged"
    assert ran.err.startswith("some library is talking\n")


# --- as a process -------------------------------------------------------------------------------------------


def process(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from onnxprune_cli.main import run; run()", *map(str, arguments)]
    return subprocess.run(command, capture_output="stdout" not in options, text=True, check=False, **options)


def test_the_process_ends_with_the_status(saved):
    done = process("inspect", saved["mlp"], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    done = process("inspect", "missing.onnx")
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing.onnx: ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(saved, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = process("inspect", saved["mlp"], stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: cannot be written (No space left on device)\n"


def test_a_reader_that_leaves_is_no_error(saved):
    read, write = os.pipe()
    os.close(read)
    done = process("inspect", saved["mlp"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_closed_standard_streams_do_no_harm(saved, closed):
    shell = f'exec "$@" {closed}>&-'
    arguments = [
        sys.executable,
        "-c",
        "from onnxprune_cli.main import run; run()",
        "inspect",
        str(saved["mlp"]),
    ]
    done = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_no_file_gets_the_number_of_a_closed_stream(closed):
    probe = (
        "from onnxprune_cli.endings import open_standard_streams; open_standard_streams();"
        "import os, sys; sys.exit(os.open(os.devnull, os.O_RDONLY))"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-c", probe], check=False
    )
    assert done.returncode > 2


def test_names_reach_a_stream_that_knows_ascii_only(tmp_path, saved):
    model = tmp_path / "модель.onnx"
    model.write_bytes(saved["mlp"].read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = process("inspect", model, env=environment)
    assert done.returncode == 0
    assert "\\u043c" in done.stdout


def test_execute_sets_no_status_aside():
    assert execute(["--version"]) == 0


@pytest.mark.parametrize("name", ["full", "pipe"])
def test_a_result_that_is_written_counts_even_if_nobody_reads_of_it(saved, tmp_path, name):
    read, pipe = os.pipe()
    os.close(read)
    out = tmp_path / "out.onnx"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        stdout = full if name == "full" else pipe
        done = process(
            "prune", saved["mlp"], "-o", out, "--amount", "0.5", stdout=stdout, stderr=subprocess.PIPE
        )
    os.close(pipe)
    assert done.returncode == 0
    assert re.fullmatch(r"note: standard output: .*; what was to be written is\n", done.stderr)
    assert out.is_file()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_signal_that_a_finalizer_swallows_comes_again(run, monkeypatch):
    class Swallowing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work(*_args, **_options):
        Swallowing()
        time.sleep(60)

    monkeypatch.setattr("onnxprune.inspection.inspect_model", work)
    ran = run("inspect", "m.onnx")
    assert ran.status == 143
    assert ran.err == "error: terminated; nothing was left half written\n"
