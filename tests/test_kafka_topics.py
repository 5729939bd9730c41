"""Laws of patterns: they stand for whole names of topics."""

from velocity.io.kafka_topics import matching


def test_a_pattern_matches_whole_names() -> None:
    topics = ["^orders-[0-9]+", "claims"]
    names = ["orders-1", "orders-12", "orders-x", "my-orders-1", "claims", "claims-1"]
    assert [name for name in names if matching(topics, name)] == ["orders-1", "orders-12", "claims"]
