//! What the documents name is there: files, functions, spans and tests.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files of the repository, by their paths from its root.
fn files() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "node_modules" {
                    walk(&path, found);
                }
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    found
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn sources() -> Vec<(String, String)> {
    let is_source = |path: &String| path.ends_with(".rs") || path.ends_with(".py");
    files().into_iter().filter(is_source).map(|path| (path.clone(), read(path))).collect()
}

#[test]
fn each_of_the_ten_stops_is_in_the_files_that_are_named() {
    let stops = read("telemetry/src/lib.rs");
    let all = files();
    let text = read("docs/architecture.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.chars().nth(2).is_some_and(|first| first.is_ascii_digit()))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 10);
    for row in rows {
        let stop = quoted(row[2])[0];
        assert!(stops.contains(&format!("\"{stop}\"")), "{stop} is no stop of telemetry::STOPS");
        let functions = quoted(row[5]);
        let mut folder = PathBuf::new();
        for named in quoted(row[4]) {
            // A later file is named from the folder of the first, or from one above it.
            let path = folder
                .ancestors()
                .map(|folder| folder.join(named).display().to_string())
                .find(|path| all.iter().any(|file| file == path || file.starts_with(path)))
                .unwrap_or_else(|| panic!("stop {stop}: {named} is not there"));
            if folder.as_os_str().is_empty() {
                folder = Path::new(&path).parent().unwrap().to_owned();
            }
            let texts: Vec<String> = all
                .iter()
                .filter(|file| **file == path || (path.ends_with('/') && file.starts_with(&path)))
                .map(read)
                .collect();
            let is_defined = |function: &&str| texts.iter().any(|text| text.contains(&format!("fn {function}")));
            assert!(functions.iter().any(is_defined), "stop {stop}: no {functions:?} in {path}");
        }
    }
    // Each is a span as well, by the same name.
    let sources = sources();
    for stop in quoted_in_list(&stops) {
        let span = format!("span!(\"{stop}\"");
        let with_parent = format!("&span, \"{stop}\"");
        assert!(
            sources.iter().any(|(_, text)| text.contains(&span) || text.contains(&with_parent)),
            "{stop} is no span"
        );
    }
}

fn quoted_in_list(text: &str) -> Vec<String> {
    let list = text.split("STOPS").nth(1).unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_file_and_test_that_the_invariants_name_is_there() {
    let all = files();
    let sources = sources();
    let text = read("docs/invariants.md");
    let mut named = 0;
    for name in quoted(&text) {
        if name.ends_with(".rs") || name.ends_with(".py") {
            assert!(all.iter().any(|file| file.ends_with(name)), "{name} is not there");
            named += 1;
        } else if name.contains('_') && name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') {
            let function = format!("fn {name}(");
            assert!(sources.iter().any(|(_, text)| text.contains(&function)), "no test {name}");
            named += 1;
        }
    }
    assert!(named > 10, "the test no longer reads the document: {named} names");
}

/// What users and operators read. Decision records are of their day.
fn documents() -> Vec<(String, String)> {
    let is_told = |path: &String| {
        let is_page = path.starts_with("docs/") && !path.starts_with("docs/adr/");
        path.ends_with(".md") && (is_page || path == "README.md" || path == "CHANGELOG.md")
    };
    files().into_iter().filter(is_told).map(|path| (path.clone(), read(path))).collect()
}

/// The words of a text that begin so, up to the first character that `is_part` is false for.
fn words<'t>(text: &'t str, beginning: &str, is_part: fn(char) -> bool) -> Vec<&'t str> {
    let begins = text.match_indices(beginning).filter(|(at, _)| !text[..*at].ends_with(is_part)).map(|(at, _)| at);
    begins.map(|at| text[at..].split(|letter| !is_part(letter)).next().unwrap()).collect()
}

fn is_of_a_metric(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter == '_'
}

fn is_of_a_flag(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '-'
}

#[test]
fn every_metric_that_is_told_of_is_measured() {
    let sources = sources();
    let mut told = 0;
    for (document, text) in documents() {
        for name in words(&text, "millrace_", is_of_a_metric) {
            let is_there = sources.iter().any(|(_, text)| text.contains(&format!("\"{name}\"")));
            assert!(is_there, "{document}: no metric {name}");
            told += 1;
        }
    }
    assert!(told > 30, "the test no longer reads the documents: {told} metrics");
}

#[test]
fn every_metric_has_a_help_line_in_every_process() {
    let wiring = read("millrace/src/roles/process.rs");
    let measures = |path: &String| !path.starts_with("system-tests/") && !path.starts_with("benches/");
    let mut described = 0;
    for (path, text) in sources().into_iter().filter(|(path, _)| measures(path)) {
        for (at, _) in text.match_indices(": &str = \"millrace_") {
            let value = text[at..].split('"').nth(1).unwrap();
            if !value.chars().all(is_of_a_metric) {
                continue;
            }
            let constant = text[..at].rsplit(' ').next().unwrap();
            let is_described = text.split("describe_").skip(1).any(|rest| {
                let argument = rest.split_once("!(").map(|(_, arguments)| arguments.trim_start());
                argument.is_some_and(|argument| argument.starts_with(&format!("{constant},")))
            });
            assert!(is_described, "{path}: {constant} is not described");
            described += 1;
        }
        if text.contains("pub fn describe_metrics()") {
            let folder = path.split("/src/").next().unwrap().rsplit('/').next().unwrap().replace('-', "_");
            let is_called = words(&wiring, &format!("{folder}::"), |letter| is_of_a_metric(letter) || letter == ':');
            assert!(is_called.iter().any(|call| call.ends_with("::describe_metrics")), "nobody describes {folder}");
        }
    }
    assert!(described > 40, "the test no longer reads the sources: {described} metrics");
}

/// What follows a key in the alarms' file, one per line.
fn alarm_lines<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

#[test]
fn every_alarm_measures_something_and_links_to_a_page_that_names_it() {
    let sources = sources();
    let alarms = read("deploy/alerts.yml");
    let names = alarm_lines(&alarms, "alert:");
    let pages = alarm_lines(&alarms, "runbook_url:");
    assert!(names.len() >= 8 && names.len() == pages.len(), "{names:?} {pages:?}");
    for (name, page) in names.iter().zip(pages) {
        assert!(read(page).contains(&format!("`{name}`")), "{page} does not name its alarm {name}");
    }
    for expression in alarm_lines(&alarms, "expr:") {
        let metrics = words(expression, "millrace_", is_of_a_metric);
        assert!(!metrics.is_empty(), "{expression}");
        for name in metrics {
            assert!(sources.iter().any(|(_, text)| text.contains(&format!("\"{name}\""))), "no metric {name}");
        }
    }
}

#[test]
fn every_fault_has_a_page_that_says_what_to_do_and_what_not() {
    let alarms = read("deploy/alerts.yml");
    let known = alarm_lines(&alarms, "alert:");
    let index = read("docs/runbooks/README.md");
    for fault in 1..=28 {
        let start = format!("docs/runbooks/{fault:02}-");
        let page = files().into_iter().find(|file| file.starts_with(&start)).unwrap_or_else(|| panic!("no {start}"));
        let text = read(&page);
        assert!(text.contains(&format!("\nFault {fault}. ")), "{page}");
        for part in ["What one sees", "What it means", "What to do", "What not to do"] {
            assert!(text.contains(&format!("\n## {part}\n")), "{page} lacks: {part}");
        }
        assert!(index.contains(page.trim_start_matches("docs/runbooks/")), "{page} is not in the index");
        let first = text.lines().find(|line| line.starts_with("Fault ")).unwrap();
        for alarm in quoted(first).into_iter().filter(|word| word.chars().all(char::is_alphabetic)) {
            assert!(known.contains(&alarm), "{page}: no alarm {alarm}");
        }
    }
}

/// Flags of cargo, docker and the project's own harness.
const FLAGS_OF_OTHERS: [&str; 9] =
    ["release", "build", "base", "threads", "guard-off", "minutes", "slack", "reads", "sample"];

#[test]
fn every_flag_that_is_told_of_is_there() {
    let program: Vec<String> = files().into_iter().filter(|file| file.starts_with("millrace/src")).map(read).collect();
    let (mut told, mut of_others) = (0, BTreeSet::new());
    for (document, text) in documents() {
        for flag in words(&text, "--", is_of_a_flag).into_iter().map(|word| word.trim_matches('-')) {
            if flag.is_empty() {
                continue;
            }
            let field = format!("pub {}: ", flag.replace('-', "_"));
            let named = format!("long = \"{flag}\"");
            let is_there = program.iter().any(|text| text.contains(&field) || text.contains(&named));
            if !is_there {
                assert!(FLAGS_OF_OTHERS.contains(&flag), "{document}: no flag --{flag}");
                of_others.insert(flag.to_owned());
            }
            told += 1;
        }
    }
    assert!(told > 150, "the test no longer reads the documents: {told} flags");
    for flag in FLAGS_OF_OTHERS {
        assert!(of_others.contains(flag), "--{flag} is told of nowhere, or is a flag of millrace");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in files().iter().filter(|file| file.ends_with(".md")) {
        let text = read(document);
        let folder = Path::new(document).parent().unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            assert!(root().join(folder).join(link).exists(), "{document}: {link}");
        }
    }
}
