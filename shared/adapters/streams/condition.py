"""Health of a Redis server: memory, persistence, and the backlog of a consumer group."""

from dataclasses import dataclass
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis

#: Most pending entries to inspect. A consumer has at most one read batch pending.
MAX_PENDING = 1_000


@dataclass(frozen=True)
class RedisCondition:
    """State of the server and of one consumer group of one stream."""

    memory_bytes: int
    memory_limit_bytes: int | None  # None: no limit
    append_ok: bool  # the last write of the append-only file succeeded
    rewrite_ok: bool  # the last rewrite of the append-only file succeeded
    snapshot_ok: bool  # the last snapshot succeeded
    pending: int  # entries delivered and not yet acknowledged
    pending_seconds: float  # age of the oldest delivery among them; 0 without pending entries
    lag: int | None  # entries not yet delivered; None if some were removed before their delivery

    @property
    def memory_share(self) -> float:
        """Used fraction of the memory limit; 0 without a limit."""
        return self.memory_bytes / self.memory_limit_bytes if self.memory_limit_bytes else 0.0

    @property
    def disk(self) -> dict[str, bool]:
        """Kind of disk write → whether the last one succeeded."""
        return {"append": self.append_ok, "rewrite": self.rewrite_ok, "snapshot": self.snapshot_ok}


async def read_condition(redis: Redis, stream: str, group: str) -> RedisCondition:
    """Query the server; a missing stream or group counts as no pending entries and no lag."""
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
    """The server's information on a group; None if there is no such stream or group."""
    try:
        groups = await redis.xinfo_groups(stream)
    except redis_errors.ResponseError as refused:
        if "no such key" not in str(refused):
            raise
        return None
    return next((found for found in groups if found["name"] == group.encode()), None)
