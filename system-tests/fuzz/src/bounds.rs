//! What every input is held to: no panic in any thread, an answer in time, a bounded peak of memory.
//!
//! A hang cannot be cut short from outside a thread, so a watchdog ends the process and says where it was.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

use crate::target::Target;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Longest time that one input may take. An unoptimised build is some thirty times slower.
pub const MOST_TIME: Duration = if cfg!(debug_assertions) { Duration::from_secs(10) } else { Duration::from_secs(1) };
/// Most memory that one input may hold at once, on top of what was held before.
pub const MOST_MEMORY: usize = 64 * 1024 * 1024;
/// Exit code of a process that the watchdog ended.
pub const HUNG: i32 = 70;
/// A hang is what takes so many times as long as it may: what is merely too slow is reported by itself.
const HANG: u32 = 10;

/// What one input cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub time: Duration,
    /// Bytes.
    pub memory: usize,
}

/// What the panic hook saw, in whatever thread.
static PANIC: Mutex<Option<String>> = Mutex::new(None);
/// What [`BEGUN`] counts from.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When the input under way began, in microseconds plus one; 0 between inputs.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Feeds one input. The error says what it did that no input may do.
pub fn hold(target: &dyn Target, input: &[u8]) -> (Cost, Result<(), String>) {
    take_panic();
    let held = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let begun = Instant::now();
    BEGUN.store(begun.saturating_duration_since(*ORIGIN).as_micros() as u64 + 1, Ordering::Relaxed);
    let fed = std::panic::catch_unwind(AssertUnwindSafe(|| target.feed(input)));
    BEGUN.store(0, Ordering::Relaxed);
    let cost = Cost { time: begun.elapsed(), memory: MEMORY.peak_usage().saturating_sub(held) };
    let verdict = match (fed, take_panic()) {
        (_, Some(panic)) => Err(format!("panic: {panic}")),
        (Err(_), None) => Err("panic".to_owned()),
        (Ok(Err(problem)), None) => Err(problem),
        (Ok(Ok(())), None) if cost.time > MOST_TIME => Err(format!("took {:?}", cost.time)),
        (Ok(Ok(())), None) if cost.memory > MOST_MEMORY => Err(format!("held {} MB", cost.memory / 1024 / 1024)),
        (Ok(Ok(())), None) => Ok(()),
    };
    (cost, verdict)
}

fn take_panic() -> Option<String> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Notes panics in place of printing them, and ends the process when an input hangs.
pub fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic.to_string());
        }));
        LazyLock::force(&ORIGIN);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let begun = BEGUN.load(Ordering::Relaxed);
                let now = ORIGIN.elapsed().as_micros() as u64;
                if begun != 0 && now.saturating_sub(begun) > (MOST_TIME * HANG).as_micros() as u64 {
                    std::process::exit(HUNG);
                }
            }
        });
    });
}
