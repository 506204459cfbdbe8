//! The catalogue of a search directory: which of its generations answers, in a file of its own beside them.
//!
//! `catalogue.db` is written by whoever has something to say, beside the processes that hold the builds: those who
//! serve tell of their reads, those who replay move the pointer. A directory that has none is one of today's layout,
//! and generation 1 serves; looking at it makes no file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::ReadModelError;
use crate::generations::{Catalogue, Decision, GenerationEntry, GenerationState, Generations};
use crate::process_report::ProcessReport;
use crate::read_model::Generation;
use crate::search::builds::{Builds, FileId};
use crate::search::read_model::{ROWS_FILE, blocking};
use crate::search::removal::Found;
use crate::search::{NAME, rows};
use crate::sqlite::{Abort, Layout, SqliteFile, catalogue, ledger};

const FILE: &str = "catalogue.db";
const LAYOUT: Layout = Layout { tables: &[catalogue::TABLES], additions: &[] };
/// A file that is made is opened twice; one that others remove and make meanwhile, more often.
const OPENINGS: usize = 5;
const REMEDY: &str = "restore it, or remove it: the lowest generation that is there serves then";

/// The generations of a search directory. Cheap to clone.
#[derive(Clone)]
pub struct SearchCatalogue {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    opened: Mutex<Option<Opened>>,
    /// What the build of a directory without a catalogue was made as, by its file.
    built: Mutex<Option<(FileId, Generation)>>,
}

struct Opened {
    /// One that was put in its place is another.
    id: FileId,
    is_written: bool,
    file: SqliteFile,
}

// === impl SearchCatalogue ===

impl SearchCatalogue {
    /// Of `dir`, which need not be there yet.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        Ok(Self::in_dir(dir.as_ref()))
    }

    pub(super) fn in_dir(root: &Path) -> Self {
        let inner = Inner { root: root.to_owned(), opened: Mutex::default(), built: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// An error where the generation is retired or removed, as the catalogue or its tombstone says.
    pub(super) fn check_not_retired(&self, number: u32) -> Result<(), ReadModelError> {
        let builds = Builds::of_generation(&self.inner.root, number);
        builds.check_not_retired()?;
        let stored = self.read(|transaction| catalogue::catalogue(transaction))?.flatten();
        match stored.and_then(|stored| stored.generations.get(&number).map(|entry| entry.state)) {
            Some(GenerationState::Retired | GenerationState::Removed) => Err(builds.retired()),
            Some(GenerationState::Fed) | None => Ok(()),
        }
    }

    /// What requests are routed by; `known` again where nothing changed. Where no catalogue is stored it knows which
    /// generation serves, not what that was built as.
    pub(super) fn pointer(&self, known: Option<&Arc<Catalogue>>) -> Result<Arc<Catalogue>, ReadModelError> {
        let is_known = |id: Uuid, version: u64| known.filter(|known| (known.id, known.version) == (id, version));
        let stored = self.read(|transaction| match catalogue::version(transaction)? {
            Some((id, version)) => match is_known(id, version) {
                Some(known) => Ok(Some(Arc::clone(known))),
                None => Ok(catalogue::catalogue(transaction)?.map(Arc::new)),
            },
            None => Ok(None),
        })?;
        if let Some(stored) = stored.flatten() {
            return Ok(stored);
        }
        let serving = if Builds::of_generation(&self.inner.root, 1).is_retired() { self.lowest()? } else { 1 };
        Ok(match is_known(Uuid::nil(), 0) {
            Some(known) if known.serving == serving => Arc::clone(known),
            _ => Arc::new(Catalogue { serving, ..Catalogue::of_built(None) }),
        })
    }

    /// What there is without a catalogue. Numbers that were used stay used, and what does not serve is not needed.
    fn found(&self) -> Result<Catalogue, ReadModelError> {
        let found = Found::in_dir(&self.inner.root).map_err(|error| self.failed(&error))?;
        let serving = found.there.first().copied().unwrap_or(1);
        let mut catalogue = Catalogue::of_built(self.built(serving)?.as_ref());
        catalogue.serving = serving;
        let unneeded = found.there.iter().filter(|number| **number != serving);
        let retired = unneeded.map(|number| (*number, GenerationState::Retired));
        let removed = found.retired.iter().map(|number| (*number, GenerationState::Removed));
        for (number, state) in retired.chain(removed) {
            let unknown = Generation { name: NAME.to_owned(), number, fold_version: 0, partitions: 0 };
            catalogue.generations.insert(number, GenerationEntry { state, ..GenerationEntry::fed(&unknown) });
        }
        Ok(catalogue)
    }

    fn lowest(&self) -> Result<u32, ReadModelError> {
        let found = Found::in_dir(&self.inner.root).map_err(|error| self.failed(&error))?;
        Ok(found.there.first().copied().unwrap_or(1))
    }

    /// What the build that is read was made as; `None` while there is none.
    fn built(&self, number: u32) -> Result<Option<Generation>, ReadModelError> {
        let builds = Builds::of_generation(&self.inner.root, number);
        let Some(path) = builds.current().map(|build| builds.path(build).join(ROWS_FILE)) else { return Ok(None) };
        let Some(id) = FileId::at(&path).map_err(|error| self.failed(&error))? else { return Ok(None) };
        let mut known = self.inner.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of_file, built)) = &*known
            && (*of_file, built.number) == (id, number)
        {
            return Ok(Some(built.clone()));
        }
        let file = SqliteFile::open_read_only(NAME, &path, &rows::LAYOUT, rows::REMEDY)?;
        let built = file.map(|file| file.read(|transaction| ledger::serving(transaction, NAME))).transpose();
        let built = match built {
            Err(ReadModelError::Rebuilding { .. }) => None,
            built => built?,
        };
        *known = built.clone().map(|built| (id, built));
        Ok(built)
    }

    /// `None` while there is no file.
    fn read<T>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<Option<T>, ReadModelError> {
        let Some(id) = self.id()? else { return Ok(None) };
        let file = {
            let mut opened = self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner);
            match opened.as_ref().filter(|opened| opened.id == id) {
                Some(opened) => opened.file.clone(),
                None => match SqliteFile::open_read_only(NAME, &self.path(), &LAYOUT, REMEDY)? {
                    Some(file) => {
                        *opened = Some(Opened { id, is_written: false, file: file.clone() });
                        file
                    }
                    None => return Ok(None),
                },
            }
        };
        file.read(work).map(Some)
    }

    fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        let mut opened = self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.id()?;
        if let Some(opened) = opened.as_ref().filter(|opened| opened.is_written && Some(opened.id) == found) {
            return Ok(opened.file.clone());
        }
        std::fs::create_dir_all(&self.inner.root).map_err(|error| self.failed(&error))?;
        for _ in 0..OPENINGS {
            let file = SqliteFile::open(NAME, &self.path(), &LAYOUT, REMEDY)?;
            let before = std::mem::replace(&mut found, self.id()?);
            // Otherwise it was made just now, or it is not known which of the two is open.
            if let Some(id) = found.filter(|_| before == found) {
                *opened = Some(Opened { id, is_written: true, file: file.clone() });
                return Ok(file);
            }
        }
        Err(ReadModelError::Unavailable {
            name: NAME.to_owned(),
            address: self.path().display().to_string(),
            problem: "it is another file each time that it is opened".to_owned(),
        })
    }

    fn path(&self) -> PathBuf {
        self.inner.root.join(FILE)
    }

    fn id(&self) -> Result<Option<FileId>, ReadModelError> {
        FileId::at(&self.path()).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> ReadModelError {
        Builds::of_generation(&self.inner.root, 1).failed(error)
    }

    fn remove(&self, number: u32) -> Result<bool, ReadModelError> {
        let stored = self.read(|transaction| catalogue::catalogue(transaction))?.flatten();
        let stored = stored.map_or_else(|| self.found(), Ok)?;
        let state = stored.generations.get(&number).map(|entry| entry.state);
        if number == stored.serving || !matches!(state, Some(GenerationState::Retired | GenerationState::Removed)) {
            let problem = format!("{NAME}@{number} is not retired: its rows stay");
            return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem });
        }
        let builds = Builds::of_generation(&self.inner.root, number);
        builds.retire()?;
        builds.remove_some()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let own = self.clone();
        blocking(move || work(&own)).await
    }
}

#[async_trait]
impl Generations for SearchCatalogue {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        self.blocking(|own| {
            let stored = own.read(|transaction| catalogue::catalogue(transaction))?.flatten();
            stored.map_or_else(|| own.found(), Ok)
        })
        .await
    }

    async fn replace(&self, found: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let (to, decisions) = (to.clone(), decisions.to_vec());
        self.blocking(move |own| {
            own.file_to_write()?
                .write_durably(|transaction| catalogue::replace(transaction, NAME, found, &to, &decisions))
        })
        .await
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        self.blocking(move |own| {
            Ok(own.read(|transaction| catalogue::decisions(transaction, after, limit))?.unwrap_or_default())
        })
        .await
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        self.blocking(|own| Ok(own.read(|transaction| catalogue::published_decisions(transaction))?.unwrap_or(0))).await
    }

    async fn note_published(&self, number: u64) -> Result<(), ReadModelError> {
        self.blocking(move |own| {
            own.file_to_write()?.write(|transaction| catalogue::note_published(transaction, number))
        })
        .await
    }

    /// A build at a time, whatever `limit` says.
    async fn remove_some(&self, generation: u32, _limit: usize) -> Result<bool, ReadModelError> {
        self.blocking(move |own| own.remove(generation)).await
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        let report = report.clone();
        self.blocking(move |own| {
            own.file_to_write()?.write(|transaction| catalogue::note_report(transaction, NAME, &report))
        })
        .await
    }

    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        self.blocking(move |own| {
            let found = own.read(|transaction| catalogue::reports(transaction, now, max_age_ms))?;
            Ok(found.unwrap_or_default())
        })
        .await
    }
}
