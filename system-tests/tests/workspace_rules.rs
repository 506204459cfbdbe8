//! What the workspace promises about itself, read from `cargo metadata` and the files: who may use whom, which licences
//! come in, one TLS stack, no oversized file, one lint policy.
//!
//! Each rule is a function from plain data to a list of violations, so that it can be shown a workspace that breaks it:
//! a rule that never fails holds nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Who may use whom. [`SHARED`] may be used by all of these, [`FREE`] may use anything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("telemetry", &[]),
    ("resilience", &[]),
    ("domain", &[]),
    ("event-log", &[]),
    ("read-models", &[]),
    ("event-store", &["domain"]),
    ("command-api", &["domain", "event-store", "event-log"]),
    ("outbox-relay", &["event-store", "event-log"]),
    ("projectors", &["event-log", "read-models"]),
    ("query-api", &["read-models"]),
    ("audit", &["event-store", "event-log", "read-models", "projectors"]),
    ("replay", &["projectors", "read-models", "event-log"]),
    (
        "millrace",
        &[
            "domain",
            "event-log",
            "read-models",
            "event-store",
            "command-api",
            "outbox-relay",
            "projectors",
            "query-api",
            "audit",
            "replay",
        ],
    ),
];
const SHARED: &[&str] = &["schemas", "telemetry", "resilience"];
const FREE: &[&str] = &["benches", "faults", "fuzz", "guards", "simulator", "system-tests"];

/// A third-party crate and the only ones of ours that may name it (beside [`FREE`]).
const KNOWN_ONLY_TO: &[(&str, &[&str])] = &[
    ("rdkafka", &["event-log"]),
    ("tokio-postgres", &["event-store"]),
    ("postgres-native-tls", &["event-store"]),
    ("redis", &["read-models"]),
    ("tantivy", &["read-models"]),
    ("rusqlite", &["event-store", "event-log", "read-models"]),
];

/// The pure core, and what would bring it I/O, a scheduler or chance. Its tests may use them.
const PURE: &[&str] = &["schemas", "domain"];
const IMPURE: &[&str] =
    &["tokio", "futures", "reqwest", "axum", "rand", "fastrand", "tempfile", "metrics", "telemetry", "resilience"];

/// Permissive licences: nothing is asked of a program that links the crate but to name its authors.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// TLS stacks beside OpenSSL, by the crates that hold their cryptography.
const OTHER_TLS: &[&str] =
    &["rustls", "ring", "aws-lc-rs", "aws-lc-sys", "aws-lc-fips-sys", "boring", "boring-sys", "s2n-tls", "mbedtls"];

const MOST_LINES: usize = 600;

/// An edge of the dependency graph: who uses, who is used, and how.
type Use = (String, String, DependencyKind);

// === The rules ===

fn forbidden_uses(uses: &[Use], ours: &BTreeSet<String>) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut violations: Vec<String> = ours
        .iter()
        .filter(|name| !FREE.contains(&name.as_str()) && !table.contains_key(name.as_str()))
        .map(|name| format!("{name} is in no row of the table"))
        .collect();
    for (user, used, _) in uses.iter().filter(|(_, used, _)| ours.contains(used)) {
        let is_leaf = SHARED.contains(&user.as_str());
        let is_shared = SHARED.contains(&used.as_str()) && !is_leaf;
        let is_listed = table.get(user.as_str()).is_some_and(|row| row.contains(&used.as_str()));
        if !is_shared && !is_listed && !FREE.contains(&user.as_str()) {
            violations.push(format!("{user} may not use {used}"));
        }
    }
    violations
}

fn misplaced_libraries(uses: &[Use]) -> Vec<String> {
    let owners: BTreeMap<&str, &[&str]> = KNOWN_ONLY_TO.iter().copied().collect();
    let mut violations = Vec::new();
    for (user, used, kind) in uses.iter().filter(|(user, _, _)| !FREE.contains(&user.as_str())) {
        if let Some(owners) = owners.get(used.as_str())
            && !owners.contains(&user.as_str())
        {
            violations.push(format!("{user} uses {used}, which only {} may", owners.join(", ")));
        }
        let is_pure = PURE.contains(&user.as_str()) && *kind != DependencyKind::Development;
        if is_pure && IMPURE.contains(&used.as_str()) {
            violations.push(format!("{user} is pure and uses {used}"));
        }
    }
    violations
}

/// `packages` are names with versions and the licence that each one states.
fn refused_licences(packages: &[(String, Option<String>)]) -> Vec<String> {
    let refusal = |(package, licence): &(String, Option<String>)| match licence {
        None => Some(format!("{package} states no licence")),
        Some(licence) => match is_permissive(licence) {
            Ok(true) => None,
            Ok(false) => Some(format!("{package} is under {licence}")),
            Err(problem) => Some(format!("{package}: licence {licence:?} cannot be read: {problem}")),
        },
    };
    packages.iter().filter_map(refusal).collect()
}

/// Whether an SPDX expression can be satisfied with [`LICENCES`] alone. `A/B` is crates.io's old way to say `A OR B`.
fn is_permissive(expression: &str) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let permissive = any_of(&mut words)?;
    match words.pop() {
        None => Ok(permissive),
        Some(word) => Err(format!("{word:?} is not expected there")),
    }
}

/// `words` is a stack: the next word is its last.
fn any_of(words: &mut Vec<&str>) -> Result<bool, String> {
    let mut permissive = all_of(words)?;
    while words.pop_if(|word| *word == "OR").is_some() {
        permissive |= all_of(words)?;
    }
    Ok(permissive)
}

fn all_of(words: &mut Vec<&str>) -> Result<bool, String> {
    let mut permissive = one(words)?;
    while words.pop_if(|word| *word == "AND").is_some() {
        permissive &= one(words)?;
    }
    Ok(permissive)
}

fn one(words: &mut Vec<&str>) -> Result<bool, String> {
    match words.pop() {
        Some("(") => {
            let permissive = any_of(words)?;
            words.pop_if(|word| *word == ")").map(|_| permissive).ok_or_else(|| "a bracket is not closed".to_owned())
        }
        Some(word @ (")" | "OR" | "AND" | "WITH")) => Err(format!("{word:?} is not expected there")),
        Some(licence) if words.pop_if(|word| *word == "WITH").is_some() => {
            let exception = words.pop().ok_or("WITH what?")?;
            Ok(LICENCES.contains(&format!("{licence} WITH {exception}").as_str()))
        }
        Some(licence) => Ok(LICENCES.contains(&licence)),
        None => Err("it ends too early".to_owned()),
    }
}

/// `linked` are the crates of the programs themselves, tests left out.
fn tls_stacks(linked: &BTreeSet<String>) -> Vec<String> {
    linked.iter().filter(|name| OTHER_TLS.contains(&name.as_str())).cloned().collect()
}

fn oversized_files(root: &Path) -> std::io::Result<Vec<String>> {
    let mut violations = Vec::new();
    for file in rust_files(root)? {
        let lines = std::fs::read_to_string(&file)?.lines().count();
        if lines > MOST_LINES {
            violations.push(format!("{} has {lines} lines", file.display()));
        }
    }
    Ok(violations)
}

/// `manifest` is the text of a crate's Cargo.toml.
fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == "workspace = true")
}

/// `sources` is all the code of a crate. A crate that is named nowhere costs every build and serves nobody.
fn unused_dependencies(user: &str, dependencies: &[String], sources: &str) -> Vec<String> {
    let is_named = |dependency: &&String| {
        let name = dependency.replace('-', "_");
        let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
        sources.match_indices(&name).any(|(at, _)| {
            let before = sources[..at].chars().next_back();
            let after = sources[at + name.len()..].chars().next();
            !before.is_some_and(is_letter) && after.is_some_and(|after| "!:;,} ".contains(after))
        })
    };
    let unused = dependencies.iter().filter(|dependency| !is_named(dependency));
    unused.map(|dependency| format!("{user} names {dependency} nowhere")).collect()
}

/// A feature that is on unless somebody says otherwise, or a dependency that asks for it: `defaults` are the features of
/// each crate of ours that its default turns on, `asked` those that its dependencies ask for.
fn unguarded_by_itself(defaults: &[(String, Vec<String>)], asked: &[(String, Vec<String>)]) -> Vec<String> {
    let is_unguarded = |feature: &String| feature.split('/').next_back() == Some("unguarded");
    let by_default = defaults.iter().filter(|(_, features)| features.iter().any(is_unguarded));
    let by_use = asked.iter().filter(|(_, features)| features.iter().any(is_unguarded));
    let by_default = by_default.map(|(name, _)| format!("{name} is without guards by default"));
    by_default.chain(by_use.map(|(name, _)| format!("{name} asks for a build without guards"))).collect()
}

// === What they are asked about ===

fn workspace() -> Metadata {
    // Only what is built here: crates of other systems were never downloaded. Locked, so that nothing is resolved anew.
    let options = ["--locked", "--filter-platform", "host-tuple"].map(str::to_owned);
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(options)
        .exec()
        .expect("cargo metadata answers")
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the crate lies in the workspace").to_owned()
}

fn our_names(workspace: &Metadata) -> BTreeSet<String> {
    workspace.workspace_packages().iter().map(|package| package.name.to_string()).collect()
}

/// Every use that a crate of ours declares, of whatever kind and for whatever platform.
fn declared_uses(workspace: &Metadata) -> Vec<Use> {
    let uses = workspace.workspace_packages().into_iter().flat_map(|package| {
        package.dependencies.iter().map(|used| (package.name.to_string(), used.name.clone(), used.kind))
    });
    uses.collect()
}

/// Names of the crates that are reached from ours without going through test dependencies.
fn linked_crates(workspace: &Metadata) -> BTreeSet<String> {
    let graph = workspace.resolve.as_ref().expect("cargo metadata resolves");
    let nodes: BTreeMap<_, _> = graph.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut waiting: Vec<_> = workspace.workspace_members.iter().collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if reached.insert(id) {
            let is_linked = |kind: &cargo_metadata::DepKindInfo| kind.kind != DependencyKind::Development;
            let uses = nodes[id].deps.iter().filter(|used| used.dep_kinds.iter().any(is_linked));
            waiting.extend(uses.map(|used| &used.pkg));
        }
    }
    reached.into_iter().map(|id| workspace[id].name.to_string()).collect()
}

fn third_party_licences(workspace: &Metadata) -> Vec<(String, Option<String>)> {
    let graph = workspace.resolve.as_ref().expect("cargo metadata resolves");
    let packages = graph.nodes.iter().filter(|node| !workspace.workspace_members.contains(&node.id));
    let packages = packages.map(|node| &workspace[&node.id]);
    packages.map(|package| (format!("{} {}", package.name, package.version), package.license.clone())).collect()
}

/// All Rust files below a folder, build output and hidden folders left out.
fn rust_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                files.extend(rust_files(&path)?);
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n  {}", violations.join("\n  "));
}

// === The workspace keeps them ===

#[test]
fn crates_use_only_what_the_design_lets_them() {
    let workspace = workspace();
    let uses = declared_uses(&workspace);
    assert!(uses.iter().any(|(user, used, _)| user == "millrace" && used == "schemas"), "the uses are not read");
    assert_none(forbidden_uses(&uses, &our_names(&workspace)));
}

#[test]
fn each_library_is_known_only_to_its_crate() {
    let uses = declared_uses(&workspace());
    assert!(uses.iter().any(|(user, used, _)| user == "event-log" && used == "rdkafka"), "the uses are not read");
    assert_none(misplaced_libraries(&uses));
}

#[test]
fn third_party_licences_are_permissive() {
    let packages = third_party_licences(&workspace());
    assert!(packages.len() > 100, "only {} packages are read", packages.len());
    assert_none(refused_licences(&packages));
}

#[test]
fn openssl_is_the_only_tls_stack() {
    let linked = linked_crates(&workspace());
    assert!(linked.contains("openssl-sys"), "the graph is not read");
    assert_none(tls_stacks(&linked));
}

#[test]
fn no_file_is_too_long_to_read() {
    assert!(rust_files(&root()).unwrap().contains(&root().join("millrace/src/main.rs")), "the files are not found");
    assert_none(oversized_files(&root()).unwrap());
}

#[test]
fn every_crate_inherits_the_lints() {
    let workspace = workspace();
    let packages = workspace.workspace_packages();
    let strays =
        packages.iter().filter(|package| !inherits_lints(&std::fs::read_to_string(&package.manifest_path).unwrap()));
    assert_none(strays.map(|package| format!("{} has lints of its own", package.name)).collect());
}

#[test]
fn every_dependency_is_used() {
    let workspace = workspace();
    let mut violations = Vec::new();
    for package in workspace.workspace_packages() {
        let folder = package.manifest_path.parent().unwrap();
        let read = |file: PathBuf| std::fs::read_to_string(file).unwrap();
        let sources: String = rust_files(folder.as_std_path()).unwrap().into_iter().map(read).collect();
        let names: Vec<String> = package.dependencies.iter().map(|used| used.name.clone()).collect();
        violations.extend(unused_dependencies(&package.name, &names, &sources));
    }
    assert_none(violations);
}

#[test]
fn no_build_is_without_guards_unless_it_is_asked_for() {
    let workspace = workspace();
    let packages = workspace.workspace_packages();
    let has_switch = packages.iter().filter(|package| package.features.contains_key("unguarded")).count();
    assert!(has_switch >= 2, "the features are not read");
    let defaults = packages.iter().map(|package| {
        let on = package.features.get("default").cloned().unwrap_or_default();
        // A default may name a feature that names another.
        let named = on.iter().filter_map(|feature| package.features.get(feature)).flatten().cloned();
        (package.name.to_string(), on.iter().cloned().chain(named).collect())
    });
    let asked = packages.iter().map(|package| {
        (package.name.to_string(), package.dependencies.iter().flat_map(|used| used.features.clone()).collect())
    });
    assert_none(unguarded_by_itself(&defaults.collect::<Vec<_>>(), &asked.collect::<Vec<_>>()));
}

// === And are known to fail ===

#[test]
fn a_build_without_guards_is_found() {
    let of = |features: &[&str]| ("a".to_owned(), features.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_none(unguarded_by_itself(&[of(&["default"])], &[of(&["derive"])]));
    assert_eq!(unguarded_by_itself(&[of(&["unguarded"])], &[]).len(), 1);
    assert_eq!(unguarded_by_itself(&[of(&["resilience/unguarded"])], &[]).len(), 1);
    assert_eq!(unguarded_by_itself(&[], &[of(&["unguarded"])]).len(), 1);
}

#[test]
fn a_dependency_that_nobody_names_is_found() {
    let names = ["lru".to_owned(), "tokio-util".to_owned()];
    assert!(unused_dependencies("a", &names, "use lru::LruCache;\nuse tokio_util::sync;").is_empty());
    assert_eq!(unused_dependencies("a", &names, "use lru::LruCache; fn xtokio_util() {}").len(), 1);
}

fn uses(list: &[(&str, &str)]) -> Vec<Use> {
    list.iter().map(|(user, used)| ((*user).to_owned(), (*used).to_owned(), DependencyKind::Normal)).collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_use_against_the_table_is_found() {
    let ours = names(&["schemas", "telemetry", "domain", "event-log", "query-api", "millrace", "benches"]);
    let allowed = [("domain", "schemas"), ("query-api", "telemetry"), ("millrace", "domain"), ("benches", "millrace")];
    assert_none(forbidden_uses(&uses(&allowed), &ours));
    for (user, used) in [
        ("query-api", "event-log"),
        ("domain", "event-log"),
        ("schemas", "telemetry"),
        ("telemetry", "schemas"),
        ("domain", "millrace"),
        ("millrace", "benches"),
    ] {
        assert_eq!(forbidden_uses(&uses(&[(user, used)]), &ours), [format!("{user} may not use {used}")]);
    }
    assert_eq!(forbidden_uses(&[], &names(&["helpers"])), ["helpers is in no row of the table"]);
}

#[test]
fn a_library_in_the_wrong_crate_is_found() {
    assert_none(misplaced_libraries(&uses(&[
        ("event-log", "rdkafka"),
        ("system-tests", "rdkafka"),
        ("millrace", "tokio"),
    ])));
    for (user, used) in [
        ("projectors", "rdkafka"),
        ("command-api", "tokio-postgres"),
        ("query-api", "redis"),
        ("query-api", "tantivy"),
        ("projectors", "rusqlite"),
        ("domain", "tokio"),
    ] {
        assert_eq!(misplaced_libraries(&uses(&[(user, used)])).len(), 1, "{user} uses {used}");
    }
    let in_tests = ("domain".to_owned(), "rand".to_owned(), DependencyKind::Development);
    assert_none(misplaced_libraries(&[in_tests]));
}

#[test]
fn a_licence_that_binds_is_found() {
    for permissive in [
        "MIT",
        "MIT/Apache-2.0",
        "Apache-2.0 / MIT / MPL-2.0",
        "LGPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
        "MIT OR GPL-3.0-only AND MPL-2.0",
    ] {
        assert_eq!(is_permissive(permissive), Ok(true), "{permissive}");
    }
    for binding in [
        "GPL-3.0-only",
        "MPL-2.0",
        "MIT AND LGPL-3.0-only",
        "(MIT OR Apache-2.0) AND MPL-2.0",
        "(MIT OR Apache-2.0) AND (GPL-2.0-only OR AGPL-3.0-only)",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "MIT WITH unheard-of",
        "mit",
    ] {
        assert_eq!(is_permissive(binding), Ok(false), "{binding}");
    }
    for unreadable in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "OR MIT", "MIT WITH"] {
        assert!(is_permissive(unreadable).is_err(), "{unreadable}");
    }
    let packages = [
        ("a 1".to_owned(), Some("MIT".to_owned())),
        ("b 2".to_owned(), Some("LGPL-3.0-only".to_owned())),
        ("c 3".to_owned(), None),
    ];
    assert_eq!(refused_licences(&packages), ["b 2 is under LGPL-3.0-only", "c 3 states no licence"]);
}

#[test]
fn a_second_tls_stack_is_found() {
    assert_none(tls_stacks(&names(&["openssl-sys", "rustls-pki-types"]))); // types of certificates, no cryptography
    assert_eq!(tls_stacks(&names(&["openssl-sys", "rustls", "ring", "serde"])), ["ring", "rustls"]);
}

#[test]
fn an_oversized_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("src/deep");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("right.rs"), "\n".repeat(MOST_LINES)).unwrap();
    assert_none(oversized_files(folder.path()).unwrap());
    std::fs::write(deep.join("long.rs"), "\n".repeat(MOST_LINES + 1)).unwrap();
    let violations = oversized_files(folder.path()).unwrap();
    assert_eq!(violations.len(), 1);
    assert!(violations[0].ends_with("long.rs has 601 lines"), "{violations:?}");
}

#[test]
fn a_crate_with_lints_of_its_own_is_found() {
    assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
    assert!(!inherits_lints("[package]\nname = \"a\"\n"));
    assert!(!inherits_lints("[lints]\nworkspace = false\n"));
    assert!(!inherits_lints("[lints.clippy]\nall = \"allow\"\n[dependencies]\nworkspace = true\n"));
    assert!(!inherits_lints("[lints]\n[dependencies]\nworkspace = true\n"));
}
