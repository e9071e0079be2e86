//! The rooms of `src` and the arrows between them, read from the paths that its files name: an arrow
//! points down, and no two files need each other.
//!
//! A file and the folder of its name are one: what is in the folder is part of what the file is about,
//! and may name it and be named by it. Everything else is below what names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of each crate, top floor first: a file may name what is in its own room and below.
/// Rooms of one floor do not need each other.
const FLOORS: [(&str, &[&str]); 3] = [
    (
        "warmhop-core",
        &[
            "affinity health",
            "app keep route scale session",
            "view",
            "config rank version",
            "cookie ids matching octets own_id problem queue",
        ],
    ),
    (
        "warmhop",
        &[
            "fuzzing", "admin", "mesh", "adapters", "front", "care", "request", "app", "hop",
            "sessions", "links", "error", "observe", "identity", "http",
        ],
    ),
    (
        "warmhop-cli",
        &[
            "fuzzing lb setup",
            "operate run",
            "config",
            "child",
            "cert otlp redis",
            "host",
            "failure",
        ],
    ),
];

/// A file by its path below `src`, without `.rs` and `/mod`.
type File = String;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder that can be read") {
        let path = entry.expect("an entry that can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// A file without its tests and comments, and what it has to do with others.
struct Source {
    code: String,
    /// The modules that it declares.
    children: Vec<String>,
    /// What it imports, by name: absolute paths.
    imports: BTreeMap<String, Vec<String>>,
}

impl Source {
    fn read(file: &str, path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a file that can be read");
        let text = text.split("\nmod tests {").next().unwrap_or_default();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<Vec<_>>().join("\n");
        let declared = |line: &str| {
            let name = line.strip_suffix(';')?.rsplit_once("mod ")?.1;
            Some(name.to_owned())
        };
        let children = code.lines().filter_map(declared).collect();
        let mut source = Self { code, children, imports: BTreeMap::new() };
        let begins = source.code.match_indices("use ").filter(|(at, _)| {
            let line = source.code[..*at].rsplit('\n').next().unwrap_or_default();
            line.is_empty() || line.starts_with("pub")
        });
        let imported = begins.flat_map(|(at, word)| paths_at(&source.code[at + word.len()..]));
        let imports: Vec<_> = imported.filter_map(|path| source.absolute(file, &path)).collect();
        for path in imports {
            source.imports.extend(path.last().cloned().map(|name| (name, path)));
        }
        source
    }

    /// Every path that it names, from the crate's root on.
    fn named(&self, file: &str) -> Vec<Vec<String>> {
        let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let mut named = Vec::new();
        for (end, _) in self.code.match_indices("::") {
            let before = self.code[..end].trim_end_matches(is_of_name);
            if !before.ends_with(':') {
                let paths = paths_at(&self.code[before.len()..]);
                named.extend(paths.iter().filter_map(|path| self.absolute(file, path)));
            }
        }
        named
    }

    /// A path in `file`, from the crate's root on; `None` where it leads to another crate.
    fn absolute(&self, file: &str, path: &str) -> Option<Vec<String>> {
        let mut at: Vec<String> = file.split('/').map(str::to_owned).collect();
        let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
        match *parts.peek()? {
            "crate" => at.clear(),
            "self" => {}
            "super" => _ = at.pop(),
            child if self.children.iter().any(|it| it == child) => at.push(child.to_owned()),
            _ => return None,
        }
        for part in parts.skip(1) {
            match part {
                "super" => _ = at.pop(),
                "self" => {}
                part => at.push(part.to_owned()),
            }
        }
        Some(at)
    }
}

/// The paths that `text` begins with: one, or several where it has braces.
fn paths_at(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let (head, rest) = text.split_at(end.unwrap_or(text.len()));
    if !head.ends_with("::") || !rest.starts_with('{') {
        return vec![head.to_owned()];
    }
    let mut paths = Vec::new();
    let (mut depth, mut begin) = (0, 1);
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 1 => {
                let part = rest[begin..at].trim();
                let inner = paths_at(part).into_iter().filter(|path| !path.is_empty());
                paths.extend(inner.map(|path| format!("{head}{path}")));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    paths
}

/// The file that a path leads to, by way of what files pass on.
fn found(sources: &BTreeMap<File, Source>, path: &[String]) -> Option<File> {
    let mut path = path.to_vec();
    // As often as a name may be passed on.
    for _ in 0..8 {
        let length =
            (0..=path.len()).rev().find(|n| sources.contains_key(&path[..*n].join("/")))?;
        let file = path[..length].join("/");
        let next = path.get(length).and_then(|name| sources[&file].imports.get(name));
        match next {
            Some(next) if *next != path => {
                path = next.iter().chain(path.iter().skip(length + 1)).cloned().collect();
            }
            _ => return Some(file),
        }
    }
    None
}

/// What each file of a crate names of the others, its tests and the model of a session aside.
fn arrows(of_crate: &str) -> BTreeMap<File, BTreeSet<File>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of_crate).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let name = |path: &Path| {
        let text = path.strip_prefix(&src).expect("it is below src").with_extension("");
        let text = text.to_str().expect("names are ASCII").replace('\\', "/");
        let text = text.strip_suffix("/mod").unwrap_or(&text);
        // The root is what `crate` names.
        if text == "lib" { String::new() } else { text.to_owned() }
    };
    let is_aside = |part: &str| matches!(part, "tests" | "model" | "main");
    let files = paths.iter().map(|path| (name(path), path));
    let sources: BTreeMap<File, Source> = files
        .filter(|(file, _)| !file.split('/').any(is_aside))
        .map(|(file, path)| (file.clone(), Source::read(&file, path)))
        .collect();
    let mut arrows: BTreeMap<File, BTreeSet<File>> = BTreeMap::new();
    for (file, source) in sources.iter().filter(|(file, _)| !file.is_empty()) {
        let named = source.named(file).into_iter().filter_map(|path| found(&sources, &path));
        arrows.entry(file.clone()).or_default().extend(named.filter(|to| !are_one(file, to)));
    }
    arrows
}

/// Whether one of two files is part of what the other is about.
fn are_one(one: &str, other: &str) -> bool {
    let is_in = |inner: &str, outer: &str| {
        outer.is_empty()
            || inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    is_in(one, other) || is_in(other, one)
}

/// The room that a file is in.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap_or_default()
}

#[test]
fn every_arrow_points_down() {
    let mut wrong = Vec::new();
    for (of_crate, floors) in FLOORS {
        let floor = |file: &str| {
            let floor = floors.iter().position(|it| it.split(' ').any(|it| it == room(file)));
            floor.unwrap_or_else(|| panic!("{of_crate}: give `{}` a floor", room(file)))
        };
        for (from, names) in arrows(of_crate) {
            let others = names.iter().filter(|to| room(to) != room(&from));
            let not_below = others.filter(|to| floor(to) <= floor(&from));
            wrong.extend(not_below.map(|to| format!("{of_crate}: {from} -> {to}")));
        }
    }
    assert!(wrong.is_empty(), "what both need belongs below both:\n{}", wrong.join("\n"));
}

#[test]
fn no_two_files_need_each_other() {
    for (of_crate, _) in FLOORS {
        let mut arrows = arrows(of_crate);
        let in_circles = in_circles(&arrows);
        arrows.retain(|from, _| in_circles.contains(from));
        arrows.values_mut().for_each(|names| names.retain(|to| in_circles.contains(to)));
        assert!(arrows.is_empty(), "{of_crate}: what both need belongs below both: {arrows:#?}");
    }
}

#[test]
fn no_two_folders_need_each_other() {
    for (of_crate, _) in FLOORS {
        let mut between: BTreeMap<File, BTreeSet<File>> = BTreeMap::new();
        for (from, names) in arrows(of_crate) {
            let from = folder(&from);
            let others = names.iter().map(|to| folder(to)).filter(|to| !are_one(&from, to));
            between.entry(from.clone()).or_default().extend(others);
        }
        let in_circles = in_circles(&between);
        between.retain(|from, _| in_circles.contains(from));
        between.values_mut().for_each(|names| names.retain(|to| in_circles.contains(to)));
        assert!(between.is_empty(), "{of_crate}: what both need belongs below both: {between:#?}");
    }
}

/// The folder that a file below a room is in, with the file of the folder's name; else the file.
fn folder(file: &str) -> File {
    let parts: Vec<&str> = file.split('/').take(2).collect();
    parts.join("/")
}

#[test]
fn no_file_is_longer_than_may_be() {
    const LINES_MAX: usize = 800;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths = Vec::new();
    for part in ["crates", "examples", "testbed"] {
        sources(&root.join(part), &mut paths);
    }
    assert!(paths.len() > 400, "only {} files were found", paths.len());
    let lines = |path: &Path| fs::read_to_string(path).expect("a file of text").lines().count();
    let long: Vec<_> = paths.iter().filter(|path| lines(path) > LINES_MAX).collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines, split them: {long:#?}");
}

/// The files that need each other, be it by way of others.
fn in_circles(arrows: &BTreeMap<File, BTreeSet<File>>) -> BTreeSet<File> {
    // All that can be reached from each file.
    let reached = |from: &File| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = next.pop() {
            for to in arrows.get(&file).into_iter().flatten() {
                if seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    arrows.keys().filter(|file| reached(file).contains(*file)).cloned().collect()
}

#[test]
fn the_rooms_are_those_that_the_architecture_shows() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    for (of_crate, floors) in FLOORS {
        for floor in floors.iter().filter(|floor| !["fuzzing", "error"].contains(floor)) {
            let shown = match of_crate {
                "warmhop" => format!("`{floor}/`"),
                _ => format!("\n{floor}\n"),
            };
            assert!(page.contains(&shown), "ARCHITECTURE.md does not show `{floor}` of {of_crate}");
        }
    }
}
