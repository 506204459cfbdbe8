//! The container files are not run here, so what can be held without an engine is: every setting that they name exists.
//! An unknown `MILLRACE_*` variable would stop each container at its start.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::path::Path;

const NAMED_IN: [&str; 2] = ["docker-compose.yml", "deploy/Dockerfile"];

fn settings_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("MILLRACE_")).collect()
}

fn read_sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// The flags of the command line that can be given by variable, from its source.
fn known_settings(command_line: &str) -> BTreeSet<&str> {
    command_line.split("env = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn container_files_name_only_known_settings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command_line = String::new();
    read_sources(&root.join("millrace/src"), &mut command_line);
    let known = known_settings(&command_line);
    for file in NAMED_IN {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let named = settings_in(&text);
        assert!(named.contains("MILLRACE_LISTEN"), "{file} is not read");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names settings that millrace does not have: {unknown:?}");
    }
}

#[test]
fn an_unknown_setting_is_found() {
    let known = known_settings("#[arg(long, env = \"MILLRACE_LISTEN\")] a, #[arg(env = \"MILLRACE_DATA\", long)] b");
    assert_eq!(known, BTreeSet::from(["MILLRACE_DATA", "MILLRACE_LISTEN"]));
    let named = settings_in("A: ${MILLRACE_LISTEN:-x}\nMILLRACE_LISTN: y # millrace:local");
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), [&"MILLRACE_LISTN"]);
}
