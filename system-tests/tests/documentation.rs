//! What the documents name is there: files, functions, spans and tests.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

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

#[test]
fn every_metric_that_operations_names_is_measured() {
    let sources = sources();
    let text = read("docs/operations.md");
    let named: Vec<&str> = quoted(&text).into_iter().filter(|name| name.starts_with("millrace_")).collect();
    assert!(named.len() >= 5, "{named:?}");
    for name in named {
        assert!(sources.iter().any(|(_, text)| text.contains(&format!("\"{name}\""))), "no metric {name}");
    }
}

/// What follows a key in the alarms' file, one per line.
fn alarm_lines<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

#[test]
fn every_alarm_measures_something_and_links_to_a_page() {
    let sources = sources();
    let alarms = read("deploy/alerts.yml");
    let names = alarm_lines(&alarms, "alert:");
    let pages = alarm_lines(&alarms, "runbook_url:");
    assert!(names.len() >= 8 && names.len() == pages.len(), "{names:?} {pages:?}");
    for page in pages {
        assert!(root().join(page).exists(), "{page}");
    }
    for expression in alarm_lines(&alarms, "expr:") {
        let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        let metrics: Vec<&str> =
            expression.split(|letter| !is_part(letter)).filter(|word| word.starts_with("millrace_")).collect();
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

#[test]
fn every_flag_that_operators_are_told_of_is_there() {
    let program: Vec<String> = files().into_iter().filter(|file| file.starts_with("millrace/src")).map(read).collect();
    let mut told = 0;
    for document in files().iter().filter(|file| *file == "docs/operations.md" || file.starts_with("docs/runbooks/")) {
        for words in quoted(&read(document))
            .into_iter()
            .filter(|words| words.starts_with("--") || words.starts_with("millrace "))
        {
            for flag in words.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
                let flag = flag.split(['=', '`', ',']).next().unwrap();
                let field = format!("pub {}: ", flag.replace('-', "_"));
                let named = format!("long = \"{flag}\"");
                let is_there = program.iter().any(|text| text.contains(&field) || text.contains(&named));
                assert!(is_there, "{document}: no flag --{flag}");
                told += 1;
            }
        }
    }
    assert!(told > 15, "the test no longer reads the documents: {told} flags");
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
