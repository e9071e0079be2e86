//! `warmhop init`: a commented configuration and an identity for each of a few peers, to start
//! from.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use warmhop::identity::Authority;
use warmhop::ids::PeerId;

use crate::failure::Failure;

/// The most peers that one command writes for.
pub const PEERS_MAX: u16 = 64;
const CLUSTER: &str = "demo";

/// Writes `dir/ca` and, for each peer, `dir/NAME/warmhop.toml` and `dir/NAME/certs`; returns the
/// text to print.
///
/// # Errors
/// If one of them is there already, or cannot be written. Nothing is overwritten.
pub fn write(dir: &Path, peers: u16) -> Result<String, Failure> {
    let names: Vec<PeerId> = (1..=peers)
        .map(|at| PeerId::new(&format!("peer-{at}")))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::failed(error.to_string()))?;
    let home = |name: &PeerId| dir.join(name.as_str());
    let present = std::iter::once(dir.join("ca")).chain(names.iter().map(home));
    if let Some(present) = present.into_iter().find(|path| path.exists()) {
        return Err(Failure::failed(format!(
            "{} exists already, and nothing is overwritten: choose another folder",
            present.display()
        )));
    }
    let authority = Authority::generate(CLUSTER).map_err(Failure::failed)?;
    authority.write(dir.join("ca"), false).map_err(Failure::failed)?;
    for (at, name) in (1..).zip(&names) {
        authority.issue_into(name, home(name).join("certs"), false).map_err(Failure::failed)?;
        let file = home(name).join("warmhop.toml");
        std::fs::write(&file, configuration(name, at, peers)).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", file.display()))
        })?;
    }
    Ok(summary(dir, &names))
}

fn summary(dir: &Path, names: &[PeerId]) -> String {
    let mut text = format!(
        "wrote {0}/ca  the authority of the cluster {CLUSTER}; keep ca-key.pem off the peers\n",
        dir.display()
    );
    let file = |name: &PeerId| -> PathBuf { dir.join(name.as_str()).join("warmhop.toml") };
    for name in names {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "wrote {}  the configuration of {name}, and its identity beside it",
            file(name).display()
        );
    }
    text.push_str("\nNext: put your app into the [[app]] tables, then run each peer\n\n");
    for name in names {
        let _ = writeln!(text, "    warmhop run --config {}", file(name).display());
    }
    text
}

/// The configuration of the peer at position `at`, from 1, among `peers`.
fn configuration(name: &PeerId, at: u16, peers: u16) -> String {
    let (http, mesh, admin, redis) = (8080 + at, 7000 + at, 9000 + at, 6400 + at);
    let seeds: Vec<_> = (1..=peers).map(|at| format!("\"127.0.0.1:{}\"", 7000 + at)).collect();
    let seeds = seeds.join(", ");
    format!(
        r#"# A peer of a warmhop mesh. `warmhop check FILE` prints it with every default filled in.
# On a machine of its own a peer listens on 0.0.0.0 and advertises the address by which the
# others reach it.

cluster = "{CLUSTER}"                       # only peers of one cluster and authority talk

[peer]
name = "{name}"                        # unique in the cluster; the cookie names it to balancers
# zone = "a"                           # peers of the same zone are preferred

[http]
listen = ["127.0.0.1:{http}"]            # for clients and balancers
# tls = {{ cert = "cert.pem", key = "key.pem" }}

[mesh]
listen = "127.0.0.1:{mesh}"              # one UDP port: gossip, hops and sessions, by QUIC
# advertise = "192.0.2.1:{mesh}"         # where the other peers reach it
seeds = [{seeds}]
identity = "certs"                     # ca.pem, cert.pem and key.pem; read again when they change

[admin]
listen = "127.0.0.1:{admin}"              # dashboard, metrics and commands; loopback unless a token is set
# token = "${{WARMHOP_ADMIN_TOKEN}}"

[session]
copies = 3                             # each session is kept on so many peers
ttl = "30m"                            # and ends after so long without use
# redis = "127.0.0.1:{redis}"            # speaks Redis to the apps, for session libraries

[[app]]
name = "app"
match = {{ path = "/" }}                 # the most specific match of all apps wins
run = ["sh", "-c", "exec python3 -m http.server --bind 127.0.0.1 $PORT"]
# dir = "/srv/app"
# env = {{ LOG = "info" }}
ready = {{ path = "/", timeout = "60s" }}
start = "on-request"                   # or "at-boot", or "never": always hop
# stop_when_idle = "10m"
keep_ready = 1                         # copies that are kept ready across the mesh
session = "pinned"                     # in the app's own memory; "portable": kept by the mesh; or "none"
"#
    )
}
