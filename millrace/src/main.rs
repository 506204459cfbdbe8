//! `millrace`: the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::run()
}
