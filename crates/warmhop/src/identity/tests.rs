//! Identities are made, written, read, distinguished and renewed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use warmhop_core::ids::PeerId;

use crate::identity::authority::{Authority, DAY, PEER_VALID};
use crate::identity::cookies::CookieKey;
use crate::identity::credentials::Identity;
use crate::identity::files::{pem_block, to_pem};
use crate::identity::limits::COOKIE_KEY_LABEL;
use crate::identity::loaded::{Loaded, check_dates};
use crate::identity::problem::IdentityError;

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        let name = format!("warmhop-identity-{:032x}", rand::random::<u128>());
        Self(std::env::temp_dir().join(name))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

#[test]
fn an_identity_says_who_it_is_and_for_how_long() {
    let authority = Authority::generate("demo").unwrap();
    assert_eq!(authority.cluster(), "demo");
    let identity = authority.issue(&id("peer-1")).unwrap();
    assert_eq!(identity.cluster(), "demo");
    assert_eq!(identity.peer(), id("peer-1"));
    assert_eq!(identity.spiffe_id(), "spiffe://demo/peer/peer-1");
    let left = identity.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left > PEER_VALID - DAY && left <= PEER_VALID);
    assert!(!identity.reload().unwrap(), "one in memory never changes");
    assert!(format!("{identity:?} {authority:?}").len() < 100, "no keys are shown");
}

#[test]
fn names_of_clusters_that_could_break_a_uri_are_refused() {
    assert!(Authority::generate(&"x".repeat(64)).is_ok());
    for bad in ["", "a b", "a/b", "é", "a.b", &"x".repeat(65)] {
        let error = Authority::generate(bad).err().unwrap();
        assert!(matches!(error, IdentityError::ClusterName { .. }), "{bad:?}");
    }
}

#[test]
fn a_written_identity_reads_back_and_works_with_one_issued_in_memory() {
    let (ca, peer) = (TempDir::new(), TempDir::new());
    let made = Authority::generate("demo").unwrap();
    made.write(&ca.0, false).unwrap();
    let authority = Authority::from_dir(&ca.0).unwrap();
    assert_eq!(authority.cluster(), "demo");
    authority.issue_into(&id("a"), &peer.0, false).unwrap();
    let a = Identity::from_dir(&peer.0).unwrap();
    let b = made.issue(&id("b")).unwrap();
    let tag = a.cookie_authenticator().tag(b"cookie");
    assert!(b.cookie_authenticator().verify(b"cookie", &tag));
    a.quic().unwrap();
}

#[cfg(unix)]
#[test]
fn private_keys_are_for_their_owner_alone_and_never_overwritten_unasked() {
    use std::os::unix::fs::PermissionsExt;
    let (ca, peer) = (TempDir::new(), TempDir::new());
    let authority = Authority::generate("demo").unwrap();
    authority.write(&ca.0, false).unwrap();
    authority.issue_into(&id("a"), &peer.0, false).unwrap();
    for key in [ca.join("ca-key.pem"), peer.join("key.pem")] {
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let before =
        (read(ca.join("ca-key.pem")), read(peer.join("key.pem")), read(peer.join("cert.pem")));
    let other = Authority::generate("demo").unwrap();
    assert!(matches!(other.write(&ca.0, false), Err(IdentityError::Exists { .. })));
    let again = authority.issue_into(&id("a"), &peer.0, false);
    assert!(matches!(again, Err(IdentityError::Exists { .. })));
    let after =
        (read(ca.join("ca-key.pem")), read(peer.join("key.pem")), read(peer.join("cert.pem")));
    assert_eq!(before, after);

    authority.issue_into(&id("a"), &peer.0, true).unwrap();
    assert_ne!(read(peer.join("key.pem")), before.1);
    Identity::from_dir(&peer.0).unwrap();
    let left = std::fs::read_dir(&peer.0).unwrap().count();
    assert_eq!(left, 3, "no temporary file is left behind");
}

#[test]
fn an_identity_of_another_authority_is_not_mixed_up_with_ones_own() {
    let peer = TempDir::new();
    Authority::generate("demo").unwrap().issue_into(&id("a"), &peer.0, false).unwrap();
    std::fs::remove_file(peer.join("key.pem")).unwrap();
    let other = Authority::generate("demo").unwrap();
    let error = other.issue_into(&id("a"), &peer.0, false).err().unwrap();
    assert!(matches!(error, IdentityError::OtherAuthority { .. }), "{error}");
    other.issue_into(&id("a"), &peer.0, true).unwrap();
    Identity::from_dir(&peer.0).unwrap();
}

/// Loads the files of `identity` with one of them replaced.
fn with_file(identity: &Identity, at: usize, file: Vec<u8>) -> IdentityError {
    let mut files = identity.inner.loaded.load().files.clone();
    files[at] = file;
    Loaded::check(Path::new("dir"), files, Vec::new()).err().expect("it is refused")
}

#[test]
fn files_that_do_not_belong_together_are_refused_with_different_errors() {
    let authority = Authority::generate("demo").unwrap();
    let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
    let foreign = Authority::generate("demo").unwrap();

    let error = with_file(&a, 0, foreign.ca_pem());
    assert!(matches!(error, IdentityError::NotOfAuthority { .. }), "{error}");
    let error = with_file(&a, 2, b.inner.loaded.load().files[2].clone());
    assert!(matches!(error, IdentityError::KeyMismatch { .. }), "{error}");
    let key = to_pem("PRIVATE KEY", a.inner.loaded.load().key.secret_der());
    let error = with_file(&a, 2, key.into());
    assert!(matches!(error, IdentityError::NoCookieKey { .. }), "{error}");
    assert!(error.to_string().contains("issue the identity again"), "{error}");
    let error = with_file(&a, 1, authority.ca_pem());
    assert!(matches!(error, IdentityError::Malformed { .. }), "{error}");
    for at in 0..3 {
        for garbage in [&b""[..], b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n"] {
            let error = with_file(&a, at, garbage.to_vec());
            assert!(matches!(error, IdentityError::Malformed { .. }), "{at} {error}");
        }
    }
}

/// An identity as other tools issue it: its key.pem holds the private key and nothing else.
fn without_cookie_key(authority: &Authority, peer: &str, dir: &TempDir) {
    authority.issue_into(&id(peer), &dir.0, false).unwrap();
    let key = pem_block(&std::fs::read(dir.join("key.pem")).unwrap(), "PRIVATE KEY").unwrap();
    std::fs::write(dir.join("key.pem"), to_pem("PRIVATE KEY", &key)).unwrap();
}

#[test]
fn the_cookie_key_can_come_in_a_file_of_its_own() {
    let authority = Authority::generate("demo").unwrap();
    let (a_dir, b_dir) = (TempDir::new(), TempDir::new());
    without_cookie_key(&authority, "a", &a_dir);
    without_cookie_key(&authority, "b", &b_dir);
    let error = Identity::from_dir(&a_dir.0).err().unwrap();
    assert!(matches!(error, IdentityError::NoCookieKey { .. }), "{error}");
    assert!(error.to_string().contains("cookie.key"), "{error}");

    let key: [u8; 32] = rand::random();
    std::fs::write(a_dir.join("cookie.key"), STANDARD.encode(key) + "\n").unwrap();
    let elsewhere = b_dir.join("other.key");
    std::fs::write(&elsewhere, to_pem(COOKIE_KEY_LABEL, &key)).unwrap();
    let a = Identity::from_dir(&a_dir.0).unwrap();
    let b = Identity::from_dir_and_cookie_key(&b_dir.0, &elsewhere).unwrap();
    let tag = a.cookie_authenticator().tag(b"cookie");
    assert!(b.cookie_authenticator().verify(b"cookie", &tag));

    // The key is replaced in three steps, and no step forgets a client.
    let second = b_dir.join("second.key");
    std::fs::write(&second, STANDARD.encode(rand::random::<[u8; 32]>())).unwrap();
    let c = Identity::from_dir_and_cookie_keys(&b_dir.0, [&elsewhere, &second]).unwrap();
    let d = Identity::from_dir_and_cookie_keys(&b_dir.0, [&second, &elsewhere]).unwrap();
    let e = Identity::from_dir_and_cookie_key(&b_dir.0, &second).unwrap();
    let [b_made, d_made] = [&b, &d].map(|one| one.cookie_authenticator().tag(b"cookie"));
    assert_ne!(b_made, d_made);
    for (one, b_is_believed, d_is_believed) in
        [(&b, true, false), (&c, true, true), (&d, true, true), (&e, false, true)]
    {
        let one = one.cookie_authenticator();
        assert_eq!(one.verify(b"cookie", &b_made), b_is_believed);
        assert_eq!(one.verify(b"cookie", &d_made), d_is_believed);
    }
    let running = b.cookie_authenticator();

    assert!(!b.reload().unwrap());
    std::fs::write(&elsewhere, STANDARD.encode(rand::random::<[u8; 32]>())).unwrap();
    assert!(b.reload().unwrap(), "another cookie key is a change");
    assert!(!running.verify(b"cookie", &b_made), "and counts at once");
}

#[test]
fn a_cookie_key_of_its_own_counts_before_the_one_in_key_pem() {
    let authority = Authority::generate("demo").unwrap();
    let dir = TempDir::new();
    authority.issue_into(&id("a"), &dir.0, false).unwrap();
    std::fs::write(dir.join("cookie.key"), STANDARD.encode(rand::random::<[u8; 32]>())).unwrap();
    let a = Identity::from_dir(&dir.0).unwrap();
    let tag = a.cookie_authenticator().tag(b"cookie");
    let b = authority.issue(&id("b")).unwrap();
    assert!(!b.cookie_authenticator().verify(b"cookie", &tag));
}

#[test]
fn the_error_of_a_malformed_cookie_key_says_what_it_has_to_be_and_never_what_it_is() {
    let authority = Authority::generate("demo").unwrap();
    let dir = TempDir::new();
    authority.issue_into(&id("a"), &dir.0, false).unwrap();
    let file = dir.join("cookie.key");
    let short = STANDARD.encode([7; 31]);
    let zeros = STANDARD.encode([0; 32]);
    for bad in ["", "not base64 at all", &short, &zeros] {
        std::fs::write(&file, bad).unwrap();
        let error = Identity::from_dir(&dir.0).err().unwrap();
        assert!(matches!(error, IdentityError::CookieKey { .. }), "{bad:?} {error}");
        let text = error.to_string();
        assert!(text.contains("32 random bytes in base64"), "{text}");
        assert!(bad.is_empty() || !text.contains(bad), "{text}");
    }
    let error = Identity::from_dir_and_cookie_key(&dir.0, dir.join("none")).err().unwrap();
    assert!(matches!(error, IdentityError::CookieKey { .. }), "{error}");
}

#[test]
fn truncated_files_never_panic() {
    let authority = Authority::generate("demo").unwrap();
    let identity = authority.issue(&id("a")).unwrap();
    let files = identity.inner.loaded.load().files.clone();
    for at in 0..3 {
        for len in (0..files[at].len() - 1).step_by(7) {
            let mut cut = files.clone();
            cut[at].truncate(len);
            // A key file whose last line lost only its dashes may still pass.
            let _ = Loaded::check(Path::new("dir"), cut, Vec::new());
        }
    }
}

#[test]
fn a_certificate_out_of_its_dates_names_the_clock() {
    let path = Path::new("cert.pem");
    let now = SystemTime::now();
    let error = check_dates(path, now - 2 * DAY, now - DAY).err().unwrap();
    assert!(matches!(error, IdentityError::Expired { ago_s: 86_400.., .. }), "{error}");
    let error = check_dates(path, now + DAY, now + 2 * DAY).err().unwrap();
    assert!(matches!(error, IdentityError::NotYetValid { in_s: 86_000.., .. }), "{error}");
    assert!(error.to_string().contains("clock"), "{error}");
    check_dates(path, now - DAY, now + DAY).unwrap();
}

#[test]
fn an_expired_certificate_is_refused_when_it_is_loaded() {
    let authority = Authority::generate("demo").unwrap();
    let a = authority.issue(&id("a")).unwrap();
    let (cert, key) = authority.certify(&id("a"), SystemTime::now() - DAY / 2).unwrap();
    let mut files = a.inner.loaded.load().files.clone();
    (files[1], files[2]) = (cert, key);
    let error = Loaded::check(Path::new("dir"), files, Vec::new()).err().unwrap();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named_with_what_it_is_of() {
    let nowhere = TempDir::new();
    let error = Identity::from_dir(&nowhere.0).err().unwrap().to_string();
    assert!(error.contains("ca.pem of the identity"), "{error}");
    let error = Authority::from_dir(&nowhere.0).err().unwrap().to_string();
    assert!(error.contains("ca.pem of the authority"), "{error}");
}

#[test]
fn a_reload_takes_what_is_new_and_refuses_what_is_anothers_or_broken() {
    let peer = TempDir::new();
    let authority = Authority::generate("demo").unwrap();
    authority.issue_into(&id("a"), &peer.0, false).unwrap();
    let identity = Identity::from_dir(&peer.0).unwrap();
    let changes = identity.changes();
    assert!(!identity.reload().unwrap());
    assert!(!changes.has_changed().unwrap());

    authority.issue_into(&id("a"), &peer.0, true).unwrap();
    assert!(identity.reload().unwrap());
    assert!(changes.has_changed().unwrap());

    authority.issue_into(&id("b"), &peer.0, true).unwrap();
    assert!(matches!(identity.reload(), Err(IdentityError::Replaced { .. })));
    std::fs::write(peer.join("cert.pem"), b"half").unwrap();
    assert!(identity.reload().is_err());
    assert_eq!(identity.peer(), id("a"));
    identity.quic().unwrap();
}

#[test]
fn cookie_tags_are_of_one_cluster_and_one_message() {
    let authority = Authority::generate("demo").unwrap();
    let tags = authority.issue(&id("a")).unwrap().cookie_authenticator();
    let tag = tags.tag(b"message");
    assert!(tags.verify(b"message", &tag));
    assert!(!tags.verify(b"massage", &tag));
    for at in 0..tag.len() {
        let mut forged = tag;
        forged[at] ^= 1;
        assert!(!tags.verify(b"message", &forged));
    }
    for truncated in [&tag[..15], &[]] {
        assert!(!tags.verify(b"message", truncated));
    }
    let same_key = CookieKey::new(&authority.cookie_key, "other");
    assert!(!same_key.verify(b"message", &tag), "the cluster's name is part of the key");
    let other = Authority::generate("demo").unwrap().issue(&id("a")).unwrap();
    assert!(!other.cookie_authenticator().verify(b"message", &tag));
}
