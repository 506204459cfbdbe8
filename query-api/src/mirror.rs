//! Mirrored reads: what was just answered is read from the candidate as well, and the two are compared where both are
//! true at one position.

mod hits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use read_models::generations::fields::of_row;
use read_models::generations::meant::{MeantDifference, unmeant};
use read_models::search::{SearchAnswer, SearchReader, SearchRequest};
use read_models::stock::{SharedStock, StockAnswer, StockRead, StockRow};
use read_models::{ReadChoice, ReadModelError};
use schemas::{PositionToken, Sku};

use self::hits::Compared;
use crate::watch::{MirrorOrder, Mirroring, Watch};

/// How often a comparison waits for the side that is behind, and how long.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);
/// How long a search waits for one generation to have what the other one told: several commits of an index.
const CATCH_UP: Duration = Duration::from_millis(500);
/// Share of the hits that two pages must have in common.
const OVERLAP: f64 = 0.9;
/// How many times longer a page may be on which a hit of the other generation's page is looked for.
const WIDER: usize = 4;

/// Mirrors a stock read in the background, if it is one of those that are. One that takes longer than a caller would
/// wait has failed.
pub(crate) fn stock(watch: &Arc<Watch>, stock: &SharedStock, skus: &[Sku], answered: &StockRead, deadline: Duration) {
    let Some(order) = watch.order(answered.generation) else { return };
    let (watch, stock, skus, answered) = (Arc::clone(watch), stock.clone(), skus.to_vec(), answered.clone());
    tokio::spawn(async move {
        let begun = Instant::now();
        let choice = pinned(order.candidate.generation);
        let first = tokio::time::timeout(deadline, stock.stock(&skus, &choice)).await;
        let took = begun.elapsed();
        let how = match first {
            Ok(Ok(first)) => compare_stock(&stock, &skus, answered, first, &order).await,
            Ok(Err(error)) if watch.is_of_the_store(&error) => Mirroring::Passed,
            Ok(Err(error)) => {
                tracing::debug!(%error, "mirrored read failed");
                Mirroring::Failed
            }
            Err(_) => Mirroring::Failed,
        };
        watch.mirrored(&order, took, how);
    });
}

async fn compare_stock(
    stock: &SharedStock,
    skus: &[Sku],
    mut served: StockRead,
    mut mirrored: StockRead,
    order: &MirrorOrder,
) -> Mirroring {
    for _ in 0..TRIES {
        let pairs = served.answers.iter().zip(&mirrored.answers);
        let judged: Vec<Judged> =
            pairs.map(|(served, mirrored)| judge(served, mirrored, &order.candidate.meant)).collect();
        if let Some(differing) = judged.iter().position(|judged| *judged == Judged::Differs) {
            return Mirroring::Differs(served.answers[differing].sku.to_string());
        }
        let (read, generation) = if judged.contains(&Judged::CandidateIsBehind) {
            tokio::time::sleep(PAUSE).await;
            (&mut mirrored, order.candidate.generation)
        } else if judged.contains(&Judged::ServedIsBehind) {
            let generation = served.generation;
            (&mut served, generation)
        } else {
            return Mirroring::Same;
        };
        match stock.stock(skus, &pinned(generation)).await {
            Ok(again) => *read = again,
            Err(_) => return Mirroring::Passed,
        }
    }
    Mirroring::Passed
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Judged {
    Same,
    Differs,
    /// Has not applied all that the served answer has.
    CandidateIsBehind,
    ServedIsBehind,
}

fn judge(served: &StockAnswer, mirrored: &StockAnswer, meant: &[MeantDifference]) -> Judged {
    if !mirrored.position.covers(&served.position) {
        return Judged::CandidateIsBehind;
    }
    let mut is_newer = false;
    for (warehouse, row) in &served.warehouses {
        match mirrored.warehouses.iter().find(|(other, _)| other == warehouse) {
            None => return Judged::Differs,
            Some((_, other)) if other.version < row.version => return Judged::Differs,
            Some((_, other)) if other.version > row.version => is_newer = true,
            Some((_, other)) if !agree(row, other, meant) => return Judged::Differs,
            Some(_) => {}
        }
    }
    is_newer |= mirrored.warehouses.len() > served.warehouses.len();
    match is_newer {
        // At one position nothing can be newer.
        true if served.position.covers(&mirrored.position) => Judged::Differs,
        true => Judged::ServedIsBehind,
        false => Judged::Same,
    }
}

/// Whether two rows differ in nothing but what is meant.
fn agree(served: &StockRow, mirrored: &StockRow, meant: &[MeantDifference]) -> bool {
    if served == mirrored {
        return true;
    }
    let (live, candidate) = (of_row(served), of_row(mirrored));
    let region = Some(&served.region);
    unmeant(&live, &candidate, |field, was, is| meant.iter().any(|meant| meant.covers(field, region, was, is)))
        .is_empty()
}

/// Mirrors a search in the background, as [`stock`].
pub(crate) fn search(
    watch: &Arc<Watch>,
    reader: &Arc<SearchReader>,
    request: &SearchRequest,
    answered: &SearchAnswer,
    deadline: Duration,
) {
    let Some(order) = watch.order(answered.generation) else { return };
    let (watch, reader, request, answered) = (Arc::clone(watch), Arc::clone(reader), request.clone(), answered.clone());
    tokio::spawn(async move {
        let begun = Instant::now();
        let choice = pinned(order.candidate.generation);
        let first = tokio::time::timeout(deadline, reader.search(request.clone(), &choice)).await;
        let took = begun.elapsed();
        let how = match first {
            Ok(Ok(first)) => compare_search(&reader, request, answered, first, &order).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "mirrored search failed");
                Mirroring::Failed
            }
            Err(_) => Mirroring::Failed,
        };
        watch.mirrored(&order, took, how);
    });
}

/// Pages are of different moments nearly always: they differ only if they still do once both were read again, and hits
/// only if the live generation said the same before and after.
async fn compare_search(
    reader: &SearchReader,
    request: SearchRequest,
    mut served: SearchAnswer,
    mut mirrored: SearchAnswer,
    order: &MirrorOrder,
) -> Mirroring {
    let (of_served, of_candidate) = (pinned(served.generation), pinned(order.candidate.generation));
    let meant = &order.candidate.meant;
    let told = served.position.clone();
    let wider = SearchRequest { limit: WIDER * request.limit, facets: false, ..request.clone() };
    let mut compared = Compared::default();
    compared.note(&served, &mirrored, &served, meant);
    let mut has_been_near = is_alike(&served, &mirrored, request.limit);
    if has_been_near && compared.all_agreed(&served, &mirrored) {
        return Mirroring::Same;
    }
    for _ in 0..TRIES {
        tokio::time::sleep(PAUSE).await;
        let again = async {
            let mirrored = read_from(reader, &wider, &of_candidate, &served.position).await?;
            let now = read_from(reader, &wider, &of_served, &mirrored.position).await?;
            Ok::<_, ReadModelError>((mirrored, now))
        };
        let Ok((candidate, now)) = again.await else { return Mirroring::Passed };
        compared.note(&served, &candidate, &now, meant);
        (served, mirrored) = (now, candidate);
        let is_near = is_near(&served, &mirrored, &request);
        if is_near && compared.all_agreed(&served, &mirrored) {
            return Mirroring::Same;
        }
        has_been_near |= is_near;
    }
    match compared.differing() {
        Some(sku) => Mirroring::Differs(sku.to_string()),
        // Of hits that changed all the time nothing is known.
        None if has_been_near => Mirroring::Passed,
        None => has_differed(&told, &mirrored, request),
    }
}

/// Reads from a generation once it has what another one told, or as it is where that takes too long.
async fn read_from(
    reader: &SearchReader,
    request: &SearchRequest,
    of: &ReadChoice,
    told: &PositionToken,
) -> Result<SearchAnswer, ReadModelError> {
    reader.wait_for(told, of, CATCH_UP).await?;
    reader.search(request.clone(), of).await
}

/// What it means that a candidate still says something else in the end. One that has not even applied what was told at
/// first lags, which is for other bounds to judge: as for stock, only answers of one moment can differ.
fn has_differed(told: &PositionToken, mirrored: &SearchAnswer, request: SearchRequest) -> Mirroring {
    match mirrored.position.covers(told) {
        true => Mirroring::Differs(request.text.unwrap_or_else(|| "*".to_owned())),
        false => Mirroring::Passed,
    }
}

/// Whether the first `limit` hits are the same but for a few.
fn is_alike(served: &SearchAnswer, mirrored: &SearchAnswer, limit: usize) -> bool {
    let (served, mirrored) = (&served.hits, &mirrored.hits);
    let (served, mirrored) = (&served[..served.len().min(limit)], &mirrored[..mirrored.len().min(limit)]);
    let common = served.iter().filter(|hit| mirrored.iter().any(|other| other.sku == hit.sku)).count();
    let all = served.len() + mirrored.len() - common;
    all == 0 || common as f64 / all as f64 >= OVERLAP
}

/// Whether two answers to a wider request differ only in where hits stand. Every change of any document moves all
/// scores a little: at two moments, hits that are nearly equally good change places, over the end of a page too.
fn is_near(served: &SearchAnswer, mirrored: &SearchAnswer, asked: &SearchRequest) -> bool {
    let has_first_of = |one: &SearchAnswer, other: &SearchAnswer| {
        other.hits.iter().take(asked.limit).all(|hit| one.hits.iter().any(|found| found.sku == hit.sku))
    };
    // Behind the first page of a text a hit may also have gone forward, where nobody looks.
    let is_behind_first = asked.text.is_some() && asked.cursor.is_some();
    served.total == mirrored.total
        && (is_behind_first || has_first_of(served, mirrored) && has_first_of(mirrored, served))
}

fn pinned(generation: u32) -> ReadChoice {
    ReadChoice { generation: Some(generation), ..ReadChoice::default() }
}

#[cfg(test)]
mod tests {
    use read_models::generations::meant::Kind;
    use read_models::search::SearchHit;
    use schemas::{Context, RegionId, StorePosition, WarehouseId};

    use super::*;

    fn answer(position: u64, on_hand: i64, version: u64) -> StockAnswer {
        let row = StockRow { region: RegionId::new("eu").unwrap(), on_hand, reserved: 0, version, updated_at: None };
        StockAnswer {
            sku: Sku::new("A").unwrap(),
            warehouses: vec![(WarehouseId::new("w").unwrap(), row)],
            position: PositionToken::of(Context::Inventory, 0, StorePosition { xid: 0, position }),
            parked: false,
        }
    }

    #[test]
    fn only_answers_of_one_moment_are_compared() {
        let judged = |served: &StockAnswer, mirrored: &StockAnswer| judge(served, mirrored, &[]);
        assert_eq!(judged(&answer(5, 1, 3), &answer(5, 1, 3)), Judged::Same);
        assert_eq!(judged(&answer(5, 1, 3), &answer(4, 1, 2)), Judged::CandidateIsBehind);
        assert_eq!(judged(&answer(5, 1, 3), &answer(6, 9, 4)), Judged::ServedIsBehind);
        assert_eq!(judged(&answer(5, 1, 3), &answer(6, 1, 3)), Judged::Same, "another SKU's event came");
        assert_eq!(judged(&answer(5, 1, 3), &answer(6, 2, 3)), Judged::Differs);
        assert_eq!(judged(&answer(5, 1, 3), &answer(6, 1, 2)), Judged::Differs, "it lost one");
        assert_eq!(judged(&answer(5, 1, 3), &answer(5, 1, 4)), Judged::Differs, "it has one too many");
        let none = StockAnswer { warehouses: Vec::new(), ..answer(5, 1, 3) };
        assert_eq!(
            (judged(&answer(5, 1, 3), &none), judged(&none, &answer(5, 1, 3))),
            (Judged::Differs, Judged::Differs)
        );
    }

    fn rule(kind: Kind, field: &str, regions: &[&str]) -> MeantDifference {
        let regions = regions.iter().map(|region| RegionId::new(*region).unwrap()).collect();
        MeantDifference { field: field.to_owned(), kind, regions }
    }

    #[test]
    fn meant_differences_are_none() {
        let mut newer = answer(5, 1, 3);
        newer.warehouses[0].1.updated_at = Some(7);
        assert_eq!(judge(&answer(5, 1, 3), &newer, &[]), Judged::Differs);
        assert_eq!(judge(&answer(5, 1, 3), &newer, &[rule(Kind::New, "updated_at", &[])]), Judged::Same);
        let counted = |on_hand, regions| {
            judge(&answer(5, 1, 3), &answer(5, on_hand, 3), &[rule(Kind::Within(1.0), "on_hand", regions)])
        };
        assert_eq!(counted(2, &["eu"]), Judged::Same);
        assert_eq!((counted(3, &["eu"]), counted(2, &["us"])), (Judged::Differs, Judged::Differs));
    }

    fn found(skus: &[&str], total: u64) -> SearchAnswer {
        let hit = |sku: &&str| SearchHit {
            sku: Sku::new(*sku).unwrap(),
            name: String::new(),
            brand: None,
            category_path: Vec::new(),
            pack_size: None,
            price: None,
            in_stock: Vec::new(),
            revised_at: None,
            parked: false,
        };
        SearchAnswer {
            total,
            hits: skus.iter().map(hit).collect(),
            facets: None,
            next: None,
            position: PositionToken::default(),
            generation: 1,
        }
    }

    #[test]
    fn hits_may_change_places_and_none_may_be_missing() {
        let asked = SearchRequest { text: Some("leek".to_owned()), limit: 2, ..SearchRequest::default() };
        let near = |served, mirrored, asked: &SearchRequest| is_near(&served, &mirrored, asked);
        assert!(near(found(&["A", "B", "C", "D"], 9), found(&["A", "C", "B", "E"], 9), &asked));
        assert!(!near(found(&["A", "B", "C", "D"], 9), found(&["A", "C", "D", "E"], 9), &asked), "B is gone");
        assert!(!near(found(&["A", "C", "D", "E"], 9), found(&["A", "B", "C", "D"], 9), &asked), "B is new");
        assert!(!near(found(&["A", "B"], 9), found(&["A", "B"], 8), &asked), "one fewer in all");
        let (wide, other) = (found(&["A", "B", "C", "D"], 9), found(&["B", "A", "E", "F"], 7));
        assert!(is_alike(&wide, &other, 2) && !is_alike(&wide, &other, 4), "what was asked for is compared");
        let second = SearchRequest { cursor: Some("1".to_owned()), ..asked };
        assert!(near(found(&["A", "B"], 9), found(&["C", "D"], 9), &second));
        assert!(!near(found(&["A", "B"], 9), found(&["A", "B"], 8), &second));
    }

    #[test]
    fn a_candidate_that_lags_does_not_differ() {
        let told = PositionToken::of(Context::Catalogue, 0, StorePosition { xid: 0, position: 5 });
        let at = |position| SearchAnswer {
            position: PositionToken::of(Context::Catalogue, 0, StorePosition { xid: 0, position }),
            ..found(&["A"], 1)
        };
        let judged = |position| has_differed(&told, &at(position), SearchRequest::default());
        assert!(matches!(judged(4), Mirroring::Passed));
        assert!(matches!(judged(5), Mirroring::Differs(_)));
        assert!(matches!(judged(6), Mirroring::Differs(_)));
    }
}
