//! The orderly end: a signal cancels a token, owners drain, and a bound holds.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `token` at the first SIGINT or SIGTERM; a second one ends the process at once.
pub fn shutdown_on_signal(token: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = token.cancelled() => return,
        }
        token.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // The exit code that shells give for an interrupted program.
        std::process::exit(130);
    });
    Ok(())
}

/// Waits for work to end, at most `bound`; says whether it did.
pub async fn drain(work: impl Future<Output = ()>, bound: Duration) -> bool {
    tokio::time::timeout(bound, work).await.is_ok()
}
