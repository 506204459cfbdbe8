//! Scans for checks: they meet what is there.

use std::collections::BTreeMap;

use read_models::Batch;

use super::*;

/// Every row of a partition, by its key.
async fn scanned(stock: &SharedStock, partition: u32, limit: usize) -> BTreeMap<StockKey, StockRow> {
    let mut found = BTreeMap::new();
    let mut from: Option<String> = None;
    loop {
        let page = stock.rows(at(partition), from.as_deref(), limit).await.unwrap();
        assert!(page.foreign.is_empty(), "{:?}", page.foreign);
        found.extend(page.rows.into_iter().map(|(key, row)| (key, row.unwrap())));
        match page.next {
            Some(next) => from = Some(next),
            None => return found,
        }
    }
}

async fn write(store: &Fixture, partition: u32, changes: Vec<(StockKey, StockRow)>) {
    let claimed = store.stock.claim(at(partition)).await.unwrap();
    let to = checkpoint(claimed.checkpoint.sequence + 1);
    store.stock.apply(&Batch { changes, ..batch(partition, &claimed, to) }).await.unwrap();
}

pub async fn a_scan_meets_every_row_of_its_partition_and_no_other(store: &Fixture) {
    store.live().await;
    let mut expected = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let changes: Vec<_> = skus_of(partition, 40)
            .iter()
            .enumerate()
            .flat_map(|(number, sku)| ["a", "b"].map(|warehouse| (key(sku, warehouse), row(number as i64, 1))))
            .collect();
        expected.insert(partition, changes.iter().cloned().collect::<BTreeMap<_, _>>());
        write(store, partition, changes).await;
    }
    for stock in [store.stock.clone(), store.another().await] {
        for partition in 0..PARTITIONS {
            for limit in [1_000, 7] {
                assert_eq!(scanned(&stock, partition, limit).await, expected[&partition], "pages of {limit}");
            }
        }
    }
    assert!(store.stock.rows(at(PARTITIONS), None, 10).await.is_err());
}

pub async fn a_scan_goes_on_while_rows_are_written(store: &Fixture) {
    store.live().await;
    let old: Vec<_> = skus_of(0, 60).iter().map(|sku| (key(sku, "w"), row(1, 1))).collect();
    write(store, 0, old.clone()).await;
    let first = store.stock.rows(at(0), None, 10).await.unwrap();
    write(store, 0, skus_of(0, 120).iter().map(|sku| (key(sku, "w"), row(2, 2))).collect()).await;
    let mut met: Vec<StockKey> = first.rows.into_iter().map(|(key, _)| key).collect();
    let mut from = first.next;
    while let Some(next) = from {
        let page = store.stock.rows(at(0), Some(&next), 10).await.unwrap();
        met.extend(page.rows.into_iter().map(|(key, _)| key));
        from = page.next;
    }
    for (key, _) in &old {
        assert!(met.contains(key), "{key:?} was there all the while");
    }
}
