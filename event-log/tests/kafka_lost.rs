//! What a Kafka topic is after it lost its past: made again under its name, or shortened by retention. And that nothing
//! is published to it before the publisher could look.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::time::{Duration, Instant};

use event_log::{EventLog as _, EventLogError, KafkaEventLog, KafkaSettings, PartitionEnds, TopicPartition, TopicSpec};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use fixture::{DEADLINE, kafka_address, number, records};

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", kafka_address()).create().unwrap()
}

/// Fault 19, as far as the log goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn what_retention_removed_is_out_of_range_and_the_rest_is_read() {
    let fixture = fixture::kafka();
    let topic = fixture.make_topic("events", 1).await;
    let at = TopicPartition::new(&topic, 0);
    fixture.log.publish(records(&at, 0..100)).await.unwrap();
    assert_eq!(fixture.log.read(&at, 0, 10).await.unwrap().len(), 10);

    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(40)).unwrap();
    admin().delete_records(&before, &AdminOptions::new()).await.unwrap();

    assert_eq!(fixture.log.ends(&topic).await.unwrap(), [PartitionEnds { partition: 0, first: 40, next: 100 }]);
    // Also where the reader stood, with records that it had fetched ahead.
    for gone in [10, 0, 39] {
        let error = fixture.log.read(&at, gone, 10).await.unwrap_err();
        assert!(matches!(error, EventLogError::OffsetOutOfRange { first: 40, next: 100, .. }), "{error}");
    }
    let left = fixture.log.read(&at, 40, 1_000).await.unwrap();
    assert!(left.iter().map(number).eq(40..100));
}

/// Fault 21, as far as the log goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn a_topic_made_again_is_read_as_it_is_now() {
    let fixture = fixture::kafka();
    let topic = fixture.make_topic("events", 1).await;
    let at = TopicPartition::new(&topic, 0);
    fixture.log.publish(records(&at, 0..100)).await.unwrap();
    assert_eq!(fixture.log.read(&at, 0, 50).await.unwrap().len(), 50);

    for result in admin().delete_topics(&[&topic], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
    let spec = TopicSpec { name: topic.clone(), partitions: 1 };
    let begun = Instant::now();
    // The broker takes a moment to forget the old one.
    while fixture.log.ensure_topics(std::slice::from_ref(&spec)).await.is_err()
        || !fixture.log.ends(&topic).await.is_ok_and(|ends| ends[0].next == 0)
    {
        assert!(begun.elapsed() < DEADLINE, "the topic is not made again");
    }
    let error = fixture.log.read(&at, 50, 10).await.unwrap_err();
    assert!(matches!(error, EventLogError::OffsetOutOfRange { asked: 50, next: 0, .. }), "{error}");
    while let Err(error) = fixture.log.publish(records(&at, 500..600)).await {
        assert!(error.is_transient() && begun.elapsed() < DEADLINE, "{error}");
    }
    let now = fixture.log.read(&at, 50, 10).await.unwrap();
    assert!(now.iter().all(|record| number(record) >= 500), "{:?}", now.iter().map(number).collect::<Vec<_>>());
}

/// Fault 6: a broker that comes back may have lost its disk. librdkafka's own mock broker: of it a test can be sure
/// when it goes, and that it is the same one that comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_with_the_connection_and_nothing_of_it_is_sent_later() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    // With all that librdkafka can say: also what it closes itself is in it then.
    let settings = KafkaSettings::parse(&format!("kafka://{}?debug=broker", cluster.bootstrap_servers())).unwrap();
    let log = KafkaEventLog::connect(settings).unwrap();
    let at = TopicPartition::new("events", 0);
    let publish = async || {
        let publishing = log.publish(records(&at, 0..10));
        tokio::time::timeout(DEADLINE, publishing).await.expect("the call does not end")
    };
    publish().await.unwrap();

    // While its answer is waited for: the broker has the records, and nobody knows.
    cluster.broker_round_trip_time(1, Duration::from_secs(30)).unwrap();
    let goes = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.broker_down(1).unwrap();
    };
    let error = tokio::join!(publish(), goes).0.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("before the connection was lost"), "{error}");
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    cluster.broker_up(1).unwrap();
    publish().await.unwrap();
    let next = log.ends("events").await.unwrap()[0].next;

    // Between two calls.
    cluster.broker_down(1).unwrap();
    let error = publish().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("the connection was lost"), "{error}");
    cluster.broker_up(1).unwrap();
    // Longer than librdkafka waits before it tries again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(log.ends("events").await.unwrap()[0].next, next);
}
