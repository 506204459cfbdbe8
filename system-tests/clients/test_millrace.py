"""Gives a running Millrace commands as other teams would, and reads its topics with their clients.

Needs MILLRACE_TEST_KAFKA, MILLRACE_TEST_REGISTRY, MILLRACE_TEST_WRITE and MILLRACE_TEST_SERVE (addresses of the command API
and the query API), all fresh: sequences are read from the first on. Ends with the line "N passed, N failed".
"""

import json
import os
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
KAFKA = os.environ["MILLRACE_TEST_KAFKA"]
WRITE = os.environ["MILLRACE_TEST_WRITE"]
SERVE = os.environ["MILLRACE_TEST_SERVE"]
DEADLINE = 60


def client(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def http(url, body=None, **headers):
    """Status and JSON of the answer; an error's problem document is an answer as well."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def command(name, data, command_id=None):
    return http(f"{WRITE}/v1/commands", {"id": command_id or str(uuid.uuid4()), "type": name, "data": data})


def when(condition, what):
    """What the condition gives as soon as it gives something."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = condition()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {DEADLINE} s: {what}")


def stock_after(sku, position):
    """The stock once it has what the position names."""

    def read():
        status, answer = http(f"{SERVE}/v1/stock/{sku}", millrace_min_position=position)
        return answer if status == 200 else None

    return when(read, f"stock of {sku} at {position}")


def read_topic(topic, expect=0):
    result = client("read_topics.py", topic, "--expect", expect)
    if result.returncode != 0:
        raise AssertionError(f"{topic}: {result.stderr}")
    *lines, _ = map(json.loads, result.stdout.splitlines())
    return [line for line in lines if not line["duplicate"]]


def outcome_of(command_id):
    """The first outcome of an inventory command on the outcome topic, and how many there are."""

    def read():
        lines = read_topic("inventory.command-outcomes", expect=1)
        found = [line["data"] for line in lines if line["data"]["command_id"] == command_id]
        return (found[0], len(found)) if found else None

    return when(read, f"outcome of {command_id}")


class Millrace(unittest.TestCase):
    def setUp(self):
        self.sku = f"TEA-{uuid.uuid4().hex[:12]}"
        self.delivery = {"sku": self.sku, "warehouse": "ham-1", "region": "de", "quantity": 12}

    def accepted(self, name, data):
        status, outcome = command(name, data)
        self.assertEqual((status, outcome["outcome"]), (200, "accepted"), outcome)
        return outcome

    def assert_on_hand(self, quantity, position):
        self.assertEqual(stock_after(self.sku, position)["total"]["on_hand"], quantity)

    def test_every_event_topic_is_read_by_a_stock_client(self):
        product = {"sku": self.sku, "name": "Assam", "brand": "Teekontor", "category_path": ["Drinks", "Tea"]}
        self.accepted("RegisterProduct", product)
        self.accepted("SetPrice", {"sku": self.sku, "region": "de", "currency": "EUR", "amount_minor": 499})
        for _ in range(3):
            outcome = self.accepted("ReceiveStock", self.delivery)
        self.assert_on_hand(36, outcome["position"])
        for topic, data in [
            ("catalogue.events", {"name": "Assam", "brand": "Teekontor"}),
            ("pricing.events", {"currency": "EUR", "amount_minor": 499}),
            ("inventory.events", {"warehouse": "ham-1", "on_hand": 12}),
        ]:
            mine = [line for line in read_topic(topic, expect=1) if line["key"] == self.sku]
            self.assertTrue(mine, f"{topic} has no event of {self.sku}")
            self.assertEqual(data, {name: mine[0]["data"][name] for name in data})
        self.assertEqual([line["data"]["on_hand"] for line in mine], [12, 24, 36])

    def test_kcat_reads_the_events(self):
        outcome = self.accepted("ReceiveStock", self.delivery)
        self.assert_on_hand(12, outcome["position"])
        kcat = ["kcat", "-b", KAFKA, "-C", "-t", "inventory.events", "-o", "beginning", "-e", "-q", "-f", "%k|%h\n"]
        result = subprocess.run(kcat, capture_output=True, text=True, timeout=60)
        mine = [line for line in result.stdout.splitlines() if line.startswith(f"{self.sku}|")]
        self.assertEqual(len(mine), 1, result.stderr)
        self.assertIn("ce_type=millrace.inventory.StockUpdated", mine[0])

    def sent_three_times(self, *arguments):
        command_id = str(uuid.uuid4())
        result = client(
            "send_commands.py", "inventory", "ReceiveStock", json.dumps(self.delivery), "--id", command_id, "--times", 3, *arguments
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        outcome, outcomes = outcome_of(command_id)
        self.assertEqual(outcome["outcome"], "accepted", outcome)
        self.assertEqual(outcomes, 1)
        # A later command of the same key is taken after the three: what they did is done when it is.
        later = str(uuid.uuid4())
        result = client("send_commands.py", "inventory", "ReceiveStock", json.dumps(self.delivery), "--id", later)
        self.assertEqual(result.returncode, 0, result.stderr)
        position = outcome_of(later)[0]["position"]
        self.assert_on_hand(24, position)

    def test_a_json_command_sent_three_times_takes_effect_once(self):
        self.sent_three_times()

    def test_an_avro_command_sent_three_times_takes_effect_once(self):
        self.sent_three_times("--format", "avro")

    def test_an_http_command_sent_three_times_takes_effect_once(self):
        command_id = str(uuid.uuid4())
        answers = [command("ReceiveStock", self.delivery, command_id) for _ in range(3)]
        self.assertEqual(answers[0][0], 200)
        self.assertEqual(answers, [answers[0]] * 3)
        self.assert_on_hand(12, answers[0][1]["position"])

    def test_a_command_that_is_not_for_the_stock_is_rejected_on_the_outcome_topic(self):
        self.accepted("ReceiveStock", self.delivery)
        command_id = str(uuid.uuid4())
        shipment = {"sku": self.sku, "warehouse": "ham-1", "reservation_id": "none"}
        result = client("send_commands.py", "inventory", "ShipReservation", json.dumps(shipment), "--id", command_id)
        self.assertEqual(result.returncode, 0, result.stderr)
        outcome, _ = outcome_of(command_id)
        self.assertEqual(outcome["outcome"], "rejected", outcome)
        self.assertTrue(outcome["reason_code"] and outcome["reason_message"], outcome)


if __name__ == "__main__":
    outcome = unittest.main(exit=False, verbosity=2).result
    failed = len(outcome.failures) + len(outcome.errors)
    print(f"{outcome.testsRun - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
