use super::*;

fn key() -> StockKey {
    StockKey { sku: Sku::new("A").unwrap(), warehouse: WarehouseId::new("w").unwrap() }
}

/// A file as the program before fold 2 left it, with one row.
fn file_before_fold_2(path: &Path, generation: &Generation) {
    let before = LAYOUT.additions.iter().position(|addition| *addition == FOLD_2).unwrap();
    let layout = Layout { tables: LAYOUT.tables, additions: &LAYOUT.additions[..before] };
    let file = SqliteFile::open(NAME, path, &layout, REMEDY).unwrap();
    file.write(|transaction| {
        ledger::prepare(transaction, generation)?;
        transaction.execute(
            "INSERT INTO stock (generation, sku, warehouse, region, on_hand, reserved, version)
             VALUES (1, 'A', 'w', 'eu', 7, 2, 3)",
            [],
        )?;
        Ok(())
    })
    .unwrap();
}

#[tokio::test]
async fn a_file_of_before_fold_2_is_brought_up_by_the_writer_and_read_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stock.db");
    let generation = Generation { name: NAME.to_owned(), number: 1, fold_version: 1, partitions: 1 };
    file_before_fold_2(&path, &generation);
    // A reader that came before the writer says to wait for it.
    assert!(matches!(SqliteStock::open_read_only(&path).err(), Some(ReadModelError::Rebuilding { .. })));

    let stock = SqliteStock::open(&path).unwrap();
    stock.prepare(&generation).await.unwrap();
    let partition = PartitionRef { context: Context::Inventory, partition: 0 };
    let old = StockRow { region: RegionId::new("eu").unwrap(), on_hand: 7, reserved: 2, version: 3, updated_at: None };
    assert_eq!(stock.load(partition, &[key()]).await.unwrap().rows, [Some(old.clone())]);
    let reader = SqliteStock::open_read_only(&path).unwrap();
    assert_eq!(reader.rows(partition, None, 10).await.unwrap().rows, [(key(), Ok(old.clone()))]);

    let new = StockRow { updated_at: Some(1_700_000_000_123), ..old };
    stock.file.write(|transaction| write_rows(transaction, generation.number, &[(key(), new.clone())])).unwrap();
    assert_eq!(reader.rows(partition, None, 10).await.unwrap().rows, [(key(), Ok(new))]);
}

#[test]
fn a_file_whose_tables_are_damaged_is_refused_before_anything_is_written_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stock.db");
    drop(SqliteStock::open(&path).unwrap());
    SqliteStock::open(&path).unwrap();
    let file = rusqlite::Connection::open(&path).unwrap();
    // One bit of the text of a table, as a disk flips it: SQLite opens the file and finds nothing wrong.
    file.execute_batch(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(sql, 'headers', 'heafers') WHERE name = 'parked_events';",
    )
    .unwrap();
    drop(file);
    let refused = SqliteStock::open(&path).err().unwrap();
    assert!(matches!(&refused, ReadModelError::Damaged { .. }), "{refused}");
    assert!(refused.to_string().contains(REMEDY), "{refused}");
}
