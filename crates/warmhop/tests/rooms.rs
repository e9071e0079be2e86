//! The rooms of `src` and the arrows between them, read from the paths that its files name: an arrow
//! points down, and no two files need each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, top floor first: a file may name what is in its own room and below.
const FLOORS: [&str; 14] = [
    "fuzzing", "mesh", "adapters", "front", "care", "request", "app", "hop", "sessions", "links",
    "error", "observe", "identity", "http",
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

/// What each file names of the others, its tests aside.
fn arrows() -> BTreeMap<File, BTreeSet<File>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let name = |path: &Path| {
        let text = path.strip_prefix(&src).expect("it is below src").with_extension("");
        let text = text.to_str().expect("names are ASCII").replace('\\', "/");
        text.strip_suffix("/mod").unwrap_or(&text).to_owned()
    };
    let files: BTreeSet<File> = paths.iter().map(|path| name(path)).collect();
    let mut arrows = BTreeMap::new();
    for path in paths {
        let file = name(&path);
        if file == "lib" || file.split('/').any(|part| part == "tests") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a file that can be read");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let mut named = BTreeSet::new();
        for place in code.flat_map(|line| line.split("crate::").skip(1)) {
            let end = place.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            let mut to = place[..end.unwrap_or(place.len())].replace("::", "/");
            while !files.contains(&to) {
                let Some((room, _)) = to.rsplit_once('/') else { break };
                to = room.to_owned();
            }
            if to != file && files.contains(&to) {
                named.insert(to);
            }
        }
        arrows.insert(file, named);
    }
    arrows
}

fn floor(file: &str) -> usize {
    let room = file.split('/').next().unwrap_or_default();
    let floor = FLOORS.iter().position(|it| *it == room);
    floor.unwrap_or_else(|| panic!("{file} is in a room that has no floor: give `{room}` one"))
}

#[test]
fn no_arrow_points_up() {
    let mut up = Vec::new();
    for (from, names) in arrows() {
        up.extend(
            names.iter().filter(|to| floor(to) < floor(&from)).map(|to| format!("{from} -> {to}")),
        );
    }
    assert!(up.is_empty(), "what both need belongs below both:\n{}", up.join("\n"));
}

#[test]
fn no_two_files_need_each_other() {
    let arrows = arrows();
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
    let in_circles: Vec<&File> =
        arrows.keys().filter(|file| reached(file).contains(*file)).collect();
    assert!(in_circles.is_empty(), "what both need belongs below both: {in_circles:#?}");
}

#[test]
fn the_rooms_are_those_that_the_architecture_shows() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let page = fs::read_to_string(page).unwrap();
    for room in FLOORS.iter().filter(|room| !["fuzzing", "error"].contains(room)) {
        assert!(page.contains(&format!("`{room}/`")), "ARCHITECTURE.md does not name `{room}/`");
    }
}
