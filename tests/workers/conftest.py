"""Clusters that tests share, or break."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_cluster import RealCluster, real_cluster


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Two workers, for tests that leave them alive."""
    pytest.importorskip("distributed")
    with real_cluster(tmp_path_factory.mktemp("cluster"), 2) as cluster:
        yield cluster


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[[int], RealCluster]]:
    """Start a cluster of its own, for tests that break it."""
    pytest.importorskip("distributed")
    folder = tmp_path / "cluster"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        yield lambda workers: stack.enter_context(real_cluster(folder, workers))
