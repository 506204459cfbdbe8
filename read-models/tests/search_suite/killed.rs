//! Writers that are processes of their own: killed at any moment, or frozen and woken (faults 8 and 17).

use std::process::{Child, Command, Stdio};

use super::*;

/// Set for the process that writes.
const WRITER_DIR: &str = "MILLRACE_TEST_SEARCH_WRITER_DIR";
const WRITER_SEED: &str = "MILLRACE_TEST_SEARCH_WRITER_SEED";
const WRITER_GENERATION: &str = "MILLRACE_TEST_SEARCH_WRITER_GENERATION";
const KILLS: u64 = 12;

/// A process that writes products, prices and stock until it is killed.
fn writer(dir: &Path, seed: u64) -> Child {
    writer_of(dir, 1, seed)
}

pub fn writer_of(dir: &Path, number: u32, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "search_suite::killed::writes_until_it_is_killed", "--ignored"])
        .env(WRITER_DIR, dir)
        .env(WRITER_SEED, seed.to_string())
        .env(WRITER_GENERATION, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the writing process of the other tests here"]
async fn writes_until_it_is_killed() {
    let Ok(dir) = std::env::var(WRITER_DIR) else { return };
    let mut random = Random(std::env::var(WRITER_SEED).unwrap().parse().unwrap());
    let number = std::env::var(WRITER_GENERATION).unwrap().parse().unwrap();
    let model = Arc::new(SearchReadModel::open_generation(dir, number).await.unwrap());
    model.prepare(&Generation { number, ..generation() }).await.unwrap();
    let mut store = Fixture::empty().await;
    store.adopt(Arc::clone(&model));
    store.make_live().await;
    let indexer = tokio::spawn(async move { model.run_indexer(CancellationToken::new()).await });
    while !indexer.is_finished() {
        let changes: BTreeMap<_, _> = (0..1 + random.below(40)).map(|_| random.change()).collect();
        store.write(changes.into_iter().collect()).await;
        tokio::time::sleep(Duration::from_millis(random.below(20))).await;
    }
    // How it ended is its exit code.
    indexer.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_killed_leaves_the_old_commit_or_the_new_one() {
    let mut store = Fixture::empty().await;
    let mut random = Random(0x5eed ^ u64::from(std::process::id()));
    println!("seed {}", random.0);
    let mut index_id = None;
    let mut checked = 0;
    for _ in 0..KILLS {
        let mut child = writer(&store.dir, random.next());
        tokio::time::sleep(Duration::from_millis(150 + random.below(900))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        if !store.dir.join("CURRENT").exists() || !store.index_dir().join("meta.json").exists() {
            continue;
        }
        let Some(found) = shown_once(&store.index_dir()) else { continue };
        checked += 1;
        // An index that was made again would hide what a kill did to it.
        assert_eq!(index_id.get_or_insert(found.clone()), &found);
    }
    assert!(checked > 1, "killed too early each time");
    // Whatever was cut off, a level index shows what the rows hold.
    store.start().await;
    store.start_indexer();
    let last = store.show(vec![named("LAST", "Leek")]).await;
    assert!(store.reader.wait_for(&last, &unchosen(), DEADLINE).await.unwrap());
    let found = store.found(all()).await;
    for number in 0..SKUS {
        let name = format!("S-{number}");
        let product = store.reader.product(&sku(&name), &unchosen()).await.unwrap().product;
        assert_eq!(product.is_some(), found.hits.iter().any(|hit| hit.sku == sku(&name)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_frozen_ends_when_it_wakes_and_harms_nothing() {
    let mut store = Fixture::empty().await;
    let mut child = writer(&store.dir, 7);
    let answers = async {
        while store.reader.search(all(), &unchosen()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, answers).await.unwrap();
    signal(&child, "-STOP");
    let opened = SearchReadModel::open_when_free(&store.dir, Duration::from_secs(3), CancellationToken::new());
    let model = tokio::time::timeout(DEADLINE, opened).await.unwrap().unwrap().unwrap();
    let model = Arc::new(model);
    model.prepare(&generation()).await.unwrap();
    store.adopt(model);
    store.make_live().await;
    store.start_indexer();
    store.until_found(all(), &[]).await;
    store.show(vec![named("NEW", "Leek")]).await;

    signal(&child, "-CONT");
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let ended = tokio::time::timeout(DEADLINE, ended).await.expect("it writes on").unwrap();
    assert!(!ended.success());
    assert_eq!(store.skus(all()).await, ["NEW"]);
    store.show(vec![named("NEXT", "Leek")]).await;
    assert_eq!(store.skus(all()).await, ["NEW", "NEXT"]);
}

const SKUS: u64 = 400;

/// Reads a committed index behind its writer's back: the id it was made with, when it is committed at all. Panics when
/// a product is in it twice.
fn shown_once(index_dir: &Path) -> Option<String> {
    let index = tantivy::Index::open_in_dir(index_dir).unwrap();
    let payload: serde_json::Value = serde_json::from_str(&index.load_metas().unwrap().payload?).unwrap();
    assert!(index.validate_checksum().unwrap().is_empty());
    let searcher = index.reader().unwrap().searcher();
    let field = index.schema().get_field("sku").unwrap();
    for number in 0..SKUS {
        let term = tantivy::Term::from_field_text(field, &format!("S-{number}"));
        let query = tantivy::query::TermQuery::new(term, tantivy::schema::IndexRecordOption::Basic);
        let count = searcher.search(&query, &tantivy::collector::Count).unwrap();
        assert!(count <= 1, "S-{number} is shown {count} times");
    }
    Some(payload["index"].to_string())
}

/// Xorshift: the same seed writes the same.
pub struct Random(pub u64);

// === impl Random ===

impl Random {
    pub fn seed(&self) -> u64 {
        self.0
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn change(&mut self) -> (SearchKey, SearchRow) {
        let name = format!("S-{}", self.below(SKUS));
        match self.below(10) {
            0 => discontinued(&name),
            1..=5 => named(&name, &format!("Leek {}", self.below(50))),
            6 | 7 => price(&name, "r", self.below(1_000) as i64),
            _ => stock(&name, "w", "r", self.below(3) as i64),
        }
    }
}
