"""How a Redis server itself is: its memory, its disk, and what a consumer group leaves behind."""

from dataclasses import dataclass
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis

#: Pending entries that are looked at; a consumer has no more than one reading of them at a time.
MAX_PENDING = 1_000


@dataclass(frozen=True)
class RedisCondition:
    """What the server says of itself and of one group of one stream."""

    memory_bytes: int
    memory_limit_bytes: int | None  # None: no limit is set
    append_ok: bool  # the last write of the append-only file
    rewrite_ok: bool  # its last rewrite
    snapshot_ok: bool  # the last snapshot
    pending: int  # entries delivered and not yet acknowledged
    pending_seconds: float  # since the one of them was delivered that waits longest; 0 without any
    lag: int | None  # entries not yet delivered; None where some were removed before they were

    @property
    def memory_share(self) -> float:
        """Part of the limit that is used; 0 without a limit."""
        return self.memory_bytes / self.memory_limit_bytes if self.memory_limit_bytes else 0.0

    @property
    def disk(self) -> dict[str, bool]:
        """What the server writes to its disk, and whether the last time went well."""
        return {"append": self.append_ok, "rewrite": self.rewrite_ok, "snapshot": self.snapshot_ok}


async def read_condition(redis: Redis, stream: str, group: str) -> RedisCondition:
    """Ask the server; a stream or group that is not there yet has nothing pending and no lag."""
    memory = await redis.info("memory")
    persistence = await redis.info("persistence")
    pending, pending_seconds, lag = 0, 0.0, cast("int | None", 0)
    found = await _group(redis, stream, group)
    if found:
        pending, lag = int(found["pending"]), found["lag"]
    if pending:
        entries = await redis.xpending_range(stream, group, min="-", max="+", count=MAX_PENDING)
        pending_seconds = max((int(e["time_since_delivered"]) for e in entries), default=0) / 1_000
    return RedisCondition(
        memory_bytes=int(memory["used_memory"]),
        memory_limit_bytes=int(memory["maxmemory"]) or None,
        append_ok=persistence.get("aof_last_write_status") != "err",
        rewrite_ok=persistence.get("aof_last_bgrewrite_status") != "err",
        snapshot_ok=persistence.get("rdb_last_bgsave_status") != "err",
        pending=pending,
        pending_seconds=pending_seconds,
        lag=lag,
    )


async def _group(redis: Redis, stream: str, group: str) -> dict[str, Any] | None:
    """What the server says of a group; None where there is no such stream or group."""
    try:
        groups = await redis.xinfo_groups(stream)
    except redis_errors.ResponseError as refused:
        if "no such key" not in str(refused):
            raise
        return None
    return next((found for found in groups if found["name"] == group.encode()), None)
