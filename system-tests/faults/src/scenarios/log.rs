//! Faults 5, 6, 19, 20, 21: the log itself.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use event_log::{NewRecord, TopicPartition};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::{Offset, TopicPartitionList};
use schemas::Context;

use crate::proxy::Mode;
use crate::scenario::{On, Scenario};
use crate::system::Reach;
use crate::trial::Trial;

pub(super) const NOTICED: Duration = Duration::from_secs(40);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(5, "the broker killed, and restarted", broker_killed),
        Scenario::new(5, "one broker after the other killed, of three", broker_killed)
            .variant("three")
            // Three restarts, each of a JVM that warms up anew beside the others, the load and all of ours on two cores.
            .within(300)
            .on(On::Servers(Reach::Direct, 3)),
        Scenario::new(5, "the network to the broker cut, swallowing, slow", broker_unreachable)
            .variant("network")
            .on(On::Servers(Reach::Proxied, 1)),
        Scenario::new(6, "the only broker loses its disk", broker_loses_its_disk).without_topic_commands(),
        Scenario::new(19, "retention passed a checkpoint", retention_passed),
        Scenario::new(20, "the partition count of a topic raised", partitions_raised),
        Scenario::new(21, "a topic deleted and made again", topic_made_again),
    ]
}

fn broker_killed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let brokers = trial.servers.kafka.brokers.len();
        for number in 0..brokers.max(2) {
            let broker = &mut trial.servers.kafka.brokers[number % brokers];
            if number == 1 && brokers == 1 {
                // In order, as for an upgrade.
                broker.program.stop("TERM", Duration::from_secs(60)).await?;
            } else {
                broker.program.kill()?;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            broker.program.start()?;
            broker.answers(Duration::from_secs(60)).await?;
            trial.servers.kafka.start().await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        Ok(())
    }
    .boxed_local()
}

fn broker_unreachable<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for mode in [Mode::Cut, Mode::Swallow, Mode::Delay(Duration::from_millis(200))] {
            trial.servers.kafka.brokers[0].proxy.set(mode);
            tokio::time::sleep(Duration::from_secs(4)).await;
            trial.servers.kafka.brokers[0].proxy.pass();
            trial.probe().await.with_context(|| format!("after {mode:?}"))?;
        }
        Ok(())
    }
    .boxed_local()
}

/// Runs what the runbook says: the relay is stopped, reconciled, started.
pub(super) async fn reconcile(trial: &mut Trial<'_>, flags: &[&str]) -> anyhow::Result<()> {
    trial.system.program("relay")?.kill()?;
    let (code, told) = trial.system.run(&[&["relay", "reconcile"], flags].concat())?;
    ensure!(code == 0, "relay reconcile {flags:?}: exit code {code}: {told}");
    trial.system.start("relay").await?;
    // What ended by itself is for whoever watches processes to start again.
    for name in trial.system.names() {
        if !trial.system.program(&name)?.is_running() {
            trial.system.start(&name).await?;
        }
    }
    Ok(())
}

fn broker_loses_its_disk<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let broker = &mut trial.servers.kafka.brokers[0];
        broker.program.kill()?;
        broker.wipe()?;
        trial.servers.kafka.start().await?;
        trial.system.complains("relay", "reconcile", NOTICED).await.context("the loss is not noticed")?;
        reconcile(trial, &[]).await
    }
    .boxed_local()
}

/// The projector stands while everything that it has not read is deleted.
fn retention_passed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.system.program("stock")?.kill()?;
        trial.load.reached(0.6).await?;
        let topic = Context::Inventory.events_topic();
        let log = event_log::connect_event_log(&format!("kafka://{}", trial.servers.kafka.address())).await?;
        let mut to = TopicPartitionList::new();
        for ends in log.ends(topic).await? {
            to.add_partition_offset(topic, ends.partition as i32, Offset::Offset(ends.next as i64))?;
        }
        let deleted = trial.servers.kafka.admin()?.delete_records(&to, &AdminOptions::new()).await?;
        for partition in deleted.elements() {
            partition.error()?;
        }
        trial.system.program("stock")?.start()?;
        trial.system.complains("stock", "retention", NOTICED).await.context("the jump is not noticed")?;
        reconcile(trial, &["--from-start"]).await?;
        trial.system.ready("stock").await
    }
    .boxed_local()
}

fn partitions_raised<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let topic = Context::Inventory.events_topic();
        let more = NewPartitions::new(topic, trial.plan().partitions as usize + 1);
        let raised = trial.servers.kafka.admin()?.create_partitions([&more], &AdminOptions::new()).await?;
        if let Some(Err((topic, code))) = raised.into_iter().next() {
            bail!("the partitions of {topic} cannot be raised: {code}");
        }
        trial.system.complains("relay", "partitions", NOTICED).await.context("the new partition is not noticed")?;
        stray(trial).await?;
        // Kafka cannot lower it: the topic is made anew, and filled from the event table.
        make_again(trial).await?;
        reconcile(trial, &[]).await
    }
    .boxed_local()
}

/// An event of ours in the partition that nobody should use, as of a producer that counts the partitions itself, and a
/// projector that starts while it lies there.
async fn stray(trial: &mut Trial<'_>) -> anyhow::Result<()> {
    let topic = Context::Inventory.events_topic();
    let log = event_log::connect_event_log(&format!("kafka://{}", trial.servers.kafka.address())).await?;
    let first = log.ends(topic).await?.into_iter().find(|ends| ends.next > ends.first);
    let ends = first.context("no event was published")?;
    let copied = log.read(&TopicPartition::new(topic, ends.partition), ends.first, 1).await?;
    let record = copied.into_iter().next().context("the first event cannot be read")?;
    let at = TopicPartition::new(topic, trial.plan().partitions);
    log.publish(vec![NewRecord {
        at,
        key: record.key.to_vec(),
        headers: record.headers,
        value: record.value.to_vec(),
        timestamp: 0,
    }])
    .await?;
    trial.system.program("stock")?.kill()?;
    trial.system.program("stock")?.start()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(())
}

fn topic_made_again<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        make_again(trial).await?;
        trial.system.complains("relay", "reconcile", NOTICED).await.context("the other topic is not noticed")?;
        reconcile(trial, &[]).await
    }
    .boxed_local()
}

async fn make_again(trial: &mut Trial<'_>) -> anyhow::Result<()> {
    let topic = Context::Inventory.events_topic();
    trial.servers.kafka.delete_topics(&[topic.to_owned()]).await?;
    let new = NewTopic::new(topic, trial.plan().partitions as i32, TopicReplication::Fixed(1));
    let made = trial.servers.kafka.admin()?.create_topics([&new], &AdminOptions::new()).await?;
    match made.into_iter().next() {
        // A relay that still ran may have been faster.
        Some(Err((_, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) | None => Ok(()),
        Some(Err((topic, code))) => bail!("{topic} cannot be made again: {code}"),
    }
}
