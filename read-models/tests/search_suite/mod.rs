//! A search directory with its writer, its indexer and a reader.

mod answers;
mod builds;
mod contract;
mod damage;
mod dead_letters;
mod deleted;
mod full_disk;
mod generations;
mod killed;
mod order;
mod recovery;
mod scanning;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use read_models::search::{CONTEXTS, SearchAnswer, SearchKey, SearchReadModel, SearchReader, SearchRequest, SearchRow};
use read_models::{Batch, Checkpoint, Generation, PartitionRef, ReadChoice, ReadModel, ReadModelError};
use schemas::event::Product;
use schemas::{Context, PositionToken, RegionId, Sku, StorePosition, WarehouseId, partition_of};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time that anything in these tests may take.
pub const DEADLINE: Duration = Duration::from_secs(30);
pub const PARTITIONS: u32 = 2;
/// How often the indexers of these tests look for damage.
const CHECK_EVERY: Duration = Duration::from_millis(500);

pub struct Fixture {
    pub dir: PathBuf,
    /// The generation that is written.
    pub number: u32,
    pub reader: SearchReader,
    writer: Option<Writer>,
    _folder: Option<tempfile::TempDir>,
}

/// The process that writes.
struct Writer {
    model: Arc<SearchReadModel>,
    indexer: Option<(JoinHandle<Result<(), ReadModelError>>, CancellationToken)>,
}

// === impl Fixture ===

impl Fixture {
    /// A reader, and nothing to read.
    pub async fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("search");
        Self { _folder: Some(folder), ..Self::in_dir(dir).await }
    }

    /// In a folder that the test keeps.
    pub async fn in_dir(dir: PathBuf) -> Self {
        let reader = SearchReader::open(&dir).await.unwrap();
        Self { dir, number: 1, reader, writer: None, _folder: None }
    }

    /// Another generation in the directory of this one, live, with a reader of its own.
    pub async fn beside(&self, number: u32) -> Self {
        let reader = self.reader.of_generation(number);
        let mut beside = Self { number, reader, ..Self::in_dir(self.dir.clone()).await };
        beside.start().await;
        beside.make_live().await;
        beside.start_indexer();
        beside
    }

    /// What the generation has for itself.
    pub fn home(&self) -> PathBuf {
        if self.number == 1 { self.dir.clone() } else { self.dir.join("generations").join(self.number.to_string()) }
    }

    /// Every partition is live, and the indexer runs.
    pub async fn live() -> Self {
        let mut fixture = Self::empty().await;
        fixture.start().await;
        fixture.make_live().await;
        fixture.start_indexer();
        fixture
    }

    pub fn model(&self) -> &Arc<SearchReadModel> {
        &self.writer.as_ref().unwrap().model
    }

    pub async fn start(&mut self) {
        let begun = Instant::now();
        // A child that another test starts holds the lock of before for as long as it has not begun its own program.
        let model = loop {
            match SearchReadModel::open_generation(&self.dir, self.number).await {
                Err(ReadModelError::Locked { .. }) if begun.elapsed() < DEADLINE => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                opened => break opened.unwrap(),
            }
        };
        let model = Arc::new(model.with_check_every(CHECK_EVERY));
        model.prepare(&Generation { number: self.number, ..generation() }).await.unwrap();
        self.writer = Some(Writer { model, indexer: None });
    }

    /// Goes on with a writer that was opened otherwise.
    pub fn adopt(&mut self, model: Arc<SearchReadModel>) {
        self.writer = Some(Writer { model, indexer: None });
    }

    pub fn start_indexer(&mut self) {
        let writer = self.writer.as_mut().unwrap();
        let (model, shutdown) = (Arc::clone(&writer.model), CancellationToken::new());
        let stop = shutdown.clone();
        writer.indexer = Some((tokio::spawn(async move { model.run_indexer(stop).await }), shutdown));
    }

    pub async fn stop_indexer(&mut self) {
        if let Some((indexer, shutdown)) = self.writer.as_mut().unwrap().indexer.take() {
            shutdown.cancel();
            indexer.await.unwrap().unwrap();
        }
    }

    /// How the indexer ends by itself.
    pub async fn indexer_ended(&mut self) -> Result<(), ReadModelError> {
        let (indexer, _) = self.writer.as_mut().unwrap().indexer.take().unwrap();
        indexer.await.unwrap()
    }

    /// Ends the writing process, and gives the reader's connections up.
    pub async fn stop(&mut self) {
        self.stop_indexer().await;
        self.writer = None;
        self.reader = SearchReader::open(&self.dir).await.unwrap();
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
        self.start_indexer();
    }

    pub async fn make_live(&self) {
        for context in CONTEXTS {
            for partition in 0..PARTITIONS {
                self.apply(PartitionRef { context, partition }, Vec::new(), true).await;
            }
        }
    }

    /// Writes rows as their workers would, and gives the position of the last.
    pub async fn write(&self, changes: Vec<(SearchKey, SearchRow)>) -> PositionToken {
        let mut batches: BTreeMap<PartitionRef, Vec<_>> = BTreeMap::new();
        for (key, row) in changes {
            batches.entry(home(&key)).or_default().push((key, row));
        }
        let mut position = PositionToken::default();
        for (partition, changes) in batches {
            let to = self.apply(partition, changes, false).await;
            position.merge(&partition.token(to.position));
        }
        position
    }

    async fn apply(&self, partition: PartitionRef, changes: Vec<(SearchKey, SearchRow)>, live: bool) -> Checkpoint {
        self.try_apply(partition, changes, live).await.unwrap()
    }

    /// Writes one row, or fails.
    pub async fn try_write(&self, changes: Vec<(SearchKey, SearchRow)>) -> Result<(), ReadModelError> {
        self.try_apply(home(&changes[0].0), changes, false).await.map(drop)
    }

    async fn try_apply(
        &self,
        partition: PartitionRef,
        changes: Vec<(SearchKey, SearchRow)>,
        live: bool,
    ) -> Result<Checkpoint, ReadModelError> {
        let claimed = self.model().claim(partition).await?;
        let to = checkpoint(claimed.checkpoint.sequence + changes.len() as u64);
        let to = if changes.is_empty() { claimed.checkpoint } else { to };
        let batch = Batch { to, changes, ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, live) };
        self.model().apply(&batch).await?;
        Ok(to)
    }

    /// Writes rows and waits until they are searchable.
    pub async fn show(&self, changes: Vec<(SearchKey, SearchRow)>) -> PositionToken {
        let position = self.write(changes).await;
        self.shown(&position).await;
        position
    }

    /// Waits until the newest build has an index that is committed, read or not.
    pub async fn indexed(&self) {
        let newest = std::fs::read_dir(self.dir.join("builds")).unwrap();
        let newest = newest.map(|entry| entry.unwrap().path()).max().unwrap();
        let committed = async {
            while !std::fs::read_to_string(newest.join("index/meta.json"))
                .is_ok_and(|meta| meta.contains("row_version"))
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, committed).await.unwrap();
    }

    pub async fn shown(&self, position: &PositionToken) {
        assert!(self.reader.wait_for(position, &unchosen(), DEADLINE).await.unwrap(), "{position} is not shown");
    }

    pub async fn found(&self, request: SearchRequest) -> SearchAnswer {
        self.reader.search(request, &unchosen()).await.unwrap()
    }

    /// SKUs of the hits, in order.
    pub async fn skus(&self, request: SearchRequest) -> Vec<String> {
        skus(&self.found(request).await)
    }

    /// Waits until a search gives these SKUs, whatever it gives or refuses before.
    pub async fn until_found(&self, request: SearchRequest, expected: &[&str]) {
        let searched = async {
            loop {
                match self.reader.search(request.clone(), &unchosen()).await {
                    Ok(answer) if skus(&answer) == expected => return,
                    Ok(_) => {}
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, searched).await.unwrap_or_else(|_| panic!("{expected:?} are not found"));
    }

    /// The build that is read.
    pub fn build_dir(&self) -> PathBuf {
        build_dir(&self.home())
    }

    pub fn index_dir(&self) -> PathBuf {
        self.build_dir().join("index")
    }

    pub fn meta(&self) -> Vec<u8> {
        std::fs::read(self.index_dir().join("meta.json")).unwrap()
    }
}

pub fn build_dir(dir: &Path) -> PathBuf {
    let current = std::fs::read_to_string(dir.join("CURRENT")).unwrap();
    dir.join("builds").join(current.trim_end())
}

pub fn generation() -> Generation {
    Generation { name: "search".to_owned(), number: 1, fold_version: 1, partitions: PARTITIONS }
}

pub fn checkpoint(sequence: u64) -> Checkpoint {
    Checkpoint {
        sequence,
        next_offset: sequence + 10,
        position: StorePosition { xid: 3, position: sequence + 100 },
        event_time: 1_700_000_000_000 + sequence as i64,
    }
}

pub fn home(key: &SearchKey) -> PartitionRef {
    let context = match key {
        SearchKey::Product(_) => Context::Catalogue,
        SearchKey::Price(..) => Context::Pricing,
        SearchKey::Stock(..) => Context::Inventory,
    };
    PartitionRef { context, partition: partition_of(key.sku().as_str().as_bytes(), PARTITIONS) }
}

pub fn sku(name: &str) -> Sku {
    Sku::new(name).unwrap()
}

pub fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

pub fn plain(sku_name: &str, name: &str) -> Product {
    Product::named(sku(sku_name), name)
}

pub fn product(product: Product) -> (SearchKey, SearchRow) {
    (
        SearchKey::Product(product.sku.clone()),
        SearchRow::Product { product: Some(product), version: 1, revised_at: None },
    )
}

/// As fold 2 makes it.
pub fn revised(product: Product, version: u64, revised_at: i64) -> (SearchKey, SearchRow) {
    let row = SearchRow::Product { product: Some(product.clone()), version, revised_at: Some(revised_at) };
    (SearchKey::Product(product.sku), row)
}

pub fn named(sku_name: &str, name: &str) -> (SearchKey, SearchRow) {
    product(plain(sku_name, name))
}

pub fn discontinued(sku_name: &str) -> (SearchKey, SearchRow) {
    (SearchKey::Product(sku(sku_name)), SearchRow::Product { product: None, version: 2, revised_at: None })
}

pub fn price(sku_name: &str, region_name: &str, amount_minor: i64) -> (SearchKey, SearchRow) {
    let row = SearchRow::Price { currency: "EUR".to_owned(), amount_minor, version: 1 };
    (SearchKey::Price(sku(sku_name), region(region_name)), row)
}

pub fn stock(sku_name: &str, warehouse: &str, region_name: &str, available: i64) -> (SearchKey, SearchRow) {
    let row = SearchRow::Stock { region: region(region_name), available, version: 1 };
    (SearchKey::Stock(sku(sku_name), WarehouseId::new(warehouse).unwrap()), row)
}

/// A request that asks for no generation.
pub fn unchosen() -> ReadChoice {
    ReadChoice::default()
}

/// Everything, on one page.
pub fn all() -> SearchRequest {
    SearchRequest { limit: 1_000, ..SearchRequest::default() }
}

pub fn text(text: &str) -> SearchRequest {
    SearchRequest { text: Some(text.to_owned()), ..all() }
}

pub fn skus(answer: &SearchAnswer) -> Vec<String> {
    answer.hits.iter().map(|hit| hit.sku.to_string()).collect()
}

pub fn is_rebuilding<T>(answer: &Result<T, ReadModelError>) -> bool {
    matches!(answer, Err(ReadModelError::Rebuilding { .. }))
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
