"""Shows on a real broker and registry that the clients read what is right and refuse what is wrong: a check that cannot
fail would prove nothing about Millrace. The events here are made by hand, in Millrace's wire format.

Needs MILLRACE_TEST_KAFKA and MILLRACE_TEST_REGISTRY. Ends with the line "N passed, N failed".
"""

import json
import os
import subprocess
import sys
import unittest
import uuid
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

HERE = Path(__file__).resolve().parent
SCHEMAS = HERE.parents[1] / "schemas" / "avro"
KAFKA = os.environ["MILLRACE_TEST_KAFKA"]
ADMIN = AdminClient({"bootstrap.servers": KAFKA})
REGISTRY = SchemaRegistryClient({"url": os.environ["MILLRACE_TEST_REGISTRY"]})


def client(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def new_topic(suffix, partitions=1):
    name = f"clients-{uuid.uuid4().hex[:12]}.{suffix}"
    for created in ADMIN.create_topics([NewTopic(name, partitions, 1)]).values():
        created.result(30)
    return name


class Topic:
    """An event topic that is filled by hand. Each test changes one thing of an otherwise right event."""

    def __init__(self, suffix="events"):
        self.name = new_topic(suffix)
        self.producer = Producer({"bootstrap.servers": KAFKA})
        self.serialize = AvroSerializer(
            REGISTRY,
            (SCHEMAS / "inventory" / "StockUpdated.v1.avsc").read_text(),
            conf={"subject.name.strategy": topic_record_subject_name_strategy},
        )

    def publish(self, sequence, version, sku="TEA-1", key=None, value=None, without=None, **changed):
        data = dict(sku=sku, warehouse="ham-1", region="de", change="received", quantity=1, on_hand=version, reserved=0)
        headers = {
            "ce_specversion": "1.0",
            "ce_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name} {sku} {version}")),
            "ce_source": "/millrace/inventory",
            "ce_type": "millrace.inventory.StockUpdated",
            "ce_time": "2026-11-21T07:00:00.000Z",
            "ce_subject": f"stock-{sku}@ham-1",
            "ce_partitionkey": sku,
            "ce_sequence": f"{sequence:020}",
            "ce_streamversion": str(version),
            "ce_position": f"1.{sequence}",
            "content-type": "application/avro",
        }
        headers.update(changed)
        if without:
            del headers[without]
        value = value or self.serialize(data, SerializationContext(self.name, MessageField.VALUE))
        self.producer.produce(self.name, key=key or sku, value=value, headers=headers, partition=0)
        if self.producer.flush(30):
            raise AssertionError("not delivered")

    def read(self, *arguments):
        return client("read_topics.py", self.name, *arguments)


class ReadTopics(unittest.TestCase):
    def setUp(self):
        self.topic = Topic()

    def test_command_outcomes_belong_to_no_stream(self):
        self.topic = Topic(suffix="command-outcomes")
        self.topic.publish(1, 5)
        self.topic.publish(2, 5, sku="TEA-2", without="ce_streamversion")
        self.topic.publish(3, 5, sku="TEA-3")
        result = self.topic.read("--expect", 3)
        self.assertEqual(result.returncode, 0, result.stderr)

    def refused(self, complaint):
        result = self.topic.read()
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(complaint, result.stderr)

    def test_reads_events_and_drops_a_repeated_one(self):
        self.topic.publish(1, 1)
        self.topic.publish(2, 1, sku="TEA-2", traceparent=f"00-{'a' * 32}-{'b' * 16}-01", ce_correlationid="c-1")
        self.topic.publish(3, 2)
        self.topic.publish(2, 1, sku="TEA-2")
        self.topic.publish(3, 2)
        self.topic.publish(4, 3)

        result = self.topic.read("--expect", 4)

        self.assertEqual(result.returncode, 0, result.stderr)
        *lines, last = map(json.loads, result.stdout.splitlines())
        self.assertEqual([line["duplicate"] for line in lines], [False, False, False, True, True, False])
        self.assertEqual(lines[1]["data"]["sku"], "TEA-2")
        self.assertEqual(lines[1]["headers"]["ce_correlationid"], "c-1")
        self.assertEqual(last["summary"]["types"], {"millrace.inventory.StockUpdated": 4})
        self.assertEqual(last["summary"]["duplicates"], 2)

    def test_kcat_reads_the_same_records(self):
        self.topic.publish(1, 1)
        command = ["kcat", "-b", KAFKA, "-C", "-t", self.topic.name, "-o", "beginning", "-e", "-q", "-f", "%k|%h|%S\n"]
        result = subprocess.run(command, capture_output=True, timeout=60)
        key, headers, size = result.stdout.decode().strip().split("|")
        self.assertEqual(key, "TEA-1")
        self.assertIn("ce_type=millrace.inventory.StockUpdated", headers)
        self.assertGreater(int(size), 5)

    def test_an_event_that_never_comes_fails(self):
        self.topic.publish(1, 1)
        result = self.topic.read("--expect", 2, "--seconds", 3)
        self.assertEqual(result.returncode, 1)
        self.assertIn("1 events after 3 s, 2 expected", result.stderr)

    def test_a_gap_in_the_sequence(self):
        self.topic.publish(1, 1)
        self.topic.publish(3, 2)
        self.refused("sequence 3 after 1")

    def test_a_first_sequence_other_than_one(self):
        self.topic.publish(2, 1)
        self.refused("sequence 2 after 0")

    def test_a_sequence_used_for_two_events(self):
        self.topic.publish(1, 1)
        self.topic.publish(1, 1, sku="TEA-2")
        self.refused("sequence 1 again with another id")

    def test_a_sequence_that_does_not_sort(self):
        self.topic.publish(1, 1, ce_sequence="1")
        self.refused("ce_sequence '1' is not 20 digits")

    def test_stream_versions_out_of_order(self):
        self.topic.publish(1, 1)
        self.topic.publish(2, 3)
        self.refused("version 3 of stream stock-TEA-1@ham-1 after 1")

    def test_a_missing_header(self):
        self.topic.publish(1, 1, without="ce_specversion")
        self.refused("headers are missing: ce_specversion")

    def test_a_cloudevent_of_another_version(self):
        self.topic.publish(1, 1, ce_specversion="7.0")
        self.refused("the headers are not a CloudEvent")

    def test_a_key_that_is_not_the_partition_key(self):
        self.topic.publish(1, 1, key="TEA-2")
        self.refused("is not the partition key")

    def test_a_type_that_is_not_the_schemas_name(self):
        self.topic.publish(1, 1, ce_type="millrace.inventory.StockMoved")
        self.refused("is not the schema's name millrace.inventory.StockUpdated")

    def test_a_value_without_the_registrys_framing(self):
        self.topic.publish(1, 1, value=b'{"sku": "TEA-1"}')
        self.refused("the value cannot be read")

    def test_a_value_with_an_unknown_schema_id(self):
        self.topic.publish(1, 1, value=b"\0\x7f\xff\xff\xff\x02")
        self.refused("the value cannot be read")


class SendCommands(unittest.TestCase):
    DATA = {"sku": "TEA-1", "warehouse": "ham-1", "region": "de", "quantity": 12}

    def sent(self, *arguments):
        topic = new_topic("commands")
        result = client(
            "send_commands.py", "inventory", "ReceiveStock", json.dumps(self.DATA), "--topic", topic, *arguments
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        consumer = Consumer({"bootstrap.servers": KAFKA, "group.id": "unused", "enable.partition.eof": True})
        consumer.assign([TopicPartition(topic, 0, 0)])
        records = []
        while True:
            record = consumer.poll(30)
            self.assertIsNotNone(record, "nothing came within 30 s")
            if record.error() is not None and record.error().code() == KafkaError._PARTITION_EOF:
                break
            self.assertIsNone(record.error())
            records.append(record)
        consumer.close()
        return topic, records

    def test_json_three_times_with_one_id(self):
        command_id = str(uuid.uuid4())
        _, records = self.sent("--id", command_id, "--times", 3)
        self.assertEqual(len(records), 3)
        for record in records:
            headers = {name: value.decode() for name, value in record.headers()}
            self.assertEqual(headers["ce_id"], command_id)
            self.assertEqual(headers["ce_type"], "millrace.inventory.commands.ReceiveStock")
            self.assertEqual(headers["ce_specversion"], "1.0")
            self.assertEqual(headers["content-type"], "application/json")
            self.assertEqual(record.key(), b"TEA-1")
            self.assertEqual(json.loads(record.value()), self.DATA)

    def test_avro_under_a_registered_schema(self):
        topic, records = self.sent("--format", "avro", "--register")
        self.assertEqual(len(records), 1)
        headers = {name: value.decode() for name, value in records[0].headers()}
        self.assertEqual(headers["content-type"], "application/avro")
        data = AvroDeserializer(REGISTRY)(records[0].value(), SerializationContext(topic, MessageField.VALUE))
        self.assertEqual(data, self.DATA)
        self.assertIn(f"{topic}-millrace.inventory.commands.ReceiveStock", REGISTRY.get_subjects())

    def test_avro_under_an_unregistered_schema_is_refused(self):
        topic = new_topic("commands")
        data = json.dumps(self.DATA)
        result = client("send_commands.py", "inventory", "ReceiveStock", data, "--topic", topic, "--format", "avro")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("does not have the schema", result.stderr)


if __name__ == "__main__":
    outcome = unittest.main(exit=False, verbosity=2).result
    failed = len(outcome.failures) + len(outcome.errors)
    print(f"{outcome.testsRun - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
