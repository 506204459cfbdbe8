//! What only Kafka can do: share partitions among members, drop old records, carry what foreign clients write.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_log::{EventLog, EventLogError, KafkaEventLog, KafkaSettings, Signal, Subscription, TopicPartition};
use fixture::{DEADLINE, kafka, kafka_address, kafka_log, number, records};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

/// Plays a projector: starts what it is assigned where its own checkpoint says, and checks that every record is the
/// next one. The checkpoints are shared, as a read model's are.
struct Member {
    subscription: Box<dyn Subscription>,
    checkpoints: Arc<std::sync::Mutex<BTreeMap<TopicPartition, u64>>>,
    owned: Vec<TopicPartition>,
    applied: usize,
}

// === impl Member ===

impl Member {
    fn new(
        subscription: Box<dyn Subscription>,
        checkpoints: &Arc<std::sync::Mutex<BTreeMap<TopicPartition, u64>>>,
    ) -> Self {
        Self { subscription, checkpoints: checkpoints.clone(), owned: Vec::new(), applied: 0 }
    }

    fn checkpoint(&self, at: &TopicPartition) -> u64 {
        self.checkpoints.lock().unwrap().get(at).copied().unwrap_or(0)
    }

    /// Handles the next signal, if one comes soon.
    async fn step(&mut self) {
        let Ok(signal) = tokio::time::timeout(Duration::from_millis(50), self.subscription.next()).await else {
            return;
        };
        match signal.unwrap() {
            Signal::Assigned(partitions) => {
                for at in partitions {
                    assert!(!self.owned.contains(&at), "{at} is assigned twice");
                    let offset = self.checkpoint(&at);
                    self.subscription.start(&at, offset).await.unwrap();
                    self.owned.push(at);
                }
            }
            Signal::Revoked(partitions) => {
                for at in partitions {
                    assert!(self.owned.contains(&at), "{at} is revoked and was not assigned");
                    self.owned.retain(|owned| *owned != at);
                }
            }
            Signal::Records(records) => {
                let at = records[0].at.clone();
                assert!(self.owned.contains(&at), "a record of {at}, which is not ours");
                for record in &records {
                    assert_eq!(record.offset, self.checkpoint(&at), "the next record of {at}");
                    self.checkpoints.lock().unwrap().insert(at.clone(), record.offset + 1);
                }
                self.applied += records.len();
                self.subscription.commit(&at, self.checkpoint(&at)).await.unwrap();
            }
        }
    }

    async fn step_until(&mut self, what: &str, mut is_done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_done(self) {
            assert!(
                begun.elapsed() < DEADLINE,
                "{what}: {} partitions owned, {} applied",
                self.owned.len(),
                self.applied
            );
            self.step().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn members_share_partitions_and_take_over_from_those_that_leave() {
    let fixture = kafka();
    let topic = fixture.make_topic("events", 4).await;
    let group = fixture.group("g");
    let checkpoints = Arc::default();
    let stop = CancellationToken::new();
    // A session that outlasts every wait for a take-over below.
    let patient = KafkaSettings::parse(&format!("kafka://{}?session.timeout.ms=45000", kafka_address())).unwrap();
    let member = async || {
        // Another process each: its own clients.
        let log = KafkaEventLog::connect(patient.clone()).unwrap();
        Member::new(log.subscribe(&group, &[&topic]).await.unwrap(), &checkpoints)
    };

    // Published all the while, so that a rebalance always happens in the middle of something.
    let published = Arc::new(AtomicUsize::new(0));
    let publisher = tokio::spawn({
        let (log, topic, stop, published) = (fixture.log.clone(), topic.clone(), stop.clone(), published.clone());
        async move {
            while !stop.is_cancelled() {
                let batch = (0..4).flat_map(|partition| records(&TopicPartition::new(&topic, partition), 0..20));
                log.publish(batch.collect()).await.unwrap();
                published.fetch_add(80, Ordering::SeqCst);
            }
        }
    });

    let mut first = member().await;
    first.step_until("alone, the first has all", |first| first.owned.len() == 4 && first.applied > 500).await;

    let mut second = member().await;
    let begun = Instant::now();
    let had = first.applied;
    while first.owned.len() != 2 || second.owned.len() != 2 || second.applied < 500 || first.applied < had + 500 {
        assert!(begun.elapsed() < DEADLINE, "shared: {} and {}", first.owned.len(), second.owned.len());
        tokio::join!(first.step(), second.step());
    }
    assert!(first.owned.iter().all(|at| !second.owned.contains(at)));

    // The first leaves; the second has all of them well before a session could expire.
    first.subscription.close().await;
    let left = Instant::now();
    second.step_until("the second took over", |second| second.owned.len() == 4).await;
    assert!(left.elapsed() < Duration::from_secs(30), "it took {:?}", left.elapsed());

    stop.cancel();
    publisher.await.unwrap();
    let total = published.load(Ordering::SeqCst);
    let applied_by_first = first.applied;
    second.step_until("all is applied once", |second| applied_by_first + second.applied == total).await;
    let ends = fixture.log.ends(&topic).await.unwrap();
    for end in ends {
        assert_eq!(second.checkpoint(&TopicPartition::new(&topic, end.partition)), end.next);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn a_member_that_is_busy_when_revoked_is_waited_for() {
    let fixture = kafka();
    let topic = fixture.make_topic("events", 2).await;
    let group = fixture.group("g");
    let checkpoints = Arc::default();
    let mut first = Member::new(fixture.log.subscribe(&group, &[&topic]).await.unwrap(), &checkpoints);
    first.step_until("alone, the first has all", |first| first.owned.len() == 2).await;

    let mut second = Member::new(kafka_log().subscribe(&group, &[&topic]).await.unwrap(), &checkpoints);
    let revoked = loop {
        if let Signal::Revoked(partitions) =
            tokio::time::timeout(DEADLINE, first.subscription.next()).await.unwrap().unwrap()
        {
            break partitions;
        }
    };
    // Until the first comes back for the next signal, the partition is nobody else's.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        second.step().await;
        assert_eq!(second.owned, [], "the first was not done yet");
    }
    first.owned.retain(|at| !revoked.contains(at));
    let begun = Instant::now();
    while second.owned != revoked {
        assert!(begun.elapsed() < DEADLINE);
        tokio::join!(first.step(), second.step());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn records_that_retention_took_are_an_error_not_a_jump() {
    let fixture = kafka();
    let topic = fixture.make_topic("events", 2).await;
    let [at, other] = [0, 1].map(|partition| TopicPartition::new(&topic, partition));
    let mut reader = fixture.read_all("g", &topic, 2).await;
    fixture.log.publish(records(&at, 0..1)).await.unwrap();
    reader.records_of(&at, 1).await;
    // More than is held in memory, so that the rest has to be fetched after the deletion.
    reader.subscription.pause(&at).await.unwrap();
    for batch in 0..20 {
        fixture.log.publish(records(&at, 1 + batch * 1_000..1_001 + batch * 1_000)).await.unwrap();
    }
    fixture.log.publish(records(&other, 0..1)).await.unwrap();
    reader.records_of(&other, 1).await;

    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka_address()).create().unwrap();
    let mut offsets = rdkafka::TopicPartitionList::new();
    offsets.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(19_000)).unwrap();
    admin.delete_records(&offsets, &AdminOptions::new()).await.unwrap();
    let ends = fixture.log.ends(&topic).await.unwrap();
    assert_eq!((ends[0].first, ends[0].next), (19_000, 20_001));

    reader.subscription.resume(&at).await.unwrap();
    let mut expected = 1;
    let error = loop {
        match reader.signal().await {
            Ok(Signal::Records(records)) => {
                assert_eq!(records[0].offset, expected);
                expected = records.last().unwrap().offset + 1;
                assert!(expected < 19_000, "it jumped over the hole");
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, EventLogError::OffsetOutOfRange { at: found, first: 19_000, next: 20_001, .. } if *found == at),
        "{error}"
    );
    let error = reader.subscription.start(&at, expected).await.unwrap_err();
    assert!(matches!(error, EventLogError::OffsetOutOfRange { first: 19_000, .. }), "{error}");

    // The other partition goes on, and this one from where there is something.
    fixture.log.publish(records(&other, 1..2)).await.unwrap();
    assert_eq!(number(&reader.records_of(&other, 1).await[0]), 1);
    reader.subscription.start(&at, 19_500).await.unwrap();
    assert!(reader.records_of(&at, 501).await.iter().map(|record| record.offset).eq(19_500..20_001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn what_a_foreign_client_writes_is_read() {
    let fixture = kafka();
    let topic = fixture.make_topic("commands", 1).await;
    let at = TopicPartition::new(&topic, 0);
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", kafka_address()).create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_id", value: Some(&[0x66, 0xff, 0x6f][..]) })
        .insert(Header { key: "none", value: None::<&[u8]> });
    // No key, and no value: what Kafka calls a tombstone.
    let record = FutureRecord::<(), ()>::to(&topic).partition(0).headers(headers);
    producer.send(record, Duration::from_secs(10)).await.unwrap();

    let mut reader = fixture.read_all("g", &topic, 1).await;
    let found = reader.records_of(&at, 1).await.remove(0);
    assert_eq!((found.key.len(), found.value.len()), (0, 0));
    assert_eq!(found.headers.get("ce_id"), Some("f\u{fffd}o"));
    assert_eq!(found.headers.get("none"), Some(""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_answers_is_named() {
    // Bound, so that nobody else takes the port, and not listening: connections are refused.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let log = KafkaEventLog::connect(KafkaSettings::parse(&format!("kafka://{address}")).unwrap()).unwrap();
    let begun = Instant::now();
    let (pinged, ends, subscribed) = tokio::join!(log.ping(), log.ends("t"), log.subscribe("g", &["t"]));
    assert!(begun.elapsed() < DEADLINE, "it took {:?}", begun.elapsed());
    for error in [pinged.unwrap_err(), ends.unwrap_err(), subscribed.err().unwrap()] {
        assert!(error.is_transient() && error.to_string().contains(&address), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn a_member_that_tells_its_progress_all_the_time_stays_a_member() {
    let fixture = kafka();
    let topic = fixture.make_topic("events", 12).await;
    let group = fixture.group("g");
    let subscription = fixture.log.subscribe(&group, &[&topic]).await.unwrap();
    let mut member = Member::new(subscription, &Arc::default());
    member.step_until("it has all", |member| member.owned.len() == 12).await;
    // For longer than a session may be silent: what is told must not crowd out the heartbeats.
    let begun = Instant::now();
    let mut next = 0;
    while begun.elapsed() < Duration::from_secs(14) {
        next += 1;
        for partition in 0..12 {
            member.subscription.commit(&TopicPartition::new(&topic, partition), next).await.unwrap();
        }
        let signal = tokio::time::timeout(Duration::from_millis(1), member.subscription.next()).await;
        assert!(signal.is_err(), "{signal:?} after {:?}", begun.elapsed());
    }
}
