//! `millrace replay list`: every generation of each read model.

use comfy_table::Table;
use replay::{GenerationView, ReplaysView};
use serde_json::json;

use super::args::ListArgs;
use super::connect;
use crate::exit::Exit;
use crate::output;
use crate::roles::process::now;

pub async fn run(args: ListArgs) -> anyhow::Result<Exit> {
    let mut views = Vec::new();
    for replayed in connect::read_models(&args.at, None).await? {
        views.push(ReplaysView::of(&replayed, now()).await?);
    }
    if args.at.json {
        output::json(&json!({ "read_models": views }))?;
        return Ok(Exit::Done);
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
    Ok(Exit::Done)
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
