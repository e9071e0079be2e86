//! The software that `testbed/install` put below `target/ecosystem`, and what a test says where it
//! is not there.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a test could not run: something that it needs could not be had.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a test comes to: it holds, or it was skipped for a reason. It fails by a panic.
pub(crate) type Tested = Result<(), Skipped>;

/// The folder that `testbed/install` fills.
pub(crate) fn home() -> PathBuf {
    // Tests run from `target/PROFILE/deps`.
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).join("ecosystem")
}

/// The path of a file of a Debian package, such as `usr/sbin/haproxy`.
pub(crate) fn debian_file(path: &str) -> Result<PathBuf, Skipped> {
    present(home().join("debian").join(path), "debian")
}

/// A program of a Debian package, at a path such as `usr/sbin/haproxy`.
pub(crate) fn debian(path: &str) -> Result<Command, Skipped> {
    let mut command = Command::new(debian_file(path)?);
    command.env("LD_LIBRARY_PATH", libraries());
    Ok(command)
}

/// The value of `LD_LIBRARY_PATH` with which unpacked programs find their libraries.
pub(crate) fn libraries() -> OsString {
    let root = home().join("debian");
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = [
        root.join("usr/lib").join(&multiarch),
        root.join("usr/lib").join(&multiarch).join("pulseaudio"),
        root.join("lib").join(&multiarch),
        root.join("usr/lib"),
    ];
    std::env::join_paths(folders).unwrap_or_default()
}

/// A program of a package from PyPI, or `python` itself.
pub(crate) fn python(program: &str) -> Result<Command, Skipped> {
    Ok(Command::new(present(home().join("python/bin").join(program), "python")?))
}

/// Node.js, with the modules that were installed from npm.
pub(crate) fn node(module: &str) -> Result<Command, Skipped> {
    let modules = home().join("node/node_modules");
    present(modules.join(module), "node")?;
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules);
    Ok(command)
}

/// Ruby, with the gems of Debian's packages, of which one is `gem`.
pub(crate) fn ruby(gem: &str) -> Result<Command, Skipped> {
    let root = home().join("debian");
    let multiarch = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    // Named by its version, as are the folders of its libraries.
    let version = std::fs::read_dir(root.join("usr/lib/ruby")).ok().and_then(|mut folders| {
        folders.find_map(|folder| {
            let name = folder.ok()?.file_name().into_string().ok()?;
            name.starts_with(|c: char| c.is_ascii_digit()).then_some(name)
        })
    });
    let version = version.ok_or_else(|| Skipped("there is no Ruby; see debian.log".into()))?;
    let libraries = ["usr/lib/ruby/vendor_ruby".to_owned(), format!("usr/lib/ruby/{version}")]
        .into_iter()
        .chain([
            format!("{multiarch}/ruby/vendor_ruby/{version}"),
            format!("{multiarch}/ruby/{version}"),
        ]);
    let gems = [
        "usr/share/rubygems-integration/all".to_owned(),
        format!("usr/share/rubygems-integration/{version}"),
        format!("{multiarch}/rubygems-integration/{version}"),
        format!("usr/lib/ruby/gems/{version}"),
    ];
    let has_gem = gems.iter().any(|folder| {
        let specifications = std::fs::read_dir(root.join(folder).join("specifications"));
        specifications
            .into_iter()
            .flatten()
            .flatten()
            .any(|file| file.file_name().to_string_lossy().starts_with(&format!("{gem}-")))
    });
    if !has_gem {
        return Err(Skipped(format!("there is no gem {gem}; see debian.log")));
    }
    let paths = |folders: &mut dyn Iterator<Item = String>| {
        std::env::join_paths(folders.map(|folder| root.join(folder))).unwrap_or_default()
    };
    let short = version.rsplit_once('.').map_or(version.as_str(), |(short, _)| short);
    let mut command = debian(&format!("usr/bin/ruby{short}"))?;
    command
        .env("RUBYLIB", paths(&mut libraries.into_iter()))
        .env("GEM_PATH", paths(&mut gems.iter().cloned()))
        .env("GEM_HOME", home().join("gems"))
        .env("RAILS_ENV", "production");
    Ok(command)
}

fn present(path: PathBuf, kind: &str) -> Result<PathBuf, Skipped> {
    if path.exists() {
        return Ok(path);
    }
    let log = home().join(format!("{kind}.log"));
    Err(Skipped(format!(
        "{} is not there: `testbed/install` installs it, and says in {} why it could not",
        path.display(),
        log.display()
    )))
}
