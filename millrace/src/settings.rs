//! Settings: flags over `MILLRACE_*` environment over `millrace.toml`, all checked before anything is touched.
//!
//! A key of the file is the name of a long flag (or of the flag's variable, where that differs); it becomes that flag's
//! default, so one parser and one check serve all three. A key or variable that no subcommand has is an error: a
//! misspelt one would be ignored for years.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use resilience::guard;

use crate::cli::{Cli, Command};
use crate::exit::Exit;

/// File that is read when `--config` names none.
const DEFAULT_FILE: &str = "millrace.toml";
const PREFIX: &str = "MILLRACE_";
/// Variables of the test servers and of the build, which are not settings.
const NOT_SETTINGS: [&str; 2] = ["MILLRACE_TEST_", "MILLRACE_CACHE"];

/// A command line or setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Clap's own error, help and version included.
    #[error("{0}")]
    Usage(clap::Error),
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error("environment variable {name} is no setting{hint}; `millrace help <command>` lists them")]
    UnknownVariable { name: String, hint: String },
    #[error("setting {setting}: {kind:?} is not taken here; {wanted}")]
    Address { setting: &'static str, kind: String, wanted: &'static str },
    #[error("setting {setting}: {problem}")]
    Broker { setting: &'static str, problem: String },
    #[error("{file}: setting {key}: {problem}")]
    Value { file: String, key: String, problem: String },
}

/// Reads the process's own command line, environment and settings file.
pub fn parse() -> Result<Cli, Refused> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Whoever asks for help may do so because a setting is wrong: settings have no say in that.
    if let Err(asked) = Cli::command().try_get_matches_from(&arguments)
        && matches!(asked.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
    {
        return Err(Refused::Usage(asked));
    }
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    check_variables(&Cli::command(), variables)?;
    let file = match named_file(&arguments) {
        Some(file) => Some(file),
        None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()),
    };
    parse_with(&arguments, file.as_deref())
}

/// Reads a command line, and the settings file that stands behind it.
pub fn parse_with(arguments: &[OsString], file: Option<&Path>) -> Result<Cli, Refused> {
    let mut command = Cli::command();
    let mut from_file = BTreeMap::new();
    if let Some(file) = file {
        from_file = read_file(file, &known_flags(&command))?;
        for (key, value) in &from_file {
            command = with_default(command, key, value);
        }
    }
    let matches =
        command.try_get_matches_from(arguments).map_err(|error| blame_file(error, file, &from_file, arguments))?;
    let cli = Cli::from_arg_matches(&matches).map_err(Refused::Usage)?;
    check_addresses(&cli.command)?;
    Ok(cli)
}

/// Every address of a command, before anything is made or connected. Not in the flags' own parsers: clap repeats the
/// value that it refuses, and it may hold a password.
fn check_addresses(command: &Command) -> Result<(), Refused> {
    for (kind, url) in command.addresses() {
        if !kind.takes(url) {
            return Err(Refused::Address { setting: kind.setting(), kind: url.shown_kind(), wanted: kind.wanted() });
        }
        if url.expose().starts_with("kafka:") {
            event_log::KafkaSettings::parse(url.expose()).map_err(|error| match error {
                event_log::EventLogError::Setting { key, problem } => Refused::Broker { setting: key, problem },
                other => Refused::Broker { setting: kind.setting(), problem: other.to_string() },
            })?;
        }
    }
    Ok(())
}

/// `--config FILE` must be known before the rest can be parsed.
fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let Some(text) = argument.to_str() else { continue };
        if text == "--" {
            break;
        }
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(file) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(file));
        }
    }
    std::env::var_os("MILLRACE_CONFIG").map(PathBuf::from)
}

/// The long flags of all subcommands that take a value or switch something.
fn known_flags(command: &clap::Command) -> BTreeSet<String> {
    let own =
        command.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version" | "config"));
    let mut flags: BTreeSet<String> = own.filter_map(setting_name).collect();
    for subcommand in command.get_subcommands() {
        flags.extend(known_flags(subcommand));
    }
    flags
}

/// What a flag is called in the file: as in the environment, so that a flag with a variable of its own, such as
/// `--data` of the demo, does not take what was meant for its namesakes.
fn setting_name(argument: &clap::Arg) -> Option<String> {
    let flag = argument.get_long()?;
    let variable = argument.get_env().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
    Some(variable.map_or_else(|| flag.to_owned(), |name| name.replace('_', "-").to_ascii_lowercase()))
}

fn read_file(file: &Path, known: &BTreeSet<String>) -> Result<BTreeMap<String, String>, Refused> {
    let name = file.display().to_string();
    let refused = |problem: String| Refused::File { file: name.clone(), problem };
    let text = std::fs::read_to_string(file).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| refused(error.to_string().trim().replace('\n', " ")))?;
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        if !known.contains(&flag) {
            return Err(refused(format!("unknown setting {key:?}{}", hint(&flag, known))));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(switch) => switch.to_string(),
            other => {
                return Err(refused(format!(
                    "setting {key:?} is a {}, a text, number or switch is wanted",
                    other.type_str()
                )));
            }
        };
        settings.insert(flag, value);
    }
    Ok(settings)
}

/// Makes a file's value the default of the flag wherever it exists.
fn with_default(command: clap::Command, flag: &str, value: &str) -> clap::Command {
    let mut command = command;
    let id = command
        .get_arguments()
        .find(|argument| setting_name(argument).as_deref() == Some(flag))
        .map(|argument| argument.get_id().clone());
    if let Some(id) = id {
        let value = value.to_owned();
        command = command.mut_arg(id, |argument| argument.default_value(value));
    }
    let names: Vec<String> = command.get_subcommands().map(|subcommand| subcommand.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |subcommand| with_default(subcommand, flag, value));
    }
    command
}

/// Clap blames the flag; when its value came from the file, the file is to blame.
fn blame_file(
    error: clap::Error,
    file: Option<&Path>,
    from_file: &BTreeMap<String, String>,
    arguments: &[OsString],
) -> Refused {
    let is_value = matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    let Some(file) = file.filter(|_| is_value) else { return Refused::Usage(error) };
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return Refused::Usage(error) };
    let flag = argument.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default().to_owned();
    let is_given = arguments.iter().any(|given| {
        given.to_str().is_some_and(|given| given == format!("--{flag}") || given.starts_with(&format!("--{flag}=")))
    });
    let variable = format!("{PREFIX}{}", flag.replace('-', "_").to_ascii_uppercase());
    match from_file.get(&flag) {
        Some(value) if !is_given && std::env::var_os(variable).is_none() => {
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Refused::Value { file: file.display().to_string(), key: flag, problem: format!("{value:?}: {why}") }
        }
        _ => Refused::Usage(error),
    }
}

fn check_variables(command: &clap::Command, variables: impl Iterator<Item = String>) -> Result<(), Refused> {
    let known = known_variables(command);
    for name in variables {
        let is_ours = name.starts_with(PREFIX) && !NOT_SETTINGS.iter().any(|other| name.starts_with(other));
        let is_switch = guard::IS_SWITCHABLE && name == guard::VARIABLE;
        if is_ours && !is_switch && !known.contains(&name) {
            let hint = hint(&name, &known);
            return Err(Refused::UnknownVariable { name, hint });
        }
    }
    Ok(())
}

fn known_variables(command: &clap::Command) -> BTreeSet<String> {
    let mut variables: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env().and_then(|name| name.to_str()).map(str::to_owned))
        .collect();
    for subcommand in command.get_subcommands() {
        variables.extend(known_variables(subcommand));
    }
    variables
}

/// The known name that shares the most with an unknown one, when that is enough to be a slip.
fn hint(unknown: &str, known: &BTreeSet<String>) -> String {
    let shared = |name: &str| {
        let front = name.chars().zip(unknown.chars()).take_while(|(a, b)| a == b).count();
        let back = name.chars().rev().zip(unknown.chars().rev()).take_while(|(a, b)| a == b).count();
        (front + back).min(name.len())
    };
    known
        .iter()
        .max_by_key(|name| shared(name))
        .filter(|name| shared(name) * 2 > name.len() && shared(name) * 2 > unknown.len())
        .map(|name| format!(" (did you mean {name}?)"))
        .unwrap_or_default()
}

// === impl Refused ===

impl Refused {
    /// Says what was wrong, and the exit code for it: 0 for help and version, else 2.
    pub fn report(self) -> std::process::ExitCode {
        match self {
            Refused::Usage(error) => {
                let is_help = !error.use_stderr();
                // Nothing is left to say when even the terminal is gone.
                let _ = error.print();
                if is_help { Exit::Done.into() } else { Exit::Usage.into() }
            }
            other => {
                eprintln!("millrace: {other}");
                Exit::Usage.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], toml: Option<&str>) -> Result<Cli, Refused> {
        let arguments: Vec<OsString> =
            std::iter::once("millrace").chain(arguments.iter().copied()).map(OsString::from).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("millrace.toml");
        if let Some(toml) = toml {
            std::fs::write(&file, toml).unwrap();
        }
        parse_with(&arguments, toml.map(|_| file.as_path()))
    }

    fn listen(cli: Cli) -> String {
        match cli.command {
            Command::Serve(args) => args.listen,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        assert_eq!(listen(parse(&["serve"], None).unwrap()), "127.0.0.1:8080");
        let file = Some("listen = \"127.0.0.1:9\"\npartitions = 6\n");
        assert_eq!(listen(parse(&["serve"], file).unwrap()), "127.0.0.1:9");
        assert_eq!(listen(parse(&["serve", "--listen", "127.0.0.1:7"], file).unwrap()), "127.0.0.1:7");
    }

    #[test]
    fn the_demo_takes_no_directory_that_was_meant_for_others() {
        let data =
            |file: &str, arguments: &[&str]| match parse(&[&["demo"], arguments].concat(), Some(file)).unwrap().command
            {
                Command::Demo(args) => args.demo_data,
                other => panic!("{other:?}"),
            };
        assert_eq!(data("data = \"real\"", &[]), Path::new("millrace-demo"));
        assert_eq!(data("data = \"real\"\ndemo-data = \"shown\"", &[]), Path::new("shown"));
        assert_eq!(data("demo-data = \"shown\"", &["--data", "here"]), Path::new("here"));
        let variables = known_variables(Cli::command().find_subcommand("demo").unwrap());
        assert!(variables.contains("MILLRACE_DEMO_DATA") && !variables.contains("MILLRACE_DATA"), "{variables:?}");
    }

    #[test]
    fn up_takes_the_settings_of_every_role() {
        let file = "position-wait = \"7s\"\nprojector-batch = 3\nparked-keys-limit = 4\nrelay-batch = 5\nno-command-topics = true";
        let Command::Up(args) = parse(&["up"], Some(file)).unwrap().command else { panic!("not up") };
        assert_eq!(args.query.settings().position_wait, std::time::Duration::from_secs(7));
        assert!(args.query.settings().deadline > args.query.settings().position_wait);
        let projector = args.projector.settings(2);
        assert_eq!((projector.batch, projector.parked_keys_limit, projector.partitions), (3, 4, 2));
        assert_eq!(args.relay.settings().batch, 5);
        assert!(args.command_topics.no_command_topics);
    }

    #[test]
    fn the_two_projections_listen_side_by_side() {
        let listen = |projection: &str, file| match parse(&["project", projection], file).unwrap().command {
            Command::Project(args) => args.listen().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!([listen("stock", None), listen("search", None)], ["127.0.0.1:8083", "127.0.0.1:8084"]);
        assert_eq!(listen("search", Some("listen = \"127.0.0.1:9\"")), "127.0.0.1:9");
    }

    #[test]
    fn help_shows_no_address_that_may_hold_a_password() {
        let file = "event-store = \"postgres://u:hunter2@db/x\"\nschema-registry = \"http://u:hunter2@r\"";
        for arguments in
            [&["up", "--help"][..], &["import", "products", "--help"], &["contracts", "register", "--help"]]
        {
            let help = parse(arguments, Some(file)).unwrap_err().to_string();
            assert!(help.contains("Usage") && !help.contains("hunter2"), "{help}");
        }
    }

    #[test]
    fn the_demo_refuses_a_rate_that_no_clock_has() {
        assert!(parse(&["demo", "--rate", "2000000000"], None).is_err());
        assert!(parse(&["demo", "--rate", "10000"], None).is_ok());
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named_with_what_was_meant() {
        let error = parse(&["serve"], Some("event_stor = \"sqlite:x\"")).unwrap_err().to_string();
        assert!(error.contains("event_stor") && error.contains("did you mean event-store?"), "{error}");
    }

    #[test]
    fn a_bad_value_of_the_file_is_blamed_on_the_file() {
        let error = parse(&["up"], Some("partitions = 0")).unwrap_err().to_string();
        assert!(error.contains("millrace.toml") && error.contains("partitions") && error.contains('0'), "{error}");
        let error = parse(&["up", "--partitions", "0"], Some("partitions = 3")).unwrap_err();
        assert!(matches!(error, Refused::Usage(_)), "{error}");
    }

    #[test]
    fn an_address_of_an_api_is_checked_before_it_is_asked() {
        let products = ["import", "products", "x.csv", "--map", "name=product", "--sku-from", "product"];
        for (command, flag) in [(&["status"][..], "--url"), (&["dead-letters", "list"], "--url"), (&products, "--to")] {
            for url in ["x", "localhost:8080", "httpx://h"] {
                let refused = parse(&[command, &[flag, url]].concat(), None);
                assert!(matches!(refused, Err(Refused::Usage(_))), "{command:?} {url}");
            }
            assert!(parse(&[command, &[flag, "http://h:1/base"]].concat(), None).is_ok(), "{command:?}");
        }
    }

    #[test]
    fn broken_toml_names_file_and_line() {
        let error = parse(&["up"], Some("a = = 1")).unwrap_err().to_string();
        assert!(error.contains("millrace.toml") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn an_unknown_variable_is_refused_and_the_test_servers_are_not_settings() {
        let command = Cli::command();
        let check = |name: &str| check_variables(&command, std::iter::once(name.to_owned()));
        assert!(check("MILLRACE_EVENT_STORE").is_ok());
        assert!(check("MILLRACE_TEST_KAFKA").is_ok());
        assert!(check("HOME").is_ok());
        let error = check("MILLRACE_EVENT_STOR").unwrap_err().to_string();
        assert!(error.contains("MILLRACE_EVENT_STORE?"), "{error}");
    }
}
