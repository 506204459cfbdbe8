//! Brings the index up to date with the rows: a pass takes the documents that changed, one commit makes them visible.
//!
//! A pass reads the changed documents and the checkpoints in one read transaction, so that a commit is exactly the
//! rows' state at the checkpoints that its payload names. A pass that was cut off is done again by the next: what is
//! newer than the commit's row version is indexed, and indexing it twice gives the same.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use resilience::Policy;
use schemas::Sku;
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy};
use tantivy::{IndexReader, IndexWriter, ReloadPolicy, TantivyError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::ReadModelError;
use crate::metrics;
use crate::search::builds::HeldBuild;
use crate::search::index::{self, Commit, Fields, META_FILE};
use crate::search::rows::{self, RowsState};
use crate::search::{NAME, parked, sums};
use crate::sqlite::{Abort, SqliteFile, ledger};

/// Shortest time between the beginnings of two passes: each commit costs a few file syncs whatever it holds.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// How often a pass is made without a write, to see that the index is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const WRITER_MEMORY: usize = 50_000_000;
/// How long passes may fail before it is told: one that met a full disk or a busy machine is nobody's business.
const FAILING_FOR: Duration = Duration::from_secs(5);
/// Segments below this many documents count as equally small when merging: commits make many of them.
const SMALL_SEGMENT: u32 = 1_000;
/// How often a level index is counted against its rows.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Share of deleted documents at which a segment is rewritten.
const DELETED_SHARE: f32 = 0.3;

/// What the indexer works on.
#[derive(Clone)]
pub(super) struct IndexerHome {
    pub(super) index_dir: PathBuf,
    pub(super) file: SqliteFile,
    /// Held for as long as a pass may run, though its owner is gone.
    pub(super) build: Arc<HeldBuild>,
}

/// An open index writer, and where its index stands.
struct Indexer {
    home: IndexerHome,
    writer: IndexWriter,
    fields: Fields,
    id: String,
    /// `None`: nothing is in it.
    indexed: Option<Commit>,
    /// Whether its documents say what is parked. An older program, which may have left the index, did not mark them.
    is_marked: bool,
    /// When it was last counted against its rows.
    counted_at: Option<Instant>,
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Rows(#[from] ReadModelError),
    #[error(transparent)]
    Index(#[from] TantivyError),
    #[error("a document cannot be written: {0}")]
    Document(#[from] serde_json::Error),
    #[error("the pass broke off: {0}")]
    BrokeOff(#[from] tokio::task::JoinError),
    #[error("the index shows {found} documents and its rows {wanted}: it is made again")]
    Miscounted { found: u64, wanted: u64 },
}

/// Runs until `shutdown`, or until the rows cannot be read. `problem` has why hits grow old, while they do.
pub(super) async fn run(
    home: IndexerHome,
    check_every: Duration,
    problem: &watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), ReadModelError> {
    let mut written = home.file.written();
    let mut indexer: Option<Indexer> = None;
    let mut delays = Policy::RESTART.backoff();
    // When the index was last known to have everything.
    let mut level_at = Instant::now();
    // Opening has just checked everything.
    let mut checked_at = Instant::now();
    while !shutdown.is_cancelled() {
        home.build.check()?;
        let begun = Instant::now();
        written.mark_unchanged();
        let pass_home = home.clone();
        let opened = indexer.take();
        let is_check_due = checked_at.elapsed() >= check_every;
        if is_check_due {
            checked_at = Instant::now();
        }
        let pass = tokio::task::spawn_blocking(move || pass(pass_home, opened, is_check_due));
        match pass.await.unwrap_or_else(|error| Err(error.into())) {
            Ok((still_open, documents)) => {
                if let Some(documents) = documents {
                    metrics::index_committed(documents, begun.elapsed());
                    metrics::index_age(home.build.generation(), level_at.elapsed());
                } else {
                    metrics::index_age(home.build.generation(), Duration::ZERO);
                }
                indexer = Some(still_open);
                level_at = begun;
                problem.send_if_modified(|problem| problem.take().is_some());
                delays = Policy::RESTART.backoff();
                tokio::select! {
                    _ = written.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = shutdown.cancelled() => break,
                }
                tokio::select! {
                    () = tokio::time::sleep_until(begun + COMMIT_EVERY) => {}
                    () = shutdown.cancelled() => break,
                }
            }
            // Nothing was ever written.
            Err(PassError::Rows(ReadModelError::Rebuilding { .. })) => {
                level_at = begun;
                tokio::select! {
                    _ = written.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = shutdown.cancelled() => break,
                }
            }
            Err(PassError::Rows(error)) if !error.is_transient() => {
                if matches!(error, ReadModelError::Damaged { .. }) {
                    home.build.condemn()?;
                }
                return Err(error);
            }
            // The next pass opens the index anew, and makes it again if that is what it takes.
            Err(error) => {
                metrics::index_age(home.build.generation(), level_at.elapsed());
                tracing::warn!(%error, "index pass failed");
                if level_at.elapsed() > FAILING_FOR {
                    problem.send_replace(Some(format!("hits grow old, the index cannot be written: {error}")));
                }
                tokio::select! {
                    () = delays.wait() => {}
                    () = shutdown.cancelled() => break,
                }
            }
        }
    }
    // A writer joins its threads when it is dropped.
    let _ = tokio::task::spawn_blocking(move || drop(indexer)).await;
    Ok(())
}

/// The writer to go on with, and how many documents were committed; `None` when there was nothing to commit.
fn pass(
    home: IndexerHome,
    indexer: Option<Indexer>,
    is_check_due: bool,
) -> Result<(Indexer, Option<usize>), PassError> {
    home.build.check_there()?;
    if is_check_due {
        home.file.read(|transaction| sums::check(transaction))?;
    }
    let meta = std::fs::read(home.index_dir.join(META_FILE)).unwrap_or_default();
    let mut indexer = match indexer {
        // Its last commit is still what readers find.
        Some(indexer) if Commit::of_meta(&meta) == indexer.indexed && (!is_check_due || indexer.is_whole()) => indexer,
        lost => {
            // Its lock on the index goes first.
            drop(lost);
            Indexer::open(home)?
        }
    };
    let documents = indexer.index_newer()?;
    // Whole from here on: readers come over from the build before.
    if indexer.indexed.as_ref().is_some_and(|commit| commit.live) {
        indexer.home.build.point_to_it()?;
    }
    Ok((indexer, documents))
}

// === impl Indexer ===

impl Indexer {
    /// Opens the index where it is whole and of these rows; makes it again where it is not.
    fn open(home: IndexerHome) -> Result<Self, PassError> {
        let rows = home.file.read(|transaction| rows::state(transaction))?;
        let found = index::open_whole(&home.index_dir, &mut HashSet::new()).and_then(|(index, fields)| {
            let commit = Commit::of_payload(index.load_metas()?.payload.as_deref());
            Ok((index, fields, commit))
        });
        let (index, fields, indexed) = match found {
            Ok((index, fields, Some(commit))) if is_of(&commit, &rows) => (index, fields, Some(commit)),
            other => {
                match &other {
                    Err(error) => tracing::warn!(%error, "index is made from the rows"),
                    Ok(_) => tracing::info!("index is made from the rows"),
                }
                drop(other);
                home.build.check_there()?;
                let (index, fields) = index::make(&home.index_dir)?;
                (index, fields, None)
            }
        };
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(WRITER_MEMORY)
            .build();
        let writer = index.writer_with_options(options)?;
        let mut merge_policy = LogMergePolicy::default();
        merge_policy.set_min_layer_size(SMALL_SEGMENT);
        merge_policy.set_del_docs_ratio_before_merge(DELETED_SHARE);
        writer.set_merge_policy(Box::new(merge_policy));
        let id = indexed.as_ref().map_or_else(|| Uuid::new_v4().to_string(), |commit| commit.index.clone());
        let is_marked = indexed.is_none();
        Ok(Self { home, writer, fields, id, indexed, is_marked, counted_at: None })
    }

    /// Whether the files of its last commit are what their checksums say. A file that cannot be read may be one that a
    /// merge has just removed: opening the index tells.
    fn is_whole(&self) -> bool {
        self.writer.index().validate_checksum().is_ok_and(|damaged| damaged.is_empty())
    }

    /// One pass.
    fn index_newer(&mut self) -> Result<Option<usize>, PassError> {
        let file = self.home.file.clone();
        let is_count_due = self.counted_at.is_none_or(|counted_at| counted_at.elapsed() > COUNT_EVERY);
        let is_marked = std::mem::replace(&mut self.is_marked, true);
        let taken: Result<(RowsState, usize, Option<u64>), PassError> = file.read(|transaction| {
            let generation = ledger::serving(transaction, NAME)?;
            let rows = rows::state(transaction)?;
            let indexed = self.indexed.as_ref().filter(|indexed| indexed.generation == rows.generation);
            let after = indexed.map_or(0, |indexed| indexed.row_version);
            if self.indexed.is_some()
                && after == 0
                && let Err(error) = self.writer.delete_all_documents()
            {
                return Ok(Err(error.into()));
            }
            let mut documents = 0;
            let mut index = |sku: Sku| -> Result<Result<(), PassError>, Abort> {
                let parts = rows::parts(transaction, &generation, &sku)?;
                documents += 1;
                self.writer.delete_term(self.fields.key(&sku));
                Ok(self.add(&sku, parts))
            };
            let mut added = rows::for_each_newer(transaction, rows.generation, after, &mut index)?;
            if added.is_ok() && !is_marked {
                added = parked::for_each(transaction, rows.generation, &mut index)?;
            }
            let is_level = documents == 0 && indexed.is_some_and(|indexed| indexed.row_version == rows.row_version);
            let shown = if is_level && is_count_due { Some(rows::shown(transaction, rows.generation)?) } else { None };
            Ok(added.map(|()| (rows, documents, shown)))
        })?;
        let (rows, documents, shown) = taken?;
        if let Some(wanted) = shown {
            self.count(wanted)?;
        }
        let commit = Commit::of(&self.id, rows);
        // Positions alone need no commit: while no row version is missing, the index is true at the rows' own.
        let is_level = documents == 0
            && self.indexed.as_ref().is_some_and(|indexed| {
                (indexed.generation, indexed.row_version, indexed.live)
                    == (commit.generation, commit.row_version, commit.live)
            });
        if is_level {
            return Ok(None);
        }
        let payload = commit.payload()?;
        // Documents may have taken a while.
        self.home.build.check_there()?;
        let mut prepared = self.writer.prepare_commit()?;
        prepared.set_payload(&payload);
        prepared.commit()?;
        self.indexed = Some(commit);
        Ok(Some(documents))
    }

    /// Holds a level index against its rows. One that shows more or fewer documents is removed, and made again by the
    /// next pass.
    fn count(&mut self, wanted: u64) -> Result<(), PassError> {
        let reader: IndexReader =
            self.writer.index().reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let found = reader.searcher().num_docs();
        if found == wanted {
            self.counted_at = Some(Instant::now());
            self.home.build.remove_older();
            return Ok(());
        }
        self.home.build.check_there()?;
        index::remove(&self.home.index_dir).map_err(TantivyError::from)?;
        Err(PassError::Miscounted { found, wanted })
    }

    fn add(&self, sku: &Sku, parts: rows::Parts) -> Result<(), PassError> {
        if let Some(document) = self.fields.document(sku, parts)? {
            self.writer.add_document(document)?;
        }
        Ok(())
    }
}

/// Removes an index that is not of the rows as they were found. Later would be too late: once the log has given lost
/// events again, row versions of before and after can no longer be told apart.
pub(super) fn remove_foreign(home: &IndexerHome) -> Result<(), ReadModelError> {
    let rows = match home.file.read(|transaction| rows::state(transaction)) {
        Ok(rows) => Some(rows),
        Err(ReadModelError::Rebuilding { .. }) => None,
        Err(error) => return Err(error),
    };
    let meta = std::fs::read(home.index_dir.join(META_FILE)).unwrap_or_default();
    let commit = Commit::of_meta(&meta);
    if commit.zip(rows).is_some_and(|(commit, rows)| is_of(&commit, &rows)) {
        return Ok(());
    }
    index::remove(&home.index_dir).map_err(|error| ReadModelError::Unavailable {
        name: NAME.to_owned(),
        address: home.index_dir.display().to_string(),
        problem: error.to_string(),
    })
}

/// Whether the index was made from these rows, and is not ahead of them: a power cut may take back the last rows, not
/// an index commit.
fn is_of(commit: &Commit, rows: &RowsState) -> bool {
    let is_ahead = commit.generation == rows.generation && commit.row_version > rows.row_version;
    commit.store == rows.store && !is_ahead
}
