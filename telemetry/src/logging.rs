//! Log lines on standard error, so that standard output stays the program's result.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("setting log: {value:?} is not a log filter ({problem}); try info, or warn,millrace=debug")]
    Filter { value: String, problem: String },
    #[error("logging was set up twice in this process")]
    Twice,
}

/// Sets up logging for the process. `filter` is in the syntax of tracing's `EnvFilter`.
pub fn init_logging(filter: &str, format: LogFormat) -> Result<(), LoggingError> {
    // A word alone would be read as the name of a module, and nothing be logged at all.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_word = !filter.contains(['=', ',', ':', '[']);
    if is_word && !LEVELS.contains(&filter.trim().to_ascii_lowercase().as_str()) {
        let problem = format!("a level is one of {}", LEVELS.join(", "));
        return Err(LoggingError::Filter { value: filter.to_owned(), problem });
    }
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| LoggingError::Filter { value: filter.to_owned(), problem: error.to_string() })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_target(true)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(BoxMakeWriter::new(std::io::stderr));
    match format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|_| LoggingError::Twice)
}
