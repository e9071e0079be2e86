//! The names in certificates: of a cluster, and of its peers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use warmhop_core::ids::PeerId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::identity::limits::CLUSTER_LEN_MAX;
use crate::identity::problem::IdentityError;

pub(super) fn spiffe_id(cluster: &str, peer: &PeerId) -> String {
    format!("spiffe://{cluster}/peer/{peer}")
}

pub(super) fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri =
        |name: &GeneralName<'a>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// SPIFFE allows a certificate one URI name only; a certificate with several names no peer.
pub(super) fn peer_name(certificate: &X509Certificate<'_>) -> Option<(String, PeerId)> {
    let [uri] = uri_names(certificate)[..] else { return None };
    let (cluster, name) = uri.strip_prefix("spiffe://")?.split_once("/peer/")?;
    Some((cluster_checked(cluster).ok()?, PeerId::new(name).ok()?))
}

pub(super) fn cluster_checked(name: &str) -> Result<String, IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=CLUSTER_LEN_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(IdentityError::ClusterName { found: name.chars().take(64).collect() })
    }
}

pub(super) fn unix_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}
