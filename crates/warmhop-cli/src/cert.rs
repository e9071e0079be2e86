//! `warmhop cert`: a cluster's authority and its peers' identities.

use std::fmt::Write;
use std::path::Path;

use warmhop::identity::{Authority, IdentityError};
use warmhop::ids::PeerId;

/// Makes an authority for `cluster` in `out`; returns what to tell.
///
/// # Errors
/// If the name is out of form, a key is there already, or a file cannot be written.
pub fn make_authority(out: &Path, cluster: &str, force: bool) -> Result<String, IdentityError> {
    Authority::generate(cluster)?.write(out, force)?;
    let mut text = String::new();
    let dir = out.display();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "wrote {dir}/ca.pem      the authority of the cluster {cluster}; peers trust whom it vouches for\n\
         wrote {dir}/ca-key.pem  its private key: whoever has it can make peers, so keep it off them\n\
         \n\
         Next, for each peer: warmhop cert peer NAME --ca {dir} --out certs/NAME\n"
    );
    Ok(text)
}

/// Issues the identity of the peer `name` from the authority in `ca` into `out`; returns what
/// to tell.
///
/// # Errors
/// If the authority cannot be used, a key is there already, or a file cannot be written.
pub fn issue_peer(
    name: &PeerId,
    ca: &Path,
    out: &Path,
    force: bool,
) -> Result<String, IdentityError> {
    let authority = Authority::from_dir(ca)?;
    authority.issue_into(name, out, force)?;
    let mut text = String::new();
    let (dir, cluster) = (out.display(), authority.cluster());
    let _ = write!(
        text,
        "wrote {dir}/ca.pem    whom this peer trusts\n\
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
