"""Trainer and worker on two machines that share a Redis and a bucket, but no folder."""

from pathlib import Path

import pytest

from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import write_dataset
from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.market.session import SplitConfig
from shared.market.synthetic import Market, synthesize
from shared.runtime.redis_server import RedisServer
from tests.faults.counts import print_figures
from tests.s3_server import S3Server
from tests.services.trainer.processes import System
from tests.shared.adapters.versions.checkpoint_versions import InBucket


@pytest.mark.soak
@pytest.mark.parametrize("version", [0, 3])
async def test_a_worker_loads_versions_from_the_bucket_of_the_trainer(
    bucket: str,
    s3_server: S3Server,
    redis_server: RedisServer,
    bus: Bus,
    tmp_path: Path,
    version: int,
) -> None:
    homes = {service: tmp_path / service for service in ("trainer", "selfplay")}
    for home in homes.values():
        home.mkdir()
    bars = synthesize(Market.OU, 6_000, seed=1)
    dataset = write_dataset(
        tmp_path / "bars.duckdb", bars, "synthetic ou", split_config=SplitConfig(train=0.5, validation=0.25)
    )
    system = System(tmp_path, dataset, redis_server, bus)
    url = InBucket(bucket).url
    for service, home in homes.items():
        system.start(
            service,
            **s3_server.environment,
            MM_CHECKPOINTS=url,
            MM_HOME=str(home),
            MM_TRAINER__PUBLISH_EVERY_EPISODES="5",
        )

    async def plays_it() -> bool:
        return await system.detail("selfplay", "version") >= version

    try:
        await system.until(f"the worker plays version {version}", plays_it)
        assert system.stop("selfplay") == 0
        assert system.stop("trainer") == 0
    finally:
        for process in system.processes.values():
            process.kill()
            process.wait()
    store = CheckpointStore(url)
    versions = store.versions()
    assert [store.verify(held).version for held in versions] == versions
    print_figures("two machines and a bucket", wanted=version, published=len(versions), damaged=0)
    pointed = store.pointer(Pointer.LATEST)
    assert pointed is not None
    assert pointed.version == versions[-1] >= version
    assert store.manifest(versions[-1]).dataset == dataset.fingerprint
    assert not list(tmp_path.rglob("*.safetensors"))  # noqa: ASYNC240  nothing else runs
    for service in homes:
        assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in system.log(service)
