//! `millrace`: the one binary.

use std::process::ExitCode;

/// Records are read on one thread and folded and freed on another, which the system's allocator is slow at (ADR 15).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    millrace::run()
}
