//! `[mesh]`: how the peer meets the others.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;
use warmhop::identity::RefusedPeers;

use super::{Field, Table};
use crate::config::Mesh;

/// The most members that a list can refuse.
const REFUSED_MAX: usize = 1_000;

pub(super) fn read(root: &mut Table<'_>, peer: &str) -> Mesh {
    let mut mesh = Mesh {
        listen: SocketAddr::from(([127, 0, 0, 1], 7001)),
        advertise: None,
        seeds: Vec::new(),
        identity: PathBuf::from(format!("certs/{peer}")),
        refuse: RefusedPeers::default(),
        cookie_key: Vec::new(),
    };
    let mut identity_field = None;
    if let Some(mut table) = root.table("mesh") {
        let mut listen_span = None;
        if let Some(field) = table.take("listen") {
            listen_span = Some(field.span.clone());
            mesh.listen = field.socket_addr().unwrap_or(mesh.listen);
        }
        if let Some(field) = table.take("advertise") {
            mesh.advertise = field.socket_addr();
            if mesh.advertise.is_some_and(|addr| addr.ip().is_unspecified() || addr.port() == 0) {
                field.report(
                    "other peers cannot send to an address of zeros or to port 0",
                    "name the address and port that they reach this peer at",
                );
            }
        } else if mesh.listen.ip().is_unspecified() {
            table.reader.report(
                listen_span,
                "mesh.advertise",
                format!(
                    "the peer listens on {} and does not say where it can be reached",
                    mesh.listen
                ),
                "add advertise = \"ADDRESS:PORT\" as the other peers see it",
            );
        }
        if let Some(field) = table.take("seeds") {
            mesh.seeds = field.array().unwrap_or_default().iter().filter_map(Field::seed).collect();
        }
        if let Some(field) = table.take("identity") {
            if let Some(text) = field.text() {
                mesh.identity = PathBuf::from(text);
            }
            identity_field = Some(field.span);
        }
        if let Some(field) = table.take("refuse") {
            let names = field.array().unwrap_or_default();
            if names.len() > REFUSED_MAX {
                field.report(
                    format!("{} members are refused, more than {REFUSED_MAX}", names.len()),
                    "make a new authority, and issue every other peer's certificate anew",
                );
            }
            for name in names.iter().take(REFUSED_MAX) {
                name.checked(|text| {
                    let added = mesh.refuse.add(text);
                    added.map_err(|invalid| format!("expected {}", invalid.expected))
                });
            }
        }
        if let Some(field) = table.take("cookie_key") {
            mesh.cookie_key = read_cookie_keys(&field);
        }
        table.finish();
    }
    let dir = root.reader.folder.join(&mesh.identity);
    if let Some(file) = ["ca.pem", "cert.pem", "key.pem"].iter().find(|f| !dir.join(f).exists()) {
        root.reader.warn(
            identity_field,
            "mesh.identity",
            format!("there is no {}", dir.join(file).display()),
            format!("make it with `warmhop cert peer {peer} --ca DIR --out {}`", dir.display()),
        );
    }
    mesh
}

/// One file, or two while a new key replaces the old one.
fn read_cookie_keys(field: &Field<'_>) -> Vec<PathBuf> {
    let files = match field.value {
        DeValue::Array(_) => field.array().unwrap_or_default(),
        _ => Vec::new(),
    };
    let paths: Vec<PathBuf> = match field.value {
        DeValue::Array(_) => files.iter().filter_map(Field::path).collect(),
        _ => field.path().into_iter().collect(),
    };
    if paths.len() > 2 || (paths.is_empty() && field.value.as_array().is_some()) {
        field.report(
            format!("{} files are named", paths.len()),
            "name one file, or two: the first makes cookies, and those of both are believed",
        );
    }
    for file in paths.iter().filter(|file| !file.exists()) {
        field.warn(
            format!("there is no {}", file.display()),
            "make it once with `openssl rand -base64 32`, the same for every peer",
        );
    }
    paths
}
