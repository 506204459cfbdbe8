//! The read models that a replay works on, opened beside the processes that write their rows.

use std::sync::Arc;

use event_log::EventDecoder;
use read_models::search::{self, SearchReader};
use read_models::stock;
use replay::{LogReader, Ownership, Replayed};

use super::args::AtArgs;
use crate::cli::{EventLogArgs, OwnershipArgs};
use crate::exit::one_line;
use crate::stores;

/// The owners of all that this program has.
pub fn ownership(args: &OwnershipArgs) -> anyhow::Result<Arc<Ownership>> {
    let ownership = match &args.ownership {
        Some(file) => Ownership::read(file)?,
        None => Ownership::embedded()?,
    };
    ownership.check_program()?;
    Ok(Arc::new(ownership))
}

/// One read model, to look at and to decide on.
pub async fn read_model(at: &AtArgs, name: &str) -> anyhow::Result<Replayed> {
    let ownership = ownership(&at.ownership)?;
    open(at, name, ownership).await
}

/// Both, or the one that is named.
pub async fn read_models(at: &AtArgs, only: Option<&str>) -> anyhow::Result<Vec<Replayed>> {
    let ownership = ownership(&at.ownership)?;
    let (mut opened, mut refused) = (Vec::new(), None);
    for name in [stock::NAME, search::NAME] {
        if only.is_none_or(|only| only == name) {
            match open(at, name, Arc::clone(&ownership)).await {
                Ok(replayed) => opened.push(replayed),
                // The other one may be of another machine.
                Err(error) => {
                    tracing::warn!(error = one_line(&error), "a read model is not looked at");
                    refused = Some(error);
                }
            }
        }
    }
    match refused {
        Some(error) if opened.is_empty() => Err(error),
        _ => Ok(opened),
    }
}

async fn open(at: &AtArgs, name: &str, ownership: Arc<Ownership>) -> anyhow::Result<Replayed> {
    Ok(match name {
        stock::NAME => Replayed::stock(stores::stock_beside(&at.data, &at.stock).await?, ownership),
        _ => {
            let dir = stores::search_dir_beside(&at.data, &at.search)?;
            Replayed::search(SearchReader::open(&dir).await?, ownership)
        }
    })
}

/// The log, to read what generations are compared by.
pub async fn log(at: &AtArgs, event_log: &EventLogArgs) -> anyhow::Result<LogReader> {
    let log = stores::event_log_to_read(&at.data, event_log).await?;
    let decoder = Arc::new(EventDecoder::new(stores::registry(&event_log.registry)?));
    Ok(LogReader { log, decoder })
}
