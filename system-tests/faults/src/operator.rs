//! The operator at the command line: `millrace …` with the settings of the roles, one command after the other, each of
//! which may be killed in its middle.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// Who gives commands beside the roles.
#[derive(Debug, Clone)]
pub struct Operator {
    pub binary: PathBuf,
    pub folder: PathBuf,
    pub environment: Vec<(String, String)>,
}

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Told {
    /// What was given, for messages.
    pub line: String,
    /// `None` of one that was killed.
    pub code: Option<i32>,
    /// The last line of its standard output, where that is JSON.
    pub json: Value,
    /// All that it printed.
    pub text: String,
    pub asked: Instant,
    pub answered: Instant,
}

/// Nobody waits longer for a command.
const MOST: Duration = Duration::from_secs(180);

/// Dies with whoever waits for it.
struct Running(Child);

// === impl Operator ===

impl Operator {
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Told> {
        let told = self.run_for(arguments, MOST).await?;
        if told.code.is_none() {
            bail!("millrace {} did not end within {MOST:?}: {}", told.line, told.text);
        }
        Ok(told)
    }

    /// `millrace …`, killed -9 where it takes longer.
    pub async fn run_for(&self, arguments: &[&str], most: Duration) -> anyhow::Result<Told> {
        let printed = tempfile::NamedTempFile::new_in(&self.folder)?;
        let complained = tempfile::NamedTempFile::new_in(&self.folder)?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        let asked = Instant::now();
        let child = command
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(File::create(printed.path())?)
            .stderr(File::create(complained.path())?)
            .spawn()
            .with_context(|| format!("{} does not start", self.binary.display()))?;
        let mut running = Running(child);
        let code = loop {
            if let Some(status) = running.0.try_wait()? {
                break status.code();
            }
            if asked.elapsed() > most {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let answered = Instant::now();
        drop(running);
        let printed = std::fs::read_to_string(printed.path())?;
        let last = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
        Ok(Told {
            line: arguments.join(" "),
            code,
            json: last.unwrap_or_default(),
            text: printed + &std::fs::read_to_string(complained.path())?,
            asked,
            answered,
        })
    }
}

// === impl Told ===

impl Told {
    /// Codes of all that a refusal names as missing.
    pub fn missing(&self) -> Vec<&str> {
        let missing = self.json["refused"]["missing"].as_array().map(Vec::as_slice).unwrap_or_default();
        missing.iter().filter_map(|missing| missing["code"].as_str()).collect()
    }

    /// For messages: what was given, and what came of it.
    pub fn explain(&self) -> String {
        let code = self.code.map_or_else(|| "killed".to_owned(), |code| format!("exit code {code}"));
        let end: String = self.text.trim().chars().take(4_000).collect();
        format!("millrace {}: {code}: {end}", self.line)
    }
}

// === impl Running ===

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is no trouble.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
