//! What the command line prints as its result. Log lines go elsewhere, so results can be piped.

use std::io::Write;

/// Prints a line of the result. A reader that went away (`| head`) ends the printing, not the program.
pub fn line(text: impl AsRef<str>) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{}", text.as_ref())
}

/// Tells what a program that goes on is doing; that nobody reads it any more does not stop the program.
pub fn notice(text: impl AsRef<str>) {
    if let Err(error) = line(text) {
        tracing::debug!(%error, "standard output is gone");
    }
}

/// Prints one JSON value a line.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?)?;
    Ok(())
}

/// Whether an error is a reader that went away.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
