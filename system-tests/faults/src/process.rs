//! A child process: started again and again with the same arguments, killed, frozen, woken, stopped.
//!
//! Children die with the harness, however it ends (`setpriv --pdeathsig`), and have a process group of their own, so that
//! a Ctrl-C for the harness does not reach them: it is the harness that stops them.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A program with all that it is started with.
pub struct Program {
    pub name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    log: PathBuf,
    /// User and group id to run as.
    user: Option<String>,
    child: Option<Child>,
}

// === impl Program ===

impl Program {
    /// What it prints goes to `directory/name.log`, one start behind the other.
    pub fn new(name: &str, program: impl AsRef<Path>, directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: directory.to_owned(),
            log: directory.join(format!("{name}.log")),
            user: None,
            child: None,
        }
    }

    pub fn arguments<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub fn environment(mut self, environment: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(environment);
        self
    }

    pub fn user(mut self, user: Option<&str>) -> Self {
        self.user = user.map(str::to_owned);
        self
    }

    /// For the next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            command.args([format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".to_owned()]);
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        let child = command
            .arg(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} does not start (setpriv of util-linux is needed)", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// kill -9, children of its own first frozen with it so that none of them goes on for a while.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        for pid in std::iter::once(child.id()).chain(children_of(child.id())) {
            send("KILL", pid);
        }
        child.wait()?;
        Ok(())
    }

    /// A signal such as `STOP` to the process and all that it started.
    pub fn signal(&mut self, signal: &str) -> anyhow::Result<()> {
        let Some(pid) = self.pid().filter(|_| self.is_running()) else { bail!("{} does not run", self.name) };
        for pid in std::iter::once(pid).chain(children_of(pid)) {
            send(signal, pid);
        }
        Ok(())
    }

    /// A signal that asks it to end, and the exit code; killed and an error when it does not end in time.
    pub async fn stop(&mut self, signal: &str, within: Duration) -> anyhow::Result<i32> {
        let Some(mut child) = self.child.take() else { return Ok(0) };
        send(signal, child.id());
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if begun.elapsed() > within {
                self.child = Some(child);
                self.kill()?;
                bail!("{} did not end within {within:?} of SIG{signal}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log_text(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn log_end(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Nobody is left to tell; a child that is gone already is no trouble.
        let _ = self.kill();
    }
}

/// What a process started, as the kernel lists it.
fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn send(signal: &str, pid: u32) {
    // A process that has just ended cannot be signalled, which is as good.
    let _ = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Waits for a condition, asked every 50 ms.
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !condition().await {
        if begun.elapsed() > within {
            bail!("{what}: not within {within:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
