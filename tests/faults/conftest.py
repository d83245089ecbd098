"""Two nights over a small catalogue, with vectors or a tiny encoder."""

from collections.abc import Callable, Iterator

import pytest
from faults.nights import Nights, make_nights
from flow.conftest import ray_environment, shared_ray, short_folder, tiny_model, written_world  # noqa: F401  fixtures
from support.fault_proxy import FaultProxy
from support.seaweedfs import SeaweedFS

GetNights = Callable[[str], Nights]


@pytest.fixture(scope="session")
def get_nights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GetNights:
    """The undisturbed nights on "vectors" or with an "encoder", made when first asked for. Only to be read."""
    made: dict[str, Nights] = {}

    def get(kind: str) -> Nights:
        if kind not in made:
            model = request.getfixturevalue("tiny_model") if kind == "encoder" else None
            made[kind] = make_nights(tmp_path_factory.mktemp(kind), model)
        return made[kind]

    return get


@pytest.fixture
def proxy(s3_server: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy
