//! `millrace replay list`: every generation of each read model.

use comfy_table::Table;
use replay::{GenerationView, ReplaysView};
use serde_json::json;

use super::args::ListArgs;
use super::connect;
use crate::exit::{Exit, one_line};
use crate::output;
use crate::roles::process::now;

pub async fn run(args: ListArgs) -> anyhow::Result<Exit> {
    let (mut views, mut exit) = (Vec::new(), Exit::Done);
    for replayed in connect::read_models(&args.at, None).await? {
        match ReplaysView::of(&replayed, now()).await {
            Ok(view) => views.push(view),
            // It does not hide the other one.
            Err(error) => {
                eprintln!("millrace: {}: {}", replayed.name(), one_line(&anyhow::Error::from(error)));
                exit = Exit::Failed;
            }
        }
    }
    if views.is_empty() {
        return Ok(exit);
    }
    if args.at.json {
        output::json(&json!({ "read_models": views }))?;
        return Ok(exit);
    }
    let mut table = Table::new();
    table.set_header([
        "generation",
        "role",
        "fold",
        "from",
        "answers",
        "stage",
        "live",
        "lag (events)",
        "started by",
        "parity",
    ]);
    for view in &views {
        for generation in &view.generations {
            table.add_row(row(generation));
        }
    }
    output::line(table.to_string())?;
    for view in &views {
        if view.generations.is_empty() {
            output::line(format!(
                "{}: nothing is built yet; `millrace up` or `millrace project {0}` builds it",
                view.projection
            ))?;
        }
    }
    Ok(exit)
}

fn row(generation: &GenerationView) -> [String; 10] {
    let none = || "-".to_owned();
    let replay = generation.replay.as_ref();
    let progress = generation.progress.as_ref();
    let parity = match replay.and_then(|replay| replay.parity_clean) {
        Some(true) => "clean".to_owned(),
        Some(false) => "differs".to_owned(),
        None => none(),
    };
    let role = match &generation.until {
        Some(until) => format!("{}, {until}", generation.role.as_str()),
        None => generation.role.as_str().to_owned(),
    };
    [
        generation.generation.clone(),
        role,
        generation.fold.to_string(),
        generation.source.replace('_', " "),
        generation.answers.clone(),
        replay.and_then(|replay| replay.stage.clone()).unwrap_or_else(none),
        match (progress, &generation.problem) {
            (Some(progress), _) => format!("{} of {}", progress.live, progress.partitions),
            (None, Some(_)) => "damaged; see status".to_owned(),
            (None, None) => none(),
        },
        progress.and_then(|progress| progress.lag_events).map_or_else(none, |lag| lag.to_string()),
        replay.map_or_else(none, |replay| replay.started_by.clone()),
        parity,
    ]
}
