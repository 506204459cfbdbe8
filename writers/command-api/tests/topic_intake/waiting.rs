//! Records that must wait, on a registry and a log that do not always answer.

use super::*;

/// How a registry answers.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    Not,
    ThatItIsAway,
    Rightly,
}

/// A registry on a network: never at once, and not always.
struct FarRegistry {
    inner: EmbeddedRegistry,
    answers: watch::Sender<Answers>,
}

#[async_trait]
impl SchemaRegistry for FarRegistry {
    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError> {
        tokio::task::yield_now().await;
        let answers = *self.answers.subscribe().wait_for(|answers| *answers != Answers::Not).await.unwrap();
        match answers {
            Answers::Rightly => self.inner.schema(id).await,
            _ => {
                Err(EventLogError::RegistryUnavailable { address: "far".to_owned(), problem: "it is down".to_owned() })
            }
        }
    }

    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError> {
        self.inner.id_of(topic, schema).await
    }

    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError> {
        self.inner.register(topic, contract).await
    }

    async fn check(&self, topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError> {
        self.inner.check(topic, contract).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.inner.ping().await
    }
}

type Said = Result<Signal, EventLogError>;

/// A log whose group says more than a file's does, whose topics may have another partition count, and that may be
/// another one all at once.
struct GroupLog {
    inner: Arc<Mutex<Arc<dyn EventLog>>>,
    is_repartitioned: Arc<watch::Sender<bool>>,
    subscriptions: Arc<AtomicUsize>,
    said: Arc<Mutex<mpsc::UnboundedReceiver<Said>>>,
}

struct GroupSubscription {
    inner: Box<dyn Subscription>,
    said: Arc<Mutex<mpsc::UnboundedReceiver<Said>>>,
}

impl GroupLog {
    fn inner(&self) -> Arc<dyn EventLog> {
        self.inner.lock().unwrap().clone()
    }
}

#[async_trait]
impl EventLog for GroupLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        if *self.is_repartitioned.borrow() {
            return Err(EventLogError::PartitionCount { topic: COMMANDS.to_owned(), found: 2, wanted: 1 });
        }
        self.inner().ensure_topics(topics).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        self.subscriptions.fetch_add(1, Ordering::SeqCst);
        let inner = self.inner().subscribe(group, topics).await?;
        Ok(Box::new(GroupSubscription { inner, said: self.said.clone() }))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        self.inner().publish(records).await
    }

    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        self.inner().ends(topic).await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        self.inner().read(at, from, limit).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.inner().ping().await
    }
}

#[async_trait]
impl Subscription for GroupSubscription {
    async fn next(&mut self) -> Result<Signal, EventLogError> {
        let said = std::future::poll_fn(|context| self.said.lock().unwrap().poll_recv(context));
        tokio::select! {
            biased;
            Some(said) = said => said,
            next = self.inner.next() => next,
        }
    }

    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        self.inner.start(at, offset).await
    }

    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.inner.pause(at).await
    }

    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.inner.resume(at).await
    }

    async fn commit(&mut self, at: &TopicPartition, next_offset: u64) -> Result<(), EventLogError> {
        self.inner.commit(at, next_offset).await
    }
}

/// A fixture on such a registry and such a log.
struct Far {
    fixture: Fixture,
    health: Health,
    answers: watch::Sender<Answers>,
    is_repartitioned: Arc<watch::Sender<bool>>,
    subscriptions: Arc<AtomicUsize>,
    say: mpsc::UnboundedSender<Said>,
    log: Arc<Mutex<Arc<dyn EventLog>>>,
}

impl Far {
    async fn new(answers: Answers) -> Self {
        let fixture = Fixture::new().await;
        let answers = watch::Sender::new(answers);
        let registry = Arc::new(FarRegistry { inner: EmbeddedRegistry::default(), answers: answers.clone() });
        let (say, said) = mpsc::unbounded_channel();
        let (is_repartitioned, subscriptions) = (Arc::new(watch::Sender::new(false)), Arc::new(AtomicUsize::new(0)));
        let inner = Arc::new(Mutex::new(fixture.log.clone()));
        let log = GroupLog {
            inner: inner.clone(),
            is_repartitioned: is_repartitioned.clone(),
            subscriptions: subscriptions.clone(),
            said: Arc::new(Mutex::new(said)),
        };
        let fixture = Fixture { log: Arc::new(log), registry, ..fixture };
        Self { fixture, health: Health::default(), answers, is_repartitioned, subscriptions, say, log: inner }
    }

    fn run(&self) -> Running {
        self.fixture.run_with(HandlerSettings::default(), &self.health)
    }

    async fn until_said(&self, wanted: &str) {
        until_said(&self.health, "command topics", wanted).await;
    }

    /// Ids of the commands that have an outcome, in its order.
    async fn told(&self) -> Vec<u128> {
        outcomes(&self.fixture.stored().await).iter().map(|outcome| outcome.0.as_u128()).collect()
    }
}

/// Of a schema that there is; its body is refused once it is read.
fn in_avro(id: u128) -> (Headers, Vec<u8>) {
    (headers(id, "ReceiveStock", "application/avro"), frame(1, b""))
}

fn price(id: u128) -> Vec<(Headers, Vec<u8>)> {
    vec![(headers(id, "SetPrice", "application/json"), set_price())]
}

const PRICING: &str = "pricing.commands";
const AWAY: &str = "inventory.commands/0 waits at offset 1: schema registry far does not answer: it is down";

/// Fault 13, for commands.
#[tokio::test]
async fn a_record_that_must_wait_holds_up_its_partition_alone() {
    let far = Far::new(Answers::Not).await;
    let fixture = &far.fixture;
    fixture.publish(vec![receive(1, 7), in_avro(2), receive(3, 7)]).await;
    fixture.publish_on(PRICING, NOW, price(10)).await;
    let running = far.run();
    fixture.taken_of(PRICING, 1).await;
    far.answers.send_replace(Answers::ThatItIsAway);
    far.until_said(AWAY).await;
    assert!(far.health.report().ready, "it does all else");
    fixture.taken(1).await;
    fixture.publish(vec![receive(4, 7)]).await;
    fixture.publish_on(PRICING, NOW, price(11)).await;
    fixture.taken_of(PRICING, 2).await;
    assert_eq!(far.told().await, [1]);

    far.answers.send_replace(Answers::Rightly);
    fixture.taken(4).await;
    far.until_said("ready").await;
    assert_eq!(far.told().await, [1, 2, 3, 4]);
    assert_eq!(far.subscriptions.load(Ordering::SeqCst), 1);
    running.stop().await;
}

/// Fault 21, for commands: nothing but its records tells that it is another topic.
#[tokio::test]
async fn a_topic_that_was_made_anew_and_has_grown_past_what_was_taken_is_taken_from_its_beginning() {
    let far = Far::new(Answers::Rightly).await;
    far.fixture.publish((1..=5).map(|id| receive(id, 7)).collect()).await;
    let running = far.run();
    far.fixture.taken(5).await;
    let away = || Err(EventLogError::Unavailable { address: "log".to_owned(), problem: "restarts".to_owned() });
    far.say.send(away()).unwrap();
    // The same topic goes on where it was.
    far.fixture.publish(vec![receive(6, 7)]).await;
    far.fixture.taken(6).await;
    assert_eq!(far.fixture.effects().await, 6);

    let other = Fixture::new().await;
    *far.log.lock().unwrap() = other.log.clone();
    far.fixture.publish((101..=110).map(|id| receive(id, 7)).collect()).await;
    far.say.send(away()).unwrap();
    far.fixture.taken(10).await;
    running.stop().await;
    assert_eq!(far.fixture.effects().await, 16);
}

#[tokio::test]
async fn a_partition_that_waits_can_be_given_away_and_come_back() {
    let far = Far::new(Answers::ThatItIsAway).await;
    let fixture = &far.fixture;
    fixture.publish(vec![receive(1, 7), in_avro(2), receive(3, 7)]).await;
    let running = far.run();
    far.until_said(AWAY).await;
    let partition = || vec![TopicPartition::new(COMMANDS, 0)];
    far.say.send(Ok(Signal::Revoked(partition()))).unwrap();
    far.until_said("ready").await;
    far.answers.send_replace(Answers::Rightly);
    // Who has it meanwhile takes the one that it waited for.
    let taken = OffsetAdvance { topic: COMMANDS.to_owned(), partition: 0, expected: 1, next: 2, last: None };
    fixture.store.append(&AppendBatch { offsets: vec![taken], ..AppendBatch::default() }).await.unwrap();
    far.say.send(Ok(Signal::Assigned(partition()))).unwrap();
    fixture.taken(3).await;
    assert_eq!(far.told().await, [1, 3]);
    running.stop().await;
}

#[tokio::test]
async fn an_intake_whose_partition_waits_stops_and_the_next_goes_on() {
    let far = Far::new(Answers::ThatItIsAway).await;
    far.fixture.publish(vec![receive(1, 7), in_avro(2), receive(3, 7)]).await;
    let running = far.run();
    far.until_said(AWAY).await;
    running.stop().await;
    far.answers.send_replace(Answers::Rightly);
    let running = far.run();
    far.fixture.taken(3).await;
    assert_eq!(far.told().await, [1, 2, 3]);
    running.stop().await;
}

/// Fault 20, and rights that are taken away: the rest of the process needs no command topics.
#[tokio::test]
async fn an_intake_that_somebody_must_mend_says_so_and_looks_again() {
    let far = Far::new(Answers::Rightly).await;
    far.is_repartitioned.send_replace(true);
    let running = far.run();
    let wrong = "inventory.commands has 2 partitions, 1 are wanted";
    far.until_said(wrong).await;
    assert!(far.health.report().ready, "callers over HTTP are served");
    far.is_repartitioned.send_replace(false);
    far.fixture.publish(vec![receive(1, 7)]).await;
    far.fixture.taken(1).await;
    far.until_said("ready").await;

    far.is_repartitioned.send_replace(true);
    far.say.send(Err(EventLogError::Permanent { problem: "not authorized".to_owned() })).unwrap();
    far.until_said(wrong).await;
    far.is_repartitioned.send_replace(false);
    far.fixture.publish(vec![receive(2, 7)]).await;
    far.fixture.taken(2).await;
    running.stop().await;
}
