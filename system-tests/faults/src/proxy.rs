//! A TCP proxy on loopback, between Millrace and one server: passes, delays, cuts, or swallows without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Each piece so much later.
    Delay(Duration),
    /// Open connections break, new ones are closed at once.
    Cut,
    /// Nothing comes through, and nobody is told: the half-open connection.
    Swallow,
}

pub struct Proxy {
    port: u16,
    target: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
    _ends_with_it: DropGuard,
}

// === impl Proxy ===

impl Proxy {
    /// Takes a free port and passes to `target`.
    pub async fn start(target: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let target = Arc::new(AtomicU16::new(target));
        let (mode, seen) = watch::channel(Mode::Pass);
        let stopped = CancellationToken::new();
        tokio::spawn(stopped.clone().run_until_cancelled_owned(accept(listener, target.clone(), seen)));
        Ok(Self { port, target, mode, _ends_with_it: stopped.drop_guard() })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another target, for connections from now on.
    pub fn to(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn pass(&self) {
        self.set(Mode::Pass);
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, mode: watch::Receiver<Mode>) {
    loop {
        let Ok((inside, _)) = listener.accept().await else { continue };
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        let (target, mode) = (target.load(Ordering::Relaxed), mode.clone());
        tokio::spawn(async move {
            let Ok(outside) = TcpStream::connect(("127.0.0.1", target)).await else { return };
            // Small messages go back and forth: they must not wait for more.
            let _ = (inside.set_nodelay(true), outside.set_nodelay(true));
            let ((inside_read, inside_write), (outside_read, outside_write)) =
                (inside.into_split(), outside.into_split());
            let mut cut = mode.clone();
            tokio::select! {
                () = pump(inside_read, outside_write, mode.clone()) => {}
                () = pump(outside_read, inside_write, mode) => {}
                _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
            }
        });
    }
}

/// Moves bytes one way until either side ends.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let Ok(length) = from.read(&mut piece).await else { return };
        if length == 0 {
            return;
        }
        let now = *mode.borrow();
        match now {
            Mode::Pass | Mode::Cut => {}
            Mode::Delay(by) => tokio::time::sleep(by).await,
            // Held, not lost: TCP would send it again.
            Mode::Swallow => {
                if mode.wait_for(|mode| *mode != Mode::Swallow).await.is_err() {
                    return;
                }
            }
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
