//! `warmhop cert`: a cluster's authority and its peers' identities.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::{Uid, User};
use warmhop::identity::{Authority, Holder, IdentityError, Inspection, inspect};
use warmhop::ids::PeerId;

use crate::failure::Failure;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate that ends sooner than this is mentioned.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Makes an authority for `cluster` in `out`; returns the text to print.
///
/// # Errors
/// If the name is malformed, a key is there already, or a file cannot be written.
pub fn make_authority(out: &Path, cluster: &str, force: bool) -> Result<String, IdentityError> {
    Authority::generate(cluster)?.write(out, force)?;
    let mut text = String::new();
    let dir = out.display();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "wrote {dir}/ca.pem      the authority of the cluster {cluster}; peers trust the identities that it issues\n\
         wrote {dir}/ca-key.pem  its private key: anyone who has it can issue identities, so do not copy it to a peer\n\
         \n\
         Next, for each peer: warmhop cert peer NAME --ca {dir} --out certs/NAME\n"
    );
    Ok(text)
}

/// Issues the identity of the peer `name` from the authority in `ca` into `out`, valid for `days`;
/// returns the text to print.
///
/// # Errors
/// If the authority cannot be used, a key is there already, or a file cannot be written.
pub fn issue_peer(
    name: &PeerId,
    ca: &Path,
    out: &Path,
    force: bool,
    days: u32,
) -> Result<String, IdentityError> {
    let authority = Authority::from_dir(ca)?;
    authority.issue_into_for(name, out, force, DAY * days)?;
    let mut text = String::new();
    let (dir, cluster) = (out.display(), authority.cluster());
    let _ = write!(
        text,
        "wrote {dir}/ca.pem    the authority that this peer trusts\n\
         wrote {dir}/cert.pem  {name} of the cluster {cluster}\n\
         wrote {dir}/key.pem   its private key\n\
         \n\
         Next: copy the folder to the peer, and in its configuration set\n\
         \n    cluster = \"{cluster}\"\n\
         \n    [peer]\n    name = \"{name}\"\n\
         \n    [mesh]\n    identity = \"{dir}\"\n"
    );
    Ok(text)
}

/// Issues the identity in `dir` again from the authority in `ca`, valid for `days`; returns the
/// text to print.
///
/// # Errors
/// If the authority cannot be used, `dir` holds no identity of it, or a file cannot be written.
pub fn renew(dir: &Path, ca: &Path, days: u32) -> Result<String, IdentityError> {
    let name = Authority::from_dir(ca)?.renew_in(dir, DAY * days)?;
    let dir = dir.display();
    Ok(format!(
        "renewed {dir}/cert.pem and key.pem  {name}, for {days} days\n\
         A running peer notices the new files by itself; no restart is needed.\n"
    ))
}

/// How the command ends that `error` stops: with what this program can do about it.
#[must_use]
pub fn failed(error: &IdentityError) -> Failure {
    let remedy = remedy(error);
    let separator = if remedy.is_empty() { "" } else { "; " };
    Failure::failed(format!("{error}{separator}{remedy}"))
}

/// What to do about `error`, by the commands and options of this program; empty where the error
/// itself says it.
pub(crate) fn remedy(error: &IdentityError) -> String {
    match error {
        IdentityError::Read { dir, source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            let user = User::from_uid(Uid::effective()).ok().flatten().map(|user| user.name);
            let user = user.unwrap_or_else(|| format!("with the id {}", Uid::effective()));
            format!(
                "this runs as the user {user}, who has to be able to read it: `chgrp -R GROUP {dir} && \
                 chmod -R g+rX {dir}` with a group of that user"
            )
        }
        IdentityError::Read { dir, .. } => {
            format!("make it with `warmhop cert peer NAME --ca DIR --out {dir}`")
        }
        IdentityError::ReadAuthority { dir, .. } => {
            format!("make an authority with `warmhop cert ca --out {dir}`")
        }
        IdentityError::Exists { .. } | IdentityError::OtherAuthority { .. } => {
            "--force replaces it".into()
        }
        IdentityError::NoCookieKey { dir, .. } => format!(
            "`warmhop cert peer NAME --ca DIR --out {dir} --force` issues it with one, and `openssl \
             rand -base64 32` makes one where another tool issues it"
        ),
        IdentityError::CookieKey { .. } => "make it once with `openssl rand -base64 32`".into(),
        IdentityError::KeyMismatch { .. } | IdentityError::Expired { .. } => {
            "`warmhop cert peer NAME --ca DIR --out DIR --force` issues it".into()
        }
        _ => String::new(),
    }
}

/// The text of `warmhop cert show` for a folder, and whether a peer could run with its contents.
///
/// # Errors
/// If no certificate in it can be read.
pub fn show(dir: &Path) -> Result<(String, bool), IdentityError> {
    let Inspection { certificates, problem, .. } = inspect(dir)?;
    let now = SystemTime::now();
    let mut text = String::new();
    for certificate in &certificates {
        let holder = match &certificate.holder {
            Holder::Peer { cluster, name } => format!("peer {name} of the cluster {cluster}"),
            Holder::Authority { cluster } => format!("authority of the cluster {cluster}"),
            _ => "of an unknown kind".into(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}  {holder}", certificate.path.display());
        let _ = writeln!(
            text,
            "  valid from {} to {}, {}",
            date(certificate.not_before),
            date(certificate.not_after),
            left(certificate.left(now))
        );
        let _ = writeln!(text, "  serial {}", certificate.serial);
        let _ = writeln!(text, "  fingerprint {}", certificate.fingerprint);
    }
    match &problem {
        Some(problem) => {
            let _ = writeln!(text, "a peer cannot run with it: {problem}");
        }
        None if certificates.iter().any(|c| c.left(now).is_some_and(|left| left < SOON)) => {
            let _ = writeln!(text, "expires soon: warmhop cert renew {} --ca DIR", dir.display());
        }
        None => {}
    }
    Ok((text, problem.is_none()))
}

/// Says that a certificate ends soon, or has ended, and when, as the end of a sentence; `None` if
/// it is valid for longer.
#[must_use]
pub(crate) fn ends_soon(ends: SystemTime, now: SystemTime) -> Option<String> {
    let on = date(ends);
    match ends.duration_since(now).ok() {
        None => Some(format!("expired on {on}")),
        Some(left) if left < DAY => Some(format!("ends within a day, on {on}")),
        Some(left) if left < SOON => match left.as_secs() / DAY.as_secs() {
            1 => Some(format!("ends in 1 day, on {on}")),
            days => Some(format!("ends in {days} days, on {on}")),
        },
        Some(_) => None,
    }
}

fn left(left: Option<Duration>) -> String {
    match left.map(|left| left.as_secs() / DAY.as_secs()) {
        None => "expired".into(),
        Some(0) => "expires within a day".into(),
        Some(1) => "1 day left".into(),
        Some(days) => format!("{days} days left"),
    }
}

/// `YYYY-MM-DD` in UTC.
fn date(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = i64::try_from(seconds / DAY.as_secs()).unwrap_or(i64::MAX);
    let date = time::OffsetDateTime::UNIX_EPOCH.date().saturating_add(time::Duration::days(days));
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_key_that_the_peer_may_not_read_is_not_asked_to_be_made_again() {
        let error = |kind: ErrorKind| IdentityError::Read {
            path: "/etc/warmhop/certs/key.pem".into(),
            dir: "/etc/warmhop/certs".into(),
            source: io::Error::from(kind),
        };
        let missing = remedy(&error(ErrorKind::NotFound));
        assert!(missing.contains("warmhop cert peer"), "{missing}");
        let unreadable = remedy(&error(ErrorKind::PermissionDenied));
        assert!(!unreadable.contains("warmhop cert"), "{unreadable}");
        assert!(unreadable.contains("chmod -R g+rX /etc/warmhop/certs"), "{unreadable}");
    }
}
