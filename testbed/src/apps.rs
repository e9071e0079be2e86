//! Reading the `[[app]]` tables that a mesh is to serve.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

/// What a program that reads files is given to read its standard input.
const STDIN: &str = "/dev/stdin";

/// The apps of a file in the form for a peer's configuration: every path is absolute.
///
/// Paths in `dir` and `run` are relative to the file's own folder, which is also where an app
/// without a `dir` runs. A bare program name means one that was built with the testbed, if
/// there is such a one; else it is looked up on `PATH` when the app starts.
///
/// # Errors
/// If the file cannot be read, is not TOML, or holds something else than `[[app]]` tables.
pub fn read(file: &Path) -> Result<Vec<Table>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the apps of {}", file.display()))?;
    let folder = std::path::absolute(file)?
        .parent()
        .map(Path::to_path_buf)
        .with_context(|| format!("{} has no folder", file.display()))?;
    parse(&text, &folder, &crate::programs()?)
        .with_context(|| format!("in the app file {}", file.display()))
}

/// Has `warmhop check` check the apps of a file, so that a mistake is reported with its line there
/// and not with the line of a generated configuration.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check(file: &Path) -> Result<()> {
    // What follows the apps moves no line of theirs.
    let rest = "\n[peer]\nname = 'testbed'\n[session]\nredis = '127.0.0.1:6401'\n";
    let text = std::fs::read_to_string(file)? + rest;
    let mut check = Command::new(crate::program("warmhop")?)
        .args(["check", STDIN])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run warmhop")?;
    let written = check.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
    let output = check.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    written.transpose()?;
    let said = String::from_utf8_lossy(&output.stderr)
        .replace(&format!("warmhop: {STDIN}"), &file.display().to_string());
    // Warnings are of what is not where the check looks: identities, paths relative to FILE.
    let problems: Vec<&str> = said.lines().filter(|line| !line.contains(": warning: ")).collect();
    bail!("{}", problems.join("\n"))
}

/// The app file of the bookshop, which runs where none is named.
#[must_use]
pub fn example() -> PathBuf {
    crate::workspace().join("examples/apps/bookshop.toml")
}

fn parse(text: &str, folder: &Path, programs: &Path) -> Result<Vec<Table>> {
    let mut file: Table = text.parse()?;
    let apps = file.remove("app");
    if let Some(key) = file.keys().next() {
        bail!("only [[app]] tables belong here; `{key}` is part of a peer's own configuration");
    }
    let Some(Value::Array(apps)) = apps else { bail!("there is no [[app]] table") };
    apps.into_iter()
        .map(|app| match app {
            Value::Table(app) => placed(app, folder, programs),
            _ => bail!("`app` is an array of tables: write [[app]]"),
        })
        .collect()
}

fn placed(mut app: Table, folder: &Path, programs: &Path) -> Result<Table> {
    let dir = match app.get("dir") {
        Some(Value::String(dir)) => folder.join(dir),
        Some(_) => bail!("`dir` is a path"),
        None => folder.to_path_buf(),
    };
    app.insert("dir".into(), text(&dir)?);
    if let Some(Value::Array(run)) = app.get_mut("run")
        && let Some(Value::String(program)) = run.first_mut()
    {
        let built = programs.join(&*program);
        let path = if program.contains('/') {
            Some(folder.join(&*program))
        } else {
            built.is_file().then_some(built)
        };
        if let Some(path) = path {
            run[0] = text(&path)?;
        }
    }
    Ok(app)
}

fn text(path: &Path) -> Result<Value> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Table>> {
        parse(text, Path::new("/apps"), Path::new("/nowhere"))
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let apps = parsed(
            "[[app]]\nname='a'\ndir='shop'\nrun=['./serve','--fast']\n\
             [[app]]\nname='b'\nrun=['node','server.js']",
        )
        .unwrap();
        assert_eq!(apps[0]["dir"].as_str(), Some("/apps/shop"));
        assert_eq!(apps[0]["run"][0].as_str(), Some("/apps/./serve"));
        assert_eq!(apps[0]["run"][1].as_str(), Some("--fast"));
        assert_eq!(apps[1]["dir"].as_str(), Some("/apps"));
        assert_eq!(apps[1]["run"][0].as_str(), Some("node"));
    }

    #[test]
    fn anything_but_apps_is_refused() {
        assert!(parsed("cluster='x'\n[[app]]\nname='a'").is_err());
        assert!(parsed("").is_err());
        assert!(parsed("app = 3").is_err());
        assert!(parsed("[[app]]\ndir = 3").is_err());
    }

    #[test]
    fn the_example_is_an_app_file() {
        assert_eq!(read(&example()).unwrap()[0]["name"].as_str(), Some("bookshop"));
    }
}
