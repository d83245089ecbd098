"""Two nights over a small catalogue, with vectors or a tiny encoder, and a Ray cluster that outlives its runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.nights import Nights, make_nights
from faults.ray_head import RayHead
from flow.conftest import ray_environment, short_folder, tiny_model  # noqa: F401  fixtures
from support.fault_proxy import FaultProxy
from support.seaweedfs import SeaweedFS

GetNights = Callable[[str], Nights]


@pytest.fixture(scope="session")
def ray_head(short_folder: Path, s3_server: SeaweedFS) -> Iterator[RayHead]:  # noqa: F811
    """A cluster of two CPUs; runs that are given its address start seconds sooner."""
    with RayHead(short_folder / "head.log", s3_server.environment()) as head:
        yield head


@pytest.fixture(scope="session")
def get_nights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_head: RayHead
) -> GetNights:
    """The undisturbed nights on "vectors" or with an "encoder", made when first asked for. Only to be read."""
    made: dict[str, Nights] = {}

    def get(kind: str) -> Nights:
        if kind not in made:
            model = request.getfixturevalue("tiny_model") if kind == "encoder" else None
            made[kind] = make_nights(tmp_path_factory.mktemp(kind), model, ray_head)
        return made[kind]

    return get


@pytest.fixture
def proxy(s3_server: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy
