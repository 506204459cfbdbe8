//! Threads for what nobody waits for yet: the partitions of a shadow, until they are level.
//!
//! The throttle says how much a shadow does, not when. On threads like all others a live event that comes while a shadow
//! decodes or writes waits for the end of a time slice; the kernel takes the processor from threads of low priority at
//! once, and gives it to them when nobody else wants it.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Begun when it is first asked for: a process that builds nothing has no such threads.
#[derive(Debug, Default)]
pub(crate) struct Background {
    runtime: OnceLock<Option<Runtime>>,
}

/// About a tenth of what others get when all processors are wanted: a replay that stands still for ever is none.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

// === impl Background ===

impl Background {
    /// `None` where no further threads are to be had.
    pub(crate) fn handle(&self) -> Option<&Handle> {
        let runtime = self.runtime.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name("shadow").on_thread_start(step_back).enable_all();
            builder.build().inspect_err(|error| tracing::warn!(%error, "shadows get no threads of their own")).ok()
        });
        runtime.as_ref().map(Runtime::handle)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take().flatten() {
            // It may be dropped where nothing may wait: what is under way in a store is finished by it, or was never begun.
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority is that of one thread.
#[cfg(target_os = "linux")]
fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a shadow's thread keeps its priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}
