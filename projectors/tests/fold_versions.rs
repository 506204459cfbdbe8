//! A generation is fed by the fold that built it, or by none. Real read model and real log, both in files.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;

use event_log::{EmbeddedRegistry, EventLog, SqliteEventLog, TopicSpec};
use projectors::{Projection, ProjectorError, ProjectorSettings, StockProjection, run_projector};
use read_models::ReadModelError;
use read_models::stock::{StockReadModel, connect_stock};
use telemetry::Health;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_fold_that_is_not_in_the_program_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    log.ensure_topics(&[TopicSpec { name: "inventory.events".to_owned(), partitions: 1 }]).await.unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    for unknown in [0, StockProjection::FOLDS.last().unwrap() + 1] {
        let health = Health::default();
        let settings =
            ProjectorSettings { group: "test".to_owned(), fold_version: unknown, partitions: 1, ..Default::default() };
        let refused = run_projector::<StockProjection, dyn StockReadModel>(
            stock.clone(),
            Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap()),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            health.component("stock"),
            CancellationToken::new(),
        )
        .await
        .unwrap_err();
        assert!(matches!(&refused, ProjectorError::UnknownFold { fold_version, .. } if *fold_version == unknown));
        assert!(!refused.is_transient());
        let told = refused.to_string();
        assert!(told.contains("a replay is due") && told.contains("this program has 1"), "{told}");
        assert!(matches!(stock.status().await, Err(ReadModelError::Rebuilding { .. })));
    }
}
