"""Publishes one command on a command topic, as a service would: a CloudEvent in Kafka's binary mode, its data as JSON or
as Avro in the registry's framing.

The command's id is ce_id: sent several times (--times), it must take effect once. Each delivered record is printed as one
JSON line. Example:

    send_commands.py inventory ReceiveStock '{"sku": "TEA-1", "warehouse": "ham-1", "quantity": 12}' --times 3
"""

import argparse
import json
import os
import sys
import uuid
from pathlib import Path

from cloudevents.core.bindings.kafka import to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas" / "avro" / "commands"


def avro_value(options, data):
    schema_file = options.schema or SCHEMAS / options.context / f"{options.name}.v1.avsc"
    serialize = AvroSerializer(
        SchemaRegistryClient({"url": options.registry}),
        schema_file.read_text(),
        conf={
            "auto.register.schemas": options.register,
            "normalize.schemas": True,  # found again whatever its white space
            "subject.name.strategy": topic_record_subject_name_strategy,
        },
    )
    return serialize(data, SerializationContext(options.topic, MessageField.VALUE))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("context", help="catalogue, inventory or pricing")
    parser.add_argument("name", help="the command, such as ReceiveStock")
    parser.add_argument("data", type=json.loads, help="its data, a JSON object with a sku")
    parser.add_argument("--id", type=uuid.UUID, default=uuid.uuid4(), help="command id (default: a new one)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="send it N times with this id")
    parser.add_argument("--format", choices=["json", "avro"], default="json")
    parser.add_argument("--topic", help="default: CONTEXT.commands")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="another .avsc than Millrace's own")
    parser.add_argument("--register", action="store_true", help="register the schema when it is not (avro)")
    parser.add_argument("--correlation-id", help="ce_correlationid")
    parser.add_argument(
        "--bootstrap", default=os.environ.get("MILLRACE_TEST_KAFKA"), help="host:port; default $MILLRACE_TEST_KAFKA"
    )
    parser.add_argument(
        "--registry", default=os.environ.get("MILLRACE_TEST_REGISTRY"), help="URL; default $MILLRACE_TEST_REGISTRY"
    )
    options = parser.parse_args()
    if not options.bootstrap:
        parser.error("--bootstrap is needed (or MILLRACE_TEST_KAFKA)")
    if options.format == "avro" and not options.registry:
        parser.error("--registry is needed (or MILLRACE_TEST_REGISTRY)")
    if not isinstance(options.data, dict) or "sku" not in options.data:
        parser.error("the data is not a JSON object with a sku, which becomes the record's key")
    options.topic = options.topic or f"{options.context}.commands"
    return options


def main():
    options = arguments()
    attributes = {
        "id": str(options.id),
        "type": f"millrace.{options.context}.commands.{options.name}",
        "source": "/system-tests/send_commands",
        "datacontenttype": f"application/{options.format}",
        "partitionkey": options.data["sku"],
    }
    if options.correlation_id:
        attributes["correlationid"] = options.correlation_id
    try:
        value = options.data if options.format == "json" else avro_value(options, options.data)
    except SchemaRegistryError as error:
        print(f"the registry at {options.registry} does not have the schema (--register?): {error}", file=sys.stderr)
        return 1
    message = to_binary(CloudEvent(attributes, value), JSONFormat())

    failures = []

    def delivered(error, record):
        if error is not None:
            failures.append(str(error))
            return
        place = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        print(json.dumps({"id": attributes["id"], **place}))

    producer = Producer({"bootstrap.servers": options.bootstrap, "message.timeout.ms": 20_000, "log_level": 2})
    for _ in range(options.times):
        producer.produce(
            options.topic, key=message.key, value=message.value, headers=message.headers, on_delivery=delivered
        )
    producer.flush()
    for failure in failures:
        print(f"not delivered: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
