"""Stream entry ids, against the order in which Redis keeps entries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from shared.messages.entry_id import EntryId
from shared.runtime.redis_server import RedisServer

PART = st.integers(0, (1 << 64) - 1)


@given(PART, PART)
def test_parsing_undoes_printing(milliseconds: int, sequence: int) -> None:
    assert EntryId.parse(str(EntryId(milliseconds, sequence))) == (milliseconds, sequence)


NOT_IDS = ("", "5", "5-", "-5", "5-0-1", "+5-0", "5-0 ", "٥-0", f"{1 << 64}-0", "$", "9" * 99)


@pytest.mark.parametrize("text", NOT_IDS)
def test_a_text_that_redis_rejects_as_an_id_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not an entry id; expected two numbers"):
        EntryId.parse(text)


def test_ids_compare_as_redis_orders_them(redis_server: RedisServer) -> None:
    texts = ["5-2", "5-10", "10-0", "100-0", "9-18446744073709551615"]
    with Redis.from_url(redis_server.url, decode_responses=True) as client:
        for text in sorted(texts, key=EntryId.parse):
            client.xadd("order", {"a": "b"}, id=text)  # rejects an id that is not larger than the last
        assert [entry_id for entry_id, _ in client.xrange("order")] == sorted(texts, key=EntryId.parse)
        client.delete("order")
