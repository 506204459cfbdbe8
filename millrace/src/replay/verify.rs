//! `millrace replay verify`: two generations at one position vector, with a progress bar, and what is noted of it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use read_models::search;
use replay::parity::Progress;
use replay::rules::Rules;
use replay::{By, ReplayError};

use super::args::VerifyArgs;
use super::{connect, decide};
use crate::exit::Exit;
use crate::output;
use crate::roles::process::now;

const TICK: Duration = Duration::from_millis(200);

pub async fn run(args: VerifyArgs) -> anyhow::Result<Exit> {
    let name = args.target.name;
    let rules = args.rules.as_deref().map(|file| Rules::read(file, name)).transpose()?.unwrap_or_default();
    let queries = args.queries.as_deref().map(queries).transpose()?.unwrap_or_default();
    if !queries.is_empty() && name != search::NAME {
        let problem = format!("it is for search; {name} answers none");
        return Err(ReplayError::Setting { key: "queries", problem }.into());
    }
    let replayed = connect::read_model(&args.at, name).await?;
    let log = connect::log(&args.at, &args.event_log).await?;
    let catalogue = replayed.catalogue().await?;
    let number = args.target.resolve(&catalogue)?;

    let progress = Progress::default();
    let compared = async {
        let compared = replayed.compare(&catalogue, number, &log, &rules, &queries, &progress, now());
        tokio::select! {
            compared = compared => Ok(compared?),
            never = show(&progress) => match never {},
            _ = tokio::signal::ctrl_c() => anyhow::bail!("it was stopped: nothing can be said"),
        }
    };
    let report = compared.await?;
    if let Some(file) = &args.html {
        std::fs::write(file, report.html()).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let mut noted = None;
    if let (false, Some(who)) = (args.dry_run, &args.who) {
        let by = By::new(who, &args.reason, now())?;
        noted = Some(replayed.operations().note_parity(&report.evidence(), &rules, &by).await?);
    }
    if args.at.json {
        decide::json_with(noted.as_ref(), "report", &report)?;
    } else {
        output::line(report.text(args.show).trim_end())?;
        if let Some(noted) = &noted {
            decide::tell(noted, false)?;
        }
    }
    let is_noted = noted.as_ref().is_none_or(|noted| noted.done().is_some());
    Ok(if report.is_clean() && is_noted { Exit::Done } else { Exit::Refused })
}

/// Searches, one a line; empty lines and those that begin with `#` are none.
fn queries(file: &Path) -> anyhow::Result<Vec<String>> {
    let path = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|error| ReplayError::File { path: path.clone(), problem: format!("it cannot be read: {error}") })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let queries: Vec<String> = lines.map(str::to_owned).collect();
    if queries.is_empty() {
        return Err(ReplayError::File { path, problem: "it has no query; write one a line".to_owned() }.into());
    }
    Ok(queries)
}

/// A bar on standard error until it is dropped.
pub async fn show(progress: &Progress) -> std::convert::Infallible {
    let bar = Shown(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {bar:30} {msg}") {
        bar.0.set_style(style);
    }
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let (rows, done, all, open) = progress.seen();
        bar.0.set_length(all);
        bar.0.set_position(done);
        let open = if open > 0 { format!(", {open} keys looked at again") } else { String::new() };
        bar.0.set_message(format!("{done} of {all} partitions, {rows} read{open}"));
        bar.0.tick();
    }
}

struct Shown(ProgressBar);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queries_for_stock_are_a_slip() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queries.txt");
        std::fs::write(&file, "leek\n").unwrap();
        let line = ["millrace", "replay", "verify", "stock", "--dry-run", "--queries", file.to_str().unwrap()];
        let cli = crate::settings::parse_with(&line.map(Into::into), None).unwrap();
        let crate::cli::Command::Replay(args) = cli.command else { panic!("not replay") };
        let error = super::super::run(args).await.unwrap_err();
        assert!(super::super::is_slip(&error), "{error:#}");
    }

    #[test]
    fn a_file_of_queries_has_one_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queries.txt");
        std::fs::write(&file, "# what people ask\nred onion\n\n  leek \n").unwrap();
        assert_eq!(queries(&file).unwrap(), ["red onion", "leek"]);
        std::fs::write(&file, "# nothing\n").unwrap();
        assert!(queries(&file).unwrap_err().to_string().contains("one a line"));
    }
}
