//! The shape of the library, checked in its source: who may use whom, and where the outside world is touched.
//!
//! It reads text, not syntax: a name in a comment is no use of it, a name in a string is. What is under `#[cfg(test)]` must
//! keep the layers too, but may read clocks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each layer and those it may use, lowest first. What is not here is not allowed.
const LAYERS: [(&str, &[&str]); 12] = [
    ("words", &[]),
    // The wording between daemon and command line; the control plane fills in its status.
    ("api", &["words"]),
    ("wire", &["words"]),
    ("sys", &["words"]),
    ("tunnel", &["words", "wire"]),
    ("channel", &["words", "wire"]),
    ("path", &["words", "wire"]),
    ("roster", &["words", "wire"]),
    ("node", &["words", "api", "wire", "tunnel", "channel", "path", "roster"]),
    ("dataplane", &["words", "wire", "channel", "path", "node"]),
    ("config", &["words", "api", "wire"]),
    // The one part of the data plane that does input and output.
    (WORKER, &["words", "wire", "channel", "path", "node", "sys"]),
];

/// Part of the layer `dataplane`, with a rule of its own.
const WORKER: &str = "dataplane::worker";

/// What may stand only in some places: the words, where they may stand, and why nowhere else.
const MARKED: [(&[&str], &[&str], &str); 5] = [
    (&["Instant::now", "SystemTime::now", ".elapsed()"], &["sys", WORKER], "time is an argument"),
    (
        &["getrandom", "OsRng", "rand::", "thread_rng"],
        &["words::key"],
        "randomness comes from one place",
    ),
    (
        &[
            "std::fs",
            " fs::",
            "File::",
            "OpenOptions",
            "UdpSocket",
            "TcpStream",
            "TcpListener",
            "UnixStream",
            "UnixListener",
            "UnixDatagram",
            "std::process",
            "std::env",
            "libc::",
            "nix::",
            "thread::spawn",
            "thread::sleep",
            "std::io::std",
        ],
        &["sys", WORKER],
        "input and output are somebody else's",
    ),
    (&["unsafe "], &["sys"], "every unsafe block is where syscalls are"),
    (
        &["tokio", "async fn", "async move", ".await", "println!", "print!("],
        &[],
        "the library neither waits nor prints",
    ),
];

/// A source file of the library.
struct Source {
    /// Below `src/`.
    path: PathBuf,
    /// Its module path, `dataplane::worker::ring`.
    module: Vec<String>,
    /// Its text without comments.
    text: String,
    /// The same up to its tests.
    product: String,
}

impl Source {
    fn read(root: &Path, file: &Path) -> Self {
        let path = file.strip_prefix(root).expect("below the root").to_owned();
        let mut module: Vec<String> =
            path.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
        let is_tests = module.last().is_some_and(|last| last == "tests");
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let text = without_comments(&fs::read_to_string(file).expect("a source file"));
        let product = match text.find("#[cfg(test)]") {
            _ if is_tests => String::new(),
            Some(tests) => text[..tests].to_owned(),
            None => text.clone(),
        };
        Self { path, module, text, product }
    }

    fn is_in(&self, place: &str) -> bool {
        let module = self.module.join("::");
        module == place || module.starts_with(&format!("{place}::"))
    }

    /// The most specific layer that it belongs to.
    fn layer(&self) -> Option<&'static str> {
        let names = LAYERS.iter().map(|(name, _)| *name);
        names.filter(|name| self.is_in(name)).max_by_key(|name| name.len())
    }
}

fn sources() -> Vec<Source> {
    fn walk(root: &Path, directory: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        for entry in entries {
            if entry.is_dir() {
                walk(root, &entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source::read(root, &entry));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.retain(|source| source.path != Path::new("lib.rs"));
    assert!(!found.is_empty());
    found
}

/// Line comments only; `://` begins none.
fn without_comments(text: &str) -> String {
    let strip = |line: &str| {
        let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
        comment.map_or(line, |(at, _)| &line[..at]).to_owned()
    };
    text.lines().map(|line| strip(line) + "\n").collect()
}

/// The modules at the root of the crate that a text names: behind `crate::`, alone or in braces, and behind enough
/// `super::` to be there.
fn used(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (at, token) in source.text.match_indices("crate::") {
        names_behind(&source.text[at + token.len()..], &mut found);
    }
    let up = "super::".repeat(source.module.len());
    for (at, token) in source.text.match_indices(&up) {
        names_behind(&source.text[at + token.len()..], &mut found);
    }
    found.retain(|name| !name.is_empty());
    found
}

fn names_behind(text: &str, found: &mut Vec<String>) {
    let name = |text: &str| -> String {
        let path = text.trim_start();
        path.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
    };
    let Some(group) = text.strip_prefix('{') else {
        found.push(name(text));
        return;
    };
    let mut depth = 1;
    found.push(name(group));
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => found.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

#[test]
fn every_module_is_a_layer() {
    for source in sources() {
        assert!(source.layer().is_some(), "src/{} is in no layer", source.path.display());
    }
}

#[test]
fn layers_use_only_those_below_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(own) = source.layer() else { continue };
        let (_, allowed) = LAYERS.iter().find(|(name, _)| *name == own).expect("found above");
        for path in used(&source) {
            let target = path.split("::").next().unwrap_or_default();
            let is_layer = LAYERS.iter().any(|(name, _)| *name == target);
            let root = own.split("::").next().unwrap_or_default();
            if is_layer && target != root && !allowed.contains(&target) {
                wrong.push(format!("src/{} ({own}) uses {path}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_layer_uses_a_later_one() {
    for (at, (name, allowed)) in LAYERS.iter().enumerate() {
        for used in *allowed {
            let place = LAYERS.iter().position(|(other, _)| other == used);
            assert!(place.is_some_and(|place| place < at), "{name} before {used}");
        }
    }
}

#[test]
fn the_world_is_touched_only_where_it_is_marked() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (words, places, why) in MARKED {
            if places.iter().any(|place| source.is_in(place)) {
                continue;
            }
            for word in words.iter().filter(|word| source.product.contains(**word)) {
                wrong.push(format!("src/{} has `{word}`: {why}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_library_depends_on_no_runtime() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table =
        fs::read_to_string(manifest).expect("a manifest").parse().expect("TOML");
    let dependencies = manifest["dependencies"].as_table().expect("a table");
    for runtime in ["tokio", "futures", "async-std", "mio", "smol", "russh"] {
        assert!(!dependencies.contains_key(runtime), "{runtime}");
    }
    // Cargo unifies features: in one binary with it, boringtun's clock stands still.
    assert!(!manifest.to_string().contains("mock-instant"));
}

#[test]
fn nothing_is_left_to_do() {
    for source in sources() {
        for mark in ["TODO", "FIXME", "XXX", "todo!("] {
            assert!(!source.text.contains(mark), "src/{} has {mark}", source.path.display());
        }
    }
}

#[test]
fn the_reader_of_this_test_can_read() {
    let source = |module: &[&str], text: &str| Source {
        path: PathBuf::new(),
        module: module.iter().map(|part| (*part).to_owned()).collect(),
        text: without_comments(text),
        product: String::new(),
    };
    let text = "use crate::{\n  node::{a, b::{c, d}},\n  wire, path::e::F,\n};\nfn f() { crate::sys::g() }";
    assert_eq!(used(&source(&["words"], text)), ["node::", "wire", "path::e::F", "sys::g"]);
    assert_eq!(used(&source(&["path", "x"], "use super::super::node::X;")), ["node::X"]);
    assert!(used(&source(&["path", "x"], "use super::route; // crate::node")).is_empty());
    let worker = source(&["dataplane", "worker", "ring"], "");
    assert_eq!(worker.layer(), Some(WORKER));
    assert_eq!(source(&["dataplane", "workers"], "").layer(), Some("dataplane"));
}
