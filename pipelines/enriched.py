"""Jobs that read what another job has enriched, instead of asking the services themselves."""

from collections.abc import Mapping

from velocity.pipelines.graph import Graph
from velocity.pipelines.job import EnrichmentSpec, FieldSpec, Job
from velocity.pipelines.publish import event_records


def reading_enriched(job: Job, enrichment: Job) -> Job:
    """The job over the topics that ``enrichment`` writes: it counts the same, and asks nobody.

    Each of the job's enrichments that ``enrichment`` does too (the same service and key) gives way
    to columns of the enriched events; the others stay. Raises ``ValueError`` if ``enrichment`` writes
    no events, or does not read the job's topics.

    >>> from pathlib import Path
    >>> from velocity.pipelines.jobfile import load
    >>> folder = Path(__file__).parent
    >>> job = reading_enriched(load(folder / "insurance.yaml"), load(folder / "enrichment.yaml"))
    >>> job.source.kafka.topics, job.enrich, job.derive["insurer"]
    (['enriched.insurance.events'], [], 'provider_name')
    """
    sink = enrichment.sinks.kafka
    if sink is None:
        raise ValueError(f"{enrichment.job} writes no events: sinks.kafka is not there")
    if strange := set(job.source.kafka.topics) - set(enrichment.source.kafka.topics):
        raise ValueError(f"{enrichment.job} does not read {', '.join(sorted(strange))}")
    graph = Graph(enrichment, {})
    records = event_records(sink, graph.derived_schema, enrichment.source.kafka.topics)
    fields, derive, own = dict(job.fields), dict(job.derive), []
    for spec in job.enrich:
        columns = _columns(spec, enrichment)
        if columns is None:
            own.append(spec)
            continue
        for column, stored in columns.items():
            fields[stored] = FieldSpec(type=spec.add[column].type)
            if column != stored:
                derive[column] = stored
    kafka = job.source.kafka.model_copy(
        update={"topics": [records.topic_of({"topic": name}) for name in job.source.kafka.topics]}
    )
    source = job.source.model_copy(update={"kafka": kafka, "format": "json"})
    update = {"source": source, "fields": fields, "enrich": own, "derive": derive}
    return job.model_copy(update=update)


def _columns(spec: EnrichmentSpec, enrichment: Job) -> Mapping[str, str] | None:
    """For each column that ``spec`` adds the one of ``enrichment`` that holds the same, if all do."""
    for other in enrichment.enrich:
        same = (other.get, other.post, other.key, other.on_missing) == (
            spec.get,
            spec.post,
            spec.key,
            spec.on_missing,
        )
        if not same:
            continue
        at = {(added.path, added.type): column for column, added in other.add.items()}
        wanted = {column: at.get((added.path, added.type)) for column, added in spec.add.items()}
        if None not in wanted.values():
            return {column: found for column, found in wanted.items() if found is not None}
    return None
