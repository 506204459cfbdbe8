//! Bytes that went bad, in every file of a directory: the answers stay the same, or are made again to the same; never
//! is there a wrong one (fault 17).

use std::fs;

use read_models::search::ProductAnswer;

use super::killed::Random;
use super::*;

/// How a file is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip,
    Truncate,
    /// Shorter than any footer.
    Stump,
    Delete,
    Empty,
}

const DAMAGES: [Damage; 5] = [Damage::Flip, Damage::Truncate, Damage::Stump, Damage::Empty, Damage::Delete];
/// Longest time that one damaged directory may take.
const MENDED_WITHIN: Duration = Duration::from_secs(60);
/// How often what is waited for is looked at: a test that spins takes the time of the threads that it waits for.
const POLL: Duration = Duration::from_millis(5);
/// Damaged row files of a run. Each place is another in the next run.
const FLIPS: usize = 20;

// === impl Damage ===

impl Damage {
    /// What it did; `None` when there was nothing to do it to.
    fn strike(self, file: &Path, random: &mut Random) -> Option<String> {
        let mut bytes = fs::read(file).unwrap();
        if bytes.is_empty() {
            return None;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match self {
            Damage::Flip => {
                bytes[at] ^= 1 << random.below(8);
                fs::write(file, bytes).unwrap();
            }
            Damage::Truncate => fs::write(file, &bytes[..at]).unwrap(),
            Damage::Stump => fs::write(file, &bytes[..bytes.len().min(1 + at % 7)]).unwrap(),
            Damage::Empty => fs::write(file, []).unwrap(),
            Damage::Delete => fs::remove_file(file).unwrap(),
        }
        Some(format!("{self:?} at {at} of {}", file.display()))
    }
}

/// Everything that there is to say: hits with facets, and product pages.
async fn everything(store: &Fixture) -> Result<(SearchAnswer, Vec<ProductAnswer>), ReadModelError> {
    let request = SearchRequest { facets: true, region: Some(region("eu")), ..all() };
    let mut found = store.reader.search(request, &unchosen()).await?;
    let mut pages = Vec::new();
    for hit in &found.hits {
        let mut page = store.reader.product(&hit.sku, &unchosen()).await?;
        page.position = PositionToken::default();
        pages.push(page);
    }
    // It may be told of a later moment.
    found.position = PositionToken::default();
    Ok((found, pages))
}

fn changes() -> Vec<(SearchKey, SearchRow)> {
    let mut changes = Vec::new();
    for number in 0..60 {
        let name = format!("S-{number}");
        let words = format!("Leek {} of {}", number * 7, number % 9);
        let category_path = vec!["Vegetables".to_owned(), format!("C{}", number % 4)];
        changes.push(product(Product {
            brand: Some(format!("B{}", number % 5)),
            category_path,
            ..plain(&name, &words)
        }));
        changes.push(price(&name, "eu", 100 + number));
        changes.push(stock(&name, "w", "eu", number % 3));
    }
    changes
}

/// What a projector does that finds a checkpoint: it gives everything behind it again. The position of all of it.
async fn folded_again(store: &Fixture) -> PositionToken {
    let mut log: BTreeMap<PartitionRef, Vec<_>> = BTreeMap::new();
    for change in changes().into_iter().chain([discontinued("S-7")]) {
        log.entry(home(&change.0)).or_default().push(change);
    }
    for partition in store.model().status().await.unwrap().partitions {
        let events = log.remove(&partition.partition).unwrap_or_default();
        for change in events.into_iter().skip(partition.checkpoint.sequence as usize) {
            store.write(vec![change]).await;
        }
    }
    store.make_live().await;
    let mut position = PositionToken::default();
    for partition in store.model().status().await.unwrap().partitions {
        position.merge(&partition.partition.token(partition.checkpoint.position));
    }
    position
}

async fn filled() -> Fixture {
    let mut store = Fixture::live().await;
    // Several commits, so that there are segments, deletes and a log of the rows.
    for some in changes().chunks(40) {
        store.show(some.to_vec()).await;
    }
    store.show(vec![discontinued("S-7")]).await;
    store.stop_indexer().await;
    store
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

/// The first answer at the position, whatever was refused before.
async fn answers_again(
    store: &Fixture,
    position: &PositionToken,
    expected: &(SearchAnswer, Vec<ProductAnswer>),
    what: &str,
) {
    let answered = async {
        while !matches!(store.reader.wait_for(position, &unchosen(), DEADLINE).await, Ok(true)) {
            tokio::time::sleep(POLL).await;
        }
        loop {
            match everything(store).await {
                Ok(found) => return found,
                Err(error) => assert!(error.is_transient(), "{what}: {error}"),
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let found = tokio::time::timeout(MENDED_WITHIN, answered).await.unwrap_or_else(|_| panic!("{what}: no answer"));
    assert!(found == *expected, "{what}: {found:?}");
}

/// Relative paths. A segment has seven files, and there are several segments.
fn one_of_each_kind(dir: &Path) -> Vec<PathBuf> {
    let mut kinds = BTreeMap::new();
    for file in files(dir) {
        let kind = file.extension().or(file.file_name()).unwrap().to_owned();
        // Both have the same ending, and nothing else in common.
        let kind = if kind == "json" { file.file_name().unwrap().to_owned() } else { kind };
        kinds.insert(kind, file.strip_prefix(dir).unwrap().to_owned());
    }
    kinds.into_values().collect()
}

/// Moves the log of the rows into them: what the log covers is not read from the file.
fn empty_log(rows: &Path) {
    let connection = rusqlite::Connection::open(rows).unwrap();
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0, "somebody still reads the log");
}

/// Flips a bit of a byte that something was written to: most of a small file is room.
fn flip_written(file: &Path, random: &mut Random) -> String {
    let mut bytes = fs::read(file).unwrap();
    let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let at = written[random.below(written.len() as u64) as usize];
    bytes[at] ^= 1 << random.below(8);
    fs::write(file, bytes).unwrap();
    format!("flip at {at} of {}", file.display())
}

/// Goes on in a directory that is like `whole`, and that nobody else has: a merge of segments may outlive its indexer.
async fn go_to_copy(store: &mut Fixture, whole: &Path) {
    store.dir = tempfile::tempdir_in(whole.parent().unwrap()).unwrap().keep();
    copy_all(whole, &store.dir);
    store.reader = SearchReader::open(&store.dir).await.unwrap();
}

fn copy_all(from: &Path, to: &Path) {
    for file in files(from) {
        let copied = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        fs::copy(&file, copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_damaged_at_rest_is_made_again_at_the_start() {
    let mut store = filled().await;
    let expected = everything(&store).await.unwrap();
    assert_eq!(expected.0.total, 59);
    let mut random = Random(0x17 + u64::from(std::process::id()));
    println!("seed {}", random.seed());
    // As after kill -9: the log of the rows is not moved into them.
    let whole = store.dir.with_extension("whole");
    copy_all(&store.dir, &whole);
    store.stop().await;
    let names = one_of_each_kind(&whole);
    assert!(names.iter().any(|name| name.ends_with("rows.db-wal")) && names.len() > 10, "{names:?}");
    for name in &names {
        for damage in DAMAGES {
            let begun = std::time::Instant::now();
            go_to_copy(&mut store, &whole).await;
            let Some(what) = damage.strike(&store.dir.join(name), &mut random) else { continue };
            // Readers there before the writer, as in a process that only serves, refuse or give what was.
            store.start().await;
            store.start_indexer();
            let position = folded_again(&store).await;
            answers_again(&store, &position, &expected, &what).await;
            store.stop().await;
            println!("{what}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_went_bad_are_noticed_wherever_it_is() {
    let mut store = filled().await;
    let expected = everything(&store).await.unwrap();
    let whole = store.dir.with_extension("whole");
    store.stop().await;
    let rows = store.build_dir().join("rows.db");
    empty_log(&rows);
    copy_all(&store.dir, &whole);
    assert!(files(&whole).iter().all(|file| !file.ends_with("rows.db-wal")));
    let mut random = Random(0x18 + u64::from(std::process::id()));
    println!("seed {}", random.seed());
    let mut rebuilt = 0;
    for _ in 0..FLIPS {
        go_to_copy(&mut store, &whole).await;
        let what = flip_written(&store.build_dir().join("rows.db"), &mut random);
        store.start().await;
        rebuilt += usize::from(store.dir.join("builds/2").exists());
        store.start_indexer();
        let position = folded_again(&store).await;
        answers_again(&store, &position, &expected, &what).await;
        store.stop().await;
    }
    println!("{rebuilt} of {FLIPS} were noticed");
    // The others struck what nothing rests on: heads, cells that were deleted, the log's own counters.
    assert!(rebuilt >= 2, "only {rebuilt} of {FLIPS} were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_goes_bad_under_its_writer_is_made_again() {
    let mut store = filled().await;
    let expected = everything(&store).await.unwrap();
    store.start_indexer();
    let mut random = Random(0x19 + u64::from(std::process::id()));
    println!("seed {}", random.seed());
    for kind in ["store", "term", "idx", "fast", "fieldnorm"] {
        let is_kind = |file: &PathBuf| file.extension().is_some_and(|extension| extension == kind);
        let file = files(&store.index_dir()).into_iter().find(is_kind).unwrap();
        let before = index_id(&store);
        let mut bytes = fs::read(&file).unwrap();
        let at = random.below(bytes.len() as u64 / 2) as usize;
        bytes[at] ^= 0x10;
        // In place, as a disk does it: the file keeps its length, and whoever has it mapped sees it.
        std::os::unix::fs::FileExt::write_all_at(&fs::File::options().write(true).open(&file).unwrap(), &bytes, 0)
            .unwrap();
        let remade = async {
            while index_id(&store) == before {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DEADLINE, remade).await.unwrap_or_else(|_| panic!("{at} of {}", file.display()));
        let position = folded_again(&store).await;
        answers_again(&store, &position, &expected, kind).await;
    }
}

fn index_id(store: &Fixture) -> Option<String> {
    let meta = fs::read(store.index_dir().join("meta.json")).ok()?;
    let meta: serde_json::Value = serde_json::from_slice(&meta).ok()?;
    let payload: serde_json::Value = serde_json::from_str(meta["payload"].as_str()?).ok()?;
    Some(payload["index"].to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_go_bad_under_their_writer_are_answered_from_no_more() {
    let mut store = filled().await;
    let expected = everything(&store).await.unwrap();
    store.stop().await;
    // Everything is in the file now, and nothing in memory.
    store.start().await;
    let connection = rusqlite::Connection::open(store.build_dir().join("rows.db")).unwrap();
    connection.execute("UPDATE prices SET amount_minor = amount_minor + 1 WHERE sku = 'S-3'", []).unwrap();
    drop(connection);
    store.start_indexer();
    let ended = tokio::time::timeout(DEADLINE, store.indexer_ended()).await.unwrap();
    assert!(matches!(ended, Err(ReadModelError::Damaged { .. })), "{ended:?}");
    assert!(is_rebuilding(&store.reader.search(all(), &unchosen()).await));
    assert!(is_rebuilding(&store.reader.product(&sku("S-3"), &unchosen()).await));
    store.stop().await;
    store.start().await;
    store.start_indexer();
    let position = folded_again(&store).await;
    answers_again(&store, &position, &expected, "rows").await;
}
