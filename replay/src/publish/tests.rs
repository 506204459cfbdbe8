use std::sync::Arc;

use event_log::{CommandDecoder, EmbeddedRegistry, SqliteEventLog, TopicSpec};

use super::*;
use crate::memory::{MemoryGenerations, by, clean, ownership, request};
use crate::operations::Operations;
use crate::rules::Rules;

#[tokio::test]
async fn each_decision_is_sent_in_order_and_a_repeat_has_its_id() {
    let stored = Arc::new(MemoryGenerations::new());
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    operations.start(&request(""), &by("eve", 1)).await.unwrap();
    operations.note_parity(&clean(2, 1, 2), &Rules::default(), &by("eve", 2)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    let topic = Context::Platform.commands_topic().to_owned();
    log.ensure_topics(&[TopicSpec { name: topic.clone(), partitions: 4 }]).await.unwrap();

    assert_eq!(publish_decisions(&*stored, &log, 4, 5).await.unwrap(), 2);
    assert_eq!(publish_decisions(&*stored, &log, 4, 6).await.unwrap(), 0);
    let at = TopicPartition::new(topic, partition_of(b"stock", 4));
    let records = log.read(&at, 0, 10).await.unwrap();
    let catalogue = stored.catalogue().await.unwrap();
    let decoder = CommandDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let decisions = stored.all_decisions();
    assert_eq!(records.len(), decisions.len());
    for (read, decision) in records.iter().zip(&decisions) {
        let envelope = decoder.decode(read, 7).await.unwrap();
        assert_eq!(envelope.id, command_id(catalogue.id, decision));
        let Command::RecordDecision(command) = envelope.command else { panic!("{:?}", envelope.command) };
        assert_eq!((command.number as u64, &command.hash), (decision.number, &decision.hash));
    }
    assert_ne!(records[0].headers.get("ce_id"), records[1].headers.get("ce_id"));
    let again = record("stock", catalogue.id, &decisions[0], 4, 9).unwrap();
    assert_eq!(again.headers.get("ce_id"), records[0].headers.get("ce_id"));
}
