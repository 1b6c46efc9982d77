"""What fault tests work with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench
from tasks import make_inputs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    make_inputs(bench.inputs)
    yield bench
    bench.close()
