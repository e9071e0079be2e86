//! What has to be right before a peer starts: its configuration, and the certificates, pages and
//! programs that the configuration names.

use std::path::Path;
use std::time::SystemTime;

use warmhop::config::StartMode;
use warmhop::identity::{FrontDoorTls, Identity, IdentityError};

use crate::cert::{self, ends_soon};
use crate::child::{environment, find_program};
use crate::config::{Config, Problem, Tls};
use crate::failure::Failure;

pub(crate) fn read(file: &Path) -> Result<(Config, Vec<Problem>), Failure> {
    Config::load(file).map_err(|problems| Failure {
        messages: problems.iter().map(ToString::to_string).collect(),
        status: 2,
    })
}

/// The configuration in `file`, if [`run`](crate::run::run) would accept it, with its warnings.
///
/// # Errors
/// Everything that is wrong with it and with the files that it names.
pub fn checked(file: &Path) -> Result<(Config, Vec<Problem>), Failure> {
    let (config, warnings) = read(file)?;
    load(&config)?;
    Ok((config, warnings))
}

/// Reports the files named by `config` that [`run`](crate::run::run) would refuse, in its words.
/// Missing files are ignored: a configuration may be checked on another machine than it runs on.
///
/// # Errors
/// Everything that is wrong with them.
pub fn check(config: &Config) -> Result<(), Failure> {
    let mut failures = Vec::new();
    if config.http.tls.as_ref().is_some_and(|tls| tls.cert.exists() && tls.key.exists()) {
        failures.extend(load_tls(config).err());
    }
    if config.http.error_page.as_ref().is_some_and(|file| file.exists()) {
        failures.extend(load_error_page(config).err());
    }
    let identity = ["ca.pem", "cert.pem", "key.pem"].map(|name| config.mesh.identity.join(name));
    if identity.iter().chain(&config.mesh.cookie_key).all(|file| file.exists()) {
        failures.extend(load_identity(config).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::together(failures)) }
}

/// Why [`run`](crate::run::run) and a reload would refuse on this machine a configuration that [`check`]
/// accepts: what it names is missing here, and may exist on the machine where the peer runs.
#[must_use]
pub fn refused_here(config: &Config) -> Vec<String> {
    load(config).err().map_or_else(Vec::new, |failure| failure.messages)
}

/// Which of the certificates that `config` names end soon or have ended, at `now`. Files that are
/// missing, or that cannot be read, are ignored.
#[must_use]
pub fn certificates_that_end(config: &Config, now: SystemTime) -> Vec<Problem> {
    let (dir, keys) = (&config.mesh.identity, &config.mesh.cookie_key);
    let identity = Identity::from_dir_and_cookie_keys(dir, keys).ok().map(|it| it.expires());
    let door = config.http.tls.as_ref();
    let door =
        door.and_then(|Tls { cert, key }| FrontDoorTls::from_files(cert, key).ok()?.expires());
    let warning = |key: &str, ends: Option<SystemTime>, remedy: &str| {
        let words = format!("the certificate {}", ends_soon(ends?, now)?);
        Some(Problem { is_warning: true, ..config.problem(key, words, remedy) })
    };
    let renew = "renew it, for example with `warmhop cert renew`";
    let identity = warning("mesh.identity", identity, renew);
    let door = warning("http.tls", door, "renew it where it was issued");
    identity.into_iter().chain(door).collect()
}

/// The peer's certificates and its error page.
pub(crate) struct Credentials {
    /// For the other peers.
    pub(crate) identity: Identity,
    /// For clients over TLS.
    pub(crate) tls: Option<FrontDoorTls>,
    /// The page for browsers whose request cannot be served, instead of the mesh's own.
    pub(crate) error_page: Option<String>,
}

/// Loads everything that has to be on this machine before the peer starts.
pub(crate) fn load(config: &Config) -> Result<Credentials, Failure> {
    let loaded =
        (load_tls(config), load_identity(config), load_error_page(config), check_programs(config));
    match loaded {
        (Ok(tls), Ok(identity), Ok(error_page), Ok(())) => {
            Ok(Credentials { identity, tls, error_page })
        }
        (tls, identity, page, programs) => {
            let failures = [tls.err(), identity.err(), page.err(), programs.err()];
            Err(Failure::together(failures.into_iter().flatten()))
        }
    }
}

fn load_tls(config: &Config) -> Result<Option<FrontDoorTls>, Failure> {
    let Some(Tls { cert, key }) = &config.http.tls else { return Ok(None) };
    FrontDoorTls::from_files(cert, key)
        .map(Some)
        .map_err(|error| Failure::usage(config.problem("http.tls", error.to_string(), "")))
}

/// The most bytes of a custom error page: it is held in memory and sent whole.
const ERROR_PAGE_BYTES_MAX: usize = 256 * 1024;

fn load_error_page(config: &Config) -> Result<Option<String>, Failure> {
    let Some(file) = &config.http.error_page else { return Ok(None) };
    let wrong = |what: String| {
        let remedy = "name a file of HTML in UTF-8, complete in itself";
        Failure::usage(config.problem("http.error_page", what, remedy))
    };
    let page = std::fs::read_to_string(file)
        .map_err(|error| wrong(format!("cannot read {}: {error}", file.display())))?;
    if page.len() > ERROR_PAGE_BYTES_MAX {
        let bytes = page.len();
        let what = format!("{} has {bytes} bytes, over {ERROR_PAGE_BYTES_MAX}", file.display());
        return Err(wrong(what));
    }
    Ok(Some(page))
}

fn load_identity(config: &Config) -> Result<Identity, Failure> {
    let (dir, keys) = (&config.mesh.identity, &config.mesh.cookie_key);
    let identity = Identity::from_dir_and_cookie_keys(dir, keys);
    let identity = identity.map_err(|error| identity_failure(config, &error))?;
    let (cluster, name) = (&config.cluster, &config.peer.name);
    if identity.cluster() != *cluster || identity.peer() != *name {
        let (found, expected) = (identity.spiffe_id(), format!("spiffe://{cluster}/peer/{name}"));
        let what = format!("the certificate names {found}, but this peer is {expected}");
        let remedy = "issue one with `warmhop cert peer`";
        return Err(Failure::usage(config.problem("mesh.identity", what, remedy)));
    }
    Ok(identity)
}

pub(crate) fn identity_failure(config: &Config, error: &IdentityError) -> Failure {
    let key = match error {
        IdentityError::CookieKey { .. } if !config.mesh.cookie_key.is_empty() => "mesh.cookie_key",
        _ => "mesh.identity",
    };
    let problem = config.problem(key, error.to_string(), cert::remedy(error));
    match error {
        // The configuration cannot mend the machine's clock.
        IdentityError::NotYetValid { .. } | IdentityError::Expired { .. } => {
            Failure::failed(problem)
        }
        _ => Failure::usage(problem),
    }
}

/// Without this check, only the first request would find that a program, or a file of variables, is
/// missing.
fn check_programs(config: &Config) -> Result<(), Failure> {
    let started = || config.apps.iter().filter(|app| app.spec.policy.start != StartMode::Never);
    let files = started().filter_map(|app| {
        let error = environment::read_file(app.env_file.as_deref()?).err()?;
        let key = format!("app.{}.env_file", app.spec.name);
        Some(
            config
                .problem(&key, error.to_string(), "correct that file, or name another")
                .to_string(),
        )
    });
    let messages: Vec<String> = started()
        .filter_map(|app| {
            let found = find_program(app.run.first()?, &app.dir, app.env.get("PATH"));
            let missing = found.err()?;
            let key = format!("app.{}.{}", app.spec.name, missing.key);
            Some(config.problem(&key, missing.what, missing.remedy).to_string())
        })
        .chain(files)
        .chain(config.apps.iter().filter_map(|app| {
            let cannot = app.wanted.here(None).err()?;
            let key = format!("app.{}.{}", app.spec.name, cannot.key);
            Some(config.problem(&key, cannot.what, cannot.remedy).to_string())
        }))
        .collect();
    if messages.is_empty() { Ok(()) } else { Err(Failure { messages, status: 2 }) }
}
