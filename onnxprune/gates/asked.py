"""Gates as a command line gives them: ``KEY=VALUE`` each."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from onnxprune.errors import UsageError
from onnxprune.gates.settings import HOW, GateSettings
from onnxprune.messages import one_line, quoted
from onnxprune.registry import did_you_mean

#: Gates that one model can keep by itself; all others need the original beside it.
OF_ONE_MODEL = (
    "accuracy",
    "worst_segment",
    "latency_p50_ms",
    "latency_p95_ms",
    "size",
    "zstd_size",
    "memory_mib",
    "sparsity",
    "operators",
    "operators_forbidden",
    "opset",
    "ir_version",
)


def gates_of(texts: Sequence[str], judged: Sequence[str], *, alone: bool) -> GateSettings:
    """Return the gates that a command was given.

    Args:
        texts: ``KEY=VALUE`` each.
        judged: names of the gates that the command can judge.
        alone: there is one model, and no original beside it.

    Raises:
        UsageError: a text of another form; a key that is given twice, not known or not judged here; a value
            out of range; or nothing but keys that say how others are judged.
    """
    pairs: dict[str, str] = {}
    known = (*judged, *HOW)
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value:
            raise UsageError(f"--gate {quoted(text)} is not of the form KEY=VALUE, as in {judged[0]}=0.01")
        if key not in known:
            hint, here = did_you_mean(key, known), ", ".join(known)
            raise UsageError(f"--gate {quoted(key)}: this command judges no such gate{hint}; known: {here}")
        if key in pairs:
            raise UsageError(f"--gate {key} is given twice")
        if alone and key in judged and key not in OF_ONE_MODEL:
            raise UsageError(f"--gate {key} compares with the original: give both models")
        pairs[key] = value
    try:
        settings = GateSettings.model_validate(pairs)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        what = one_line(first["msg"]).removeprefix("Value error, ")
        meaning = GateSettings.model_fields[key].description
        raise UsageError(f"--gate {key}={one_line(pairs[key], 80)}: {what} ({meaning})") from None
    if texts and not settings.asked():
        raise UsageError(f"--gate {', '.join(pairs)} asks for nothing by itself; known: {', '.join(judged)}")
    return settings
