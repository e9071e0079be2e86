//! The environment of an app: the variables that it inherits from the peer, those of its user,
//! those of its own file, those of its table, and those that the peer sets itself; later ones win.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::ChildApp;
use crate::child::launch::Inherit;
use crate::host::notify;

/// The most bytes that a file of variables may have.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Programs are found through it, so every app has it.
const PATH: &str = "PATH";
/// It gives access to the peer, so its apps must not have it.
const ADMIN_TOKEN: &str = "WARMHOP_ADMIN_TOKEN";

/// Why a file of variables cannot be used.
#[derive(Debug)]
pub struct FileError {
    file: PathBuf,
    /// Counted from 1; absent if the whole file is concerned.
    line: Option<usize>,
    what: String,
    /// There is no such file.
    pub is_missing: bool,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for FileError {}

/// The variables that `file` sets, in its order.
///
/// # Errors
/// If it cannot be read, is too large, or has a line that sets nothing.
pub fn read_file(file: &Path) -> Result<Vec<(String, String)>, FileError> {
    let failed = |line, what, is_missing| FileError { file: file.into(), line, what, is_missing };
    let whole = |error: std::io::Error| {
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        failed(None, format!("cannot read it: {error}"), is_missing)
    };
    // A device or a mistaken path must not fill the memory.
    let bytes = std::fs::metadata(file).map_err(whole)?.len();
    if bytes > FILE_BYTES_MAX {
        let what = format!("it has {bytes} bytes; at most {FILE_BYTES_MAX} are read");
        return Err(failed(None, what, false));
    }
    let text = std::fs::read_to_string(file).map_err(whole)?;
    let mut set = Vec::new();
    for (at, line) in text.lines().enumerate() {
        match assignment(line) {
            Ok(found) => set.extend(found),
            Err(what) => return Err(failed(Some(at + 1), what.into(), false)),
        }
    }
    Ok(set)
}

/// The variable that a line sets: `NAME=value`, `NAME='value as it is'` or `NAME="value with \" and
/// \n"`, each with or without `export` before it. Variables inside are not expanded.
fn assignment(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let Some((name, value)) = line.split_once('=') else {
        return Err("expected NAME=value, or # before a comment");
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if name.is_empty() || !name.bytes().all(fits) {
        return Err("a variable's name has the characters A-Z a-z 0-9 _ . - and no others");
    }
    if line.contains('\0') {
        return Err("there is a NUL character in it");
    }
    let value = value.trim_start();
    let (value, rest) = match value.as_bytes().first() {
        Some(b'\'') => {
            let (value, rest) = value[1..].split_once('\'').ok_or("the quote is not closed")?;
            (value.to_owned(), rest)
        }
        Some(b'"') => quoted(&value[1..]).ok_or("the quote is not closed")?,
        _ => {
            let end = value.find(" #").unwrap_or(value.len());
            (value[..end].trim_end().to_owned(), "")
        }
    };
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("there is more after the closing quote");
    }
    Ok(Some((name.to_owned(), value)))
}

/// The text up to the closing quote, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                c @ ('"' | '\\' | '$') => value.push(c),
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
}

impl ChildApp {
    /// Everything in the app's environment but `PORT` and `REDIS_URL`. The file is read each time,
    /// so that a restart of the app picks up its changes.
    pub(super) fn environment(&self) -> Result<Vec<(OsString, OsString)>, FileError> {
        let inherited = std::env::vars_os().filter(|(name, _)| self.inherits(name.to_str()));
        let mut all: Vec<(OsString, OsString)> = inherited.collect();
        let user = self.confine.env.iter();
        all.extend(user.map(|(name, value)| ((*name).into(), value.into())));
        if let Some(file) = &self.env_file {
            let set = read_file(file)?;
            all.extend(set.into_iter().map(|(name, value)| (name.into(), value.into())));
        }
        all.extend(self.env.iter().map(|(name, value)| (name.into(), value.into())));
        all.retain(|(name, _)| name != ADMIN_TOKEN);
        Ok(all)
    }

    fn inherits(&self, name: Option<&str>) -> bool {
        if name.is_some_and(|name| notify::VARIABLES.contains(&name)) {
            return false;
        }
        match &self.inherit {
            // What the configuration took from there is for whom it says: secrets, most likely.
            Inherit::All => {
                name.is_none_or(|name| name == PATH || !self.hidden.iter().any(|it| it == name))
            }
            Inherit::Only(names) => {
                name.is_some_and(|name| name == PATH || names.iter().any(|known| known == name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_file_set_variables_as_shells_and_containers_read_them() {
        for (line, name, value) in [
            ("A=b", "A", "b"),
            ("export A=b c ", "A", "b c"),
            ("A=", "A", ""),
            ("A=b=c#d", "A", "b=c#d"),
            ("A=b # why", "A", "b"),
            ("A='b \"$C\" \\n' # why", "A", "b \"$C\" \\n"),
            (r#"A="b \"c\" \\ \$D \n\x""#, "A", "b \"c\" \\ $D \n\\x"),
            ("A=${B}", "A", "${B}"),
        ] {
            assert_eq!(assignment(line), Ok(Some((name.into(), value.into()))), "{line}");
        }
        for line in ["", "   ", "# A=b", "\t#"] {
            assert_eq!(assignment(line), Ok(None), "{line}");
        }
        for line in ["A", "A = b", "=b", "A B=c", "A='b", "A=\"b", "A=\"b\\", "A='b' c", "A=b\0"] {
            assert!(assignment(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn an_unusable_file_is_reported_with_its_line() {
        let dir = std::env::temp_dir().join(format!("warmhop-variables-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(".env");
        let error = read_file(&file).unwrap_err();
        assert!(error.is_missing && error.to_string().contains("cannot read it"), "{error}");
        std::fs::write(&file, "A=1\n\nno more\n").unwrap();
        let error = read_file(&file).unwrap_err();
        assert!(!error.is_missing && error.to_string().contains(".env:3: expected"), "{error}");
        std::fs::write(&file, "A=1\nA=2\n").unwrap();
        assert_eq!(read_file(&file).unwrap().len(), 2);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
