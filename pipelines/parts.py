"""The parts of a pipeline, to be used alone or chained with ``|`` in anyone's Beam pipeline.

Each step takes a PCollection, or the ``WithDeadLetters`` of the step before, and gives a
``WithDeadLetters``; a sink gives the dead letters of the whole chain, and a dead-letter sink ends it.
"""

from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from velocity.io.dead_letters import WriteDeadLettersToParquet
from velocity.io.dead_letters_kafka import WriteDeadLettersToKafka
from velocity.io.elastic import WriteToElasticsearch
from velocity.io.json_rows import JsonRows
from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_sink import WriteToKafka
from velocity.io.rest import RestLookup
from velocity.io.rest_calls import Template
from velocity.io.sqlite import WriteToSqlite
from velocity.transforms.answers import Added
from velocity.transforms.decode import Decode, JsonDecoder
from velocity.transforms.deduplicate import Deduplicate
from velocity.transforms.derive import Derive, Where
from velocity.transforms.enrich import Enrich, Enrichment
from velocity.transforms.fields import Field
from velocity.transforms.metric import Metric
from velocity.transforms.metrics import WindowedMetrics
from velocity.transforms.sns import SnsEnvelope
from velocity.transforms.windows import Days, Fixed, Session, Sliding

__all__ = [
    "Added",
    "Days",
    "Decode",
    "Deduplicate",
    "Derive",
    "Enrich",
    "EnrichByRest",
    "Enrichment",
    "Field",
    "Fixed",
    "JsonDecoder",
    "JsonRows",
    "KafkaConfig",
    "Metric",
    "ReadFromKafka",
    "RestLookup",
    "Session",
    "Sliding",
    "SnsEnvelope",
    "Template",
    "Where",
    "WindowedMetrics",
    "WriteDeadLettersToKafka",
    "WriteDeadLettersToParquet",
    "WriteToElasticsearch",
    "WriteToKafka",
    "WriteToSqlite",
]


class EnrichByRest(beam.PTransform):
    """Adds columns from a REST service: an ``Enrich`` whose lookup is a ``RestLookup``.

    ``url`` holds ``{keys}``, ``id`` names the field of an answered object that holds its key,
    ``key`` the column to look up, ``add`` the columns to add. ``rest`` are further arguments of
    ``RestLookup``, ``policy`` those of ``Enrichment``.
    """

    def __init__(
        self,
        url: str,
        *,
        id: str,
        key: str,
        add: Mapping[str, Added],
        rest: Mapping[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        super().__init__()
        lookup = RestLookup(Template(url, id=(id,)), **(rest or {}))
        self._enrich = Enrich(Enrichment(lookup, key, add, **policy))

    def expand(self, pvalueish: Any) -> Any:
        return pvalueish | self._enrich
