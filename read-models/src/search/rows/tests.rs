use super::*;
use crate::sqlite::SqliteFile;

fn discontinued(revised_at: Option<i64>) -> SearchRow {
    SearchRow::Product { product: None, version: 2, revised_at }
}

#[test]
fn rows_of_fold_1_add_up_to_what_they_always_did() {
    // Sums and digests are over this text.
    assert_eq!(serde_json::to_string(&discontinued(None)).unwrap(), r#"{"Product":{"product":null,"version":2}}"#);
}

#[test]
fn a_file_of_before_fold_2_is_brought_up_and_still_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.db");
    let before = LAYOUT.additions.iter().position(|addition| *addition == FOLD_2).unwrap();
    let old = Layout { tables: LAYOUT.tables, additions: &LAYOUT.additions[..before] };
    let key = SearchKey::Product(Sku::new("A").unwrap());
    let file = SqliteFile::open(NAME, &path, &old, REMEDY).unwrap();
    file.write(|transaction| {
        let generation = Generation { name: NAME.to_owned(), number: 1, fold_version: 1, partitions: 1 };
        ledger::prepare(transaction, &generation)?;
        transaction.execute("INSERT INTO products (generation, sku, product, version) VALUES (1, 'A', NULL, 2)", [])?;
        let mut change = Sum::default();
        change.add_row(&key, &discontinued(None))?;
        sums::seal(transaction, 1, change)
    })
    .unwrap();
    drop(file);
    assert!(SqliteFile::open_read_only(NAME, &path, &LAYOUT, REMEDY).unwrap().is_none(), "that is for the writer");

    let file = SqliteFile::open(NAME, &path, &LAYOUT, REMEDY).unwrap();
    let read = || file.read(|transaction| sums::check(transaction).and_then(|()| load(transaction, 1, &key))).unwrap();
    assert_eq!(read(), Some(discontinued(None)));
    let new = discontinued(Some(1_700_000_000_123));
    file.write(|transaction| write(transaction, 1, &[(key.clone(), new.clone())], BTreeSet::new())).unwrap();
    assert_eq!(read(), Some(new));
}
