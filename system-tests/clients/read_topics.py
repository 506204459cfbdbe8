"""Reads Millrace's event topics from the beginning, as any other team would: with a stock Kafka client, its stock Avro
deserialiser and the CloudEvents SDK.

Each record is printed as one JSON line; the last line is {"summary": {...}}. The exit code is 1 when a record cannot be
read or breaks what is promised on the wire:

- the headers are a CloudEvent 1.0 in Kafka's binary mode; the record's key is its partition key
- the value is Avro in the registry's framing, and ce_type is the full name of its schema
- per partition, first occurrences carry the sequences 1, 2, 3 ... and a repeated one is the same event
- per stream (ce_subject), first occurrences carry the versions 1, 2, 3 ... (not on *.command-outcomes: an outcome is no
  event of a stream)
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

# The SDK fills these in where they are missing, so they are looked for in the raw headers.
REQUIRED_HEADERS = (
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_specversion",
    "ce_time",
    "ce_subject",
    "ce_partitionkey",
    "ce_sequence",
    "ce_position",
    "content-type",
)
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
PROBLEMS_SHOWN = 20


class Unreadable(Exception):
    """A record that breaks the promise; the text says how."""


class Order:
    """What has been seen of each partition and each stream."""

    def __init__(self):
        self.ids = {}  # (topic, partition) -> event ids; the one of sequence n stands at n - 1
        self.versions = {}  # (topic, stream) -> last version

    def is_duplicate(self, topic, partition, event_id, stream, sequence, version):
        ids = self.ids.setdefault((topic, partition), [])
        if sequence <= len(ids):
            if ids[sequence - 1] != event_id:
                raise Unreadable(f"sequence {sequence} again with another id, first {ids[sequence - 1]}")
            return True
        if sequence != len(ids) + 1:
            raise Unreadable(f"sequence {sequence} after {len(ids)}: events are missing")
        if version is not None:
            last_version = self.versions.get((topic, stream), 0)
            if version != last_version + 1:
                raise Unreadable(f"version {version} of stream {stream} after {last_version}")
            self.versions[(topic, stream)] = version
        ids.append(event_id)
        return False


class Reader:
    def __init__(self, registry_url):
        self.registry = SchemaRegistryClient({"url": registry_url})
        self.deserialize = AvroDeserializer(self.registry)
        self.schema_names = {}
        self.order = Order()

    def read(self, record):
        """The record as a dict for printing, and whether it is a duplicate."""
        headers = header_dict(record)
        try:
            event = from_binary(KafkaMessage(headers=headers, key=record.key(), value=record.value()), JSONFormat())
        except (CloudEventValidationError, ValueError) as error:
            raise Unreadable(f"the headers are not a CloudEvent: {error}") from error

        sequence = whole_number(headers, "ce_sequence", r"[0-9]{20}", "20 digits")
        version = None
        if not record.topic().endswith(".command-outcomes"):
            version = whole_number(headers, "ce_streamversion", r"[1-9][0-9]*", "a number from 1")
        if record.key() != headers["ce_partitionkey"]:
            raise Unreadable(f"key {record.key()!r} is not the partition key {headers['ce_partitionkey']!r}")
        if headers["content-type"] != b"application/avro":
            raise Unreadable(f"content-type {headers['content-type']!r} is not application/avro")
        traceparent = headers.get("traceparent")
        if traceparent is not None and not TRACEPARENT.fullmatch(traceparent.decode()):
            raise Unreadable(f"traceparent {traceparent!r} is not W3C trace context")

        data = self.read_value(record, event.get_type())
        duplicate = self.order.is_duplicate(
            record.topic(), record.partition(), event.get_id(), event.get_subject(), sequence, version
        )
        line = {
            "topic": record.topic(),
            "partition": record.partition(),
            "offset": record.offset(),
            "key": record.key().decode(),
            "headers": {name: value.decode() for name, value in headers.items()},
            "data": data,
            "duplicate": duplicate,
        }
        return line, duplicate

    def read_value(self, record, event_type):
        value = record.value()
        try:
            data = self.deserialize(value, SerializationContext(record.topic(), MessageField.VALUE, record.headers()))
        except Exception as error:  # the deserialiser lets its libraries' errors through, of any class
            raise Unreadable(f"the value cannot be read: {type(error).__name__}: {error}") from error
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in self.schema_names:
            schema = json.loads(self.registry.get_schema(schema_id).schema_str)
            self.schema_names[schema_id] = f"{schema['namespace']}.{schema['name']}"
        if self.schema_names[schema_id] != event_type:
            raise Unreadable(f"ce_type {event_type} is not the schema's name {self.schema_names[schema_id]}")
        return data


def header_dict(record):
    headers = {}
    for name, value in record.headers() or []:
        if name in headers:
            raise Unreadable(f"header {name} stands there twice")
        headers[name] = value
    missing = [name for name in REQUIRED_HEADERS if name not in headers]
    if missing:
        raise Unreadable(f"headers are missing: {', '.join(missing)}")
    return headers


def whole_number(headers, name, pattern, wanted):
    text = headers.get(name, b"").decode()
    if not re.fullmatch(pattern, text):
        raise Unreadable(f"{name} {text!r} is not {wanted}")
    return int(text)


def partitions_of(consumer, topics):
    try:
        known = consumer.list_topics(timeout=15).topics
    except KafkaException as error:
        raise SystemExit(f"Kafka does not answer: {error.args[0].str()}") from error
    if not topics:
        topics = sorted(name for name in known if name.endswith(".events"))
    missing = [name for name in topics if name not in known]
    if missing or not topics:
        raise SystemExit(f"no such topic: {', '.join(missing) or '*.events'}")
    return [TopicPartition(name, partition, OFFSET_BEGINNING) for name in topics for partition in known[name].partitions]


def records_until_done(consumer, partitions, seconds, is_enough):
    """Every record up to the ends of all partitions, and past them until it is enough or the time is over."""
    at_end = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        record = consumer.poll(0.5)
        if record is None:
            pass
        elif record.error() is None:
            at_end.discard((record.topic(), record.partition()))
            yield record
        elif record.error().code() == KafkaError._PARTITION_EOF:
            at_end.add((record.topic(), record.partition()))
        elif not record.error().retriable():
            raise SystemExit(f"Kafka: {record.error()}")
        if len(at_end) == len(partitions) and is_enough():
            return


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="default: every topic that ends in .events")
    parser.add_argument(
        "--bootstrap", default=os.environ.get("MILLRACE_TEST_KAFKA"), help="host:port; default $MILLRACE_TEST_KAFKA"
    )
    parser.add_argument(
        "--registry", default=os.environ.get("MILLRACE_TEST_REGISTRY"), help="URL; default $MILLRACE_TEST_REGISTRY"
    )
    parser.add_argument("--expect", type=int, default=0, metavar="N", help="wait until N events are read, else fail")
    parser.add_argument("--seconds", type=float, default=60, help="give up after this time (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="print the summary only")
    options = parser.parse_args()
    if not options.bootstrap or not options.registry:
        parser.error("--bootstrap and --registry are needed (or MILLRACE_TEST_KAFKA and MILLRACE_TEST_REGISTRY)")
    return options


def main():
    options = arguments()
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "group.id": "unused: partitions are assigned, offsets are not committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 2,  # a broker that is away shows in the exit, not in twenty lines a second
        }
    )
    partitions = partitions_of(consumer, options.topics)
    consumer.assign(partitions)

    reader = Reader(options.registry)
    events, duplicates, problems = Counter(), 0, 0
    enough = lambda: events.total() >= options.expect
    for record in records_until_done(consumer, partitions, options.seconds, enough):
        try:
            line, duplicate = reader.read(record)
        except Unreadable as problem:
            problems += 1
            if problems <= PROBLEMS_SHOWN:
                print(f"{record.topic()}/{record.partition()} offset {record.offset()}: {problem}", file=sys.stderr)
            continue
        duplicates += duplicate
        if not duplicate:
            events[line["headers"]["ce_type"]] += 1
        if not options.quiet:
            print(json.dumps(line, default=str))
    consumer.close()

    summary = {
        "events": events.total(),
        "types": dict(events),
        "duplicates": duplicates,
        "problems": problems,
        "streams": len(reader.order.versions),
        "partitions": len(reader.order.ids),
    }
    print(json.dumps({"summary": summary}))
    if not enough():
        print(f"{events.total()} events after {options.seconds:g} s, {options.expect} expected", file=sys.stderr)
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
