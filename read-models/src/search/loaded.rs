//! One generation as readers see it: a loaded state, kept until the directory shows another.
//!
//! Whoever asks first after a commit loads it, at most every few milliseconds; everyone is answered from one loaded
//! state, the searcher and the position that it is true at. The directory need not be there yet.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tantivy::{IndexReader, ReloadPolicy, TantivyError};

use crate::error::ReadModelError;
use crate::search::NAME;
use crate::search::builds::{Builds, FileId};
use crate::search::documents::{self, DocumentCheck};
use crate::search::index::{self, Commit, Fields, META_FILE};
use crate::search::read_model::{INDEX_DIR, ROWS_FILE};
use crate::search::rows::{self, RowsState};
use crate::search::scores::Counts;
use crate::search::view::View;
use crate::sqlite::SqliteFile;

/// How long what was loaded is answered from before it is looked at again.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often a generation that nobody is answered from is looked at, so that it is at hand once somebody is.
const WARM_EVERY: Duration = Duration::from_secs(1);
/// A commit that comes while one is being loaded is loaded, too; so often in a row at most.
const LOADS: usize = 3;
/// Looks at a directory whose files are removed by commits while they are opened.
const TRIES: usize = 20;

pub(super) struct LoadedGeneration {
    number: u32,
    builds: Builds,
    loading: Mutex<Loading>,
    loaded: ArcSwapOption<Loaded>,
    is_warming: AtomicBool,
}

/// What is kept between loads.
#[derive(Default)]
struct Loading {
    build: Option<u64>,
    /// With what was at its path when it was opened.
    file: Option<(FileId, SqliteFile)>,
    index: Option<OpenIndex>,
}

struct OpenIndex {
    /// Bytes of the meta file that the reader was last loaded from.
    meta: Vec<u8>,
    commit: Commit,
    fields: Fields,
    reader: IndexReader,
    counts: Arc<Counts>,
}

/// The generation as of one look.
pub(super) struct Loaded {
    looked_at: Instant,
    rows: Result<SqliteFile, ReadModelError>,
    index: Result<View, ReadModelError>,
}

// === impl OpenIndex ===

impl OpenIndex {
    /// Brought up to a commit, or opened.
    fn load(
        open: Option<Self>,
        dir: &Path,
        meta: &[u8],
        commit: Commit,
        checked: &mut HashSet<PathBuf>,
    ) -> Result<Self, TantivyError> {
        let meta = meta.to_vec();
        if let Some(open) = open.filter(|open| open.commit.index == commit.index) {
            open.reader.reload()?;
            return Ok(Self { meta, commit, counts: Arc::default(), ..open });
        }
        // It may have gone bad while nobody wrote here.
        let (index, fields) = index::open_whole(dir, checked)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { meta, commit, fields, reader, counts: Arc::default() })
    }
}

// === impl Loaded ===

impl Loaded {
    pub(super) fn rows(&self) -> Result<&SqliteFile, ReadModelError> {
        self.rows.as_ref().map_err(told_again)
    }

    pub(super) fn index(&self) -> Result<&View, ReadModelError> {
        self.index.as_ref().map_err(told_again)
    }

    /// What searches are answered from.
    pub(super) fn view(&self) -> Result<&View, ReadModelError> {
        let view = self.index()?;
        if view.live { Ok(view) } else { Err(rebuilding()) }
    }
}

// === impl LoadedGeneration ===

impl LoadedGeneration {
    pub(super) fn of(root: &Path, number: u32) -> Self {
        let builds = Builds::of_generation(root, number);
        Self {
            number,
            builds,
            loading: Mutex::default(),
            loaded: ArcSwapOption::empty(),
            is_warming: AtomicBool::new(false),
        }
    }

    /// Loads it in the background, unless that was done a moment ago. What nobody has asked for yet would be slow to
    /// answer the first who does.
    pub(super) fn warm(self: &Arc<Self>) {
        let is_warm = self.loaded.load().as_ref().is_some_and(|loaded| loaded.looked_at.elapsed() < WARM_EVERY);
        if is_warm || self.is_warming.swap(true, Ordering::Relaxed) {
            return;
        }
        let own = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _resting = Resting(&own.is_warming);
            own.look();
        });
    }

    /// The generation as it is now, or was a few milliseconds ago.
    pub(super) fn look(&self) -> Arc<Loaded> {
        let is_fresh = |loaded: &Arc<Loaded>| loaded.looked_at.elapsed() < LOOK_EVERY;
        if let Some(loaded) = self.loaded.load_full().filter(is_fresh) {
            return loaded;
        }
        // A poisoned lock is only a lock: a load that broke off is done again.
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.loaded.load_full();
        if let Some(loaded) = before.clone().filter(is_fresh) {
            return loaded;
        }
        let looked_at = Instant::now();
        let build = self.builds.current();
        if loading.build != build {
            *loading = Loading { build, ..Loading::default() };
        }
        let (index, rows) = match build.map(|number| self.builds.path(number)) {
            Some(path) => {
                let index = self.load_index(&path, &mut loading.index);
                let rows = self.load_rows(&path, &mut loading, index.as_ref().ok().map(|view| &view.commit));
                (index, rows)
            }
            None => (Err(rebuilding()), Err(rebuilding())),
        };
        let (rows, index) = match (rows, index) {
            (Ok((file, state)), Ok(view)) => (Ok(file), self.at(view, state.as_ref(), before.as_deref())),
            (Ok((file, _)), Err(error)) => (Ok(file), Err(error)),
            // Without rows nobody keeps the index up to date.
            (Err(error), _) => (Err(told_again(&error)), Err(error)),
        };
        let loaded = Arc::new(Loaded { looked_at, rows, index });
        self.loaded.store(Some(Arc::clone(&loaded)));
        loaded
    }

    /// The newest commit, with a position that it is true at or beyond.
    fn load_index(&self, build: &Path, open: &mut Option<OpenIndex>) -> Result<View, ReadModelError> {
        let dir = build.join(INDEX_DIR);
        let (mut loads, mut checked) = (0, HashSet::new());
        let mut failed: Option<(Vec<u8>, TantivyError)> = None;
        for _ in 0..TRIES {
            let meta = match std::fs::read(dir.join(META_FILE)) {
                Ok(meta) => meta,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    *open = None;
                    return Err(rebuilding());
                }
                Err(error) => return Err(self.failed(error)),
            };
            // What failed with the same state was no commit that came in between.
            let is_known = open.as_ref().is_some_and(|open| open.meta == meta);
            if is_known || loads == LOADS || failed.as_ref().is_some_and(|(of, _)| *of == meta) {
                break;
            }
            // Before its first commit an index is only a beginning.
            let Some(commit) = Commit::of_meta(&meta) else {
                *open = None;
                return Err(rebuilding());
            };
            match OpenIndex::load(open.take(), &dir, &meta, commit, &mut checked) {
                Ok(loaded) => {
                    *open = Some(loaded);
                    failed = None;
                    loads += 1;
                }
                Err(error) => failed = Some((meta, error)),
            }
            // Round again: a commit that came after the meta file was read may have been loaded, or have removed files.
        }
        if let Some((_, error)) = failed {
            return Err(self.failed(error));
        }
        let Some(open) = open else { return Err(rebuilding()) };
        Ok(View {
            searcher: open.reader.searcher(),
            fields: open.fields,
            position: open.commit.position.clone(),
            live: open.commit.live,
            commit: open.commit.clone(),
            counts: Arc::clone(&open.counts),
        })
    }

    /// The row file and its state, which is `None` before the first generation.
    fn load_rows(
        &self,
        build: &Path,
        loading: &mut Loading,
        commit: Option<&Commit>,
    ) -> Result<(SqliteFile, Option<RowsState>), ReadModelError> {
        let path = build.join(ROWS_FILE);
        // A store that was made again in the same file is known by its id.
        for _ in 0..2 {
            let id = FileId::at(&path).map_err(|error| self.failed(error))?.ok_or_else(rebuilding)?;
            let file = match loading.file.take() {
                Some((of, file)) if of == id => file,
                _ => SqliteFile::open_read_only(NAME, &path, &rows::LAYOUT, rows::REMEDY)?.ok_or_else(rebuilding)?,
            };
            let state = match file.read(|transaction| rows::state(transaction)) {
                Ok(state) => Some(state),
                Err(ReadModelError::Rebuilding { .. }) => None,
                Err(error) => return Err(error),
            };
            // Rows of another generation were put here: nobody is answered from what is not what it is called.
            if state.as_ref().is_some_and(|state| state.generation != self.number) {
                return Err(rebuilding());
            }
            let is_other = commit.zip(state.as_ref()).is_some_and(|(commit, state)| commit.store != state.store);
            if !is_other {
                loading.file = Some((id, file.clone()));
                return Ok((file, state));
            }
        }
        Err(rebuilding())
    }

    /// While no document changed since the commit, it is true at the rows' own position; and what it was once true
    /// at, it stays true at.
    fn at(&self, mut view: View, rows: Option<&RowsState>, before: Option<&Loaded>) -> Result<View, ReadModelError> {
        let Some(rows) = rows else { return Err(rebuilding()) };
        if rows.generation != view.commit.generation {
            return Err(rebuilding());
        }
        if rows.row_version == view.commit.row_version {
            view.position.merge(&rows.position);
            view.live |= rows.live;
        }
        if let Some(Ok(before)) = before.map(|before| &before.index)
            && before.commit == view.commit
        {
            view.position.merge(&before.position);
            view.live |= before.live;
        }
        Ok(view)
    }

    /// Holds the index against the rows.
    pub(super) fn check_documents(&self) -> Result<DocumentCheck, ReadModelError> {
        let loaded = self.look();
        let file = loaded.rows()?;
        match loaded.index() {
            Ok(view) => documents::check(file, view),
            Err(error) => {
                let build = self.builds.current().map(|number| self.builds.path(number));
                let checked = build.map(|build| documents::check_files(&build.join(INDEX_DIR))).transpose()?;
                checked.flatten().ok_or(error)
            }
        }
    }

    pub(super) fn failed(&self, error: impl std::fmt::Display) -> ReadModelError {
        ReadModelError::Unavailable {
            name: NAME.to_owned(),
            address: self.builds.dir.display().to_string(),
            problem: error.to_string(),
        }
    }
}

/// Ends a warming, also one that panicked.
struct Resting<'a>(&'a AtomicBool);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

pub(super) fn rebuilding() -> ReadModelError {
    ReadModelError::Rebuilding { name: NAME.to_owned() }
}

/// The error of a look, told to one more of those who share it.
fn told_again(error: &ReadModelError) -> ReadModelError {
    match error {
        ReadModelError::Rebuilding { name } => ReadModelError::Rebuilding { name: name.clone() },
        ReadModelError::Unavailable { name, address, problem } => {
            ReadModelError::Unavailable { name: name.clone(), address: address.clone(), problem: problem.clone() }
        }
        ReadModelError::Damaged { name, problem } => {
            ReadModelError::Damaged { name: name.clone(), problem: problem.clone() }
        }
        other => ReadModelError::Permanent { name: NAME.to_owned(), problem: other.to_string() },
    }
}
