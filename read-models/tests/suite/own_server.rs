//! A redis-server that a test may kill, freeze and fill.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::DEADLINE;

/// A redis-server of this test alone.
pub struct OwnServer {
    port: u16,
    folder: tempfile::TempDir,
    flags: Vec<&'static str>,
    process: Child,
}

// === impl OwnServer ===

impl OwnServer {
    pub async fn start(flags: &[&'static str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let process = launch(port, folder.path().to_owned(), flags);
        let server = Self { port, folder, flags: flags.to_vec(), process };
        server.answers().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Waits until it answers.
    async fn answers(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        let answers = async {
            loop {
                if let Ok(mut connection) = client.get_multiplexed_async_connection().await
                    && redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, answers).await.expect("redis-server starts");
    }

    pub async fn ask(&self, words: &[&str]) -> String {
        ask(&self.url(), words).await
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub async fn restart(&mut self) {
        self.process = launch(self.port, self.folder.path().to_owned(), &self.flags);
        self.answers().await;
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn launch(port: u16, folder: PathBuf, flags: &[&str]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
        .arg(folder)
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

pub async fn ask(url: &str, words: &[&str]) -> String {
    let mut connection = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    format!("{:?}", command.query_async::<redis::Value>(&mut connection).await.unwrap())
}
