//! A choice among peers on which all agree without a message: rendezvous hashing (Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
//! Networking 6(1), 1998).
//!
//! Each peer's score for a key is a hash of both; the highest score comes first. Peers that believe
//! in the same live peers agree on the order; a peer that leaves moves only the keys that it was
//! first for, and a peer that joins takes only those that it is first for (I15). The hash is
//! SipHash-2-4 (Aumasson and Bernstein, 2012) under a fixed key: it only matters that every peer,
//! version and machine computes the same.

use alloc::vec::Vec;
use core::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::ids::{AppName, Incarnation, PeerId, SessionId, WallTime};

// Part of what peers agree on: another key gives another order.
const KEY_0: u64 = u64::from_be_bytes(*b"warmhop ");
const KEY_1: u64 = u64::from_be_bytes(*b"rank  v1");

// Distinct, so that the bytes of an app's name are never those of a session's id.
const FOR_SESSION: u8 = 1;
const FOR_APP: u8 = 2;
const FOR_LIFE: u8 = 3;

/// The peers by their score for `key`, highest first; equal scores by name.
pub fn rank<'a>(key: &[u8], peers: impl IntoIterator<Item = &'a PeerId>) -> Vec<PeerId> {
    let mut scored: Vec<(u64, &PeerId)> =
        peers.into_iter().map(|peer| (score(key, peer), peer)).collect();
    scored.sort_unstable_by(|(a, a_peer), (b, b_peer)| b.cmp(a).then_with(|| a_peer.cmp(b_peer)));
    scored.dedup_by(|(_, a), (_, b)| a == b);
    scored.into_iter().map(|(_, peer)| peer.clone()).collect()
}

/// The order in which to ask peers for a session without a token: the first live one is the
/// session's third member.
pub fn session_ranks<'a>(
    sid: &SessionId,
    peers: impl IntoIterator<Item = &'a PeerId>,
) -> Vec<PeerId> {
    rank(&session_key(sid), peers)
}

/// The highest-ranked peer for the session that is not excluded, as its owner and its executor are:
/// this lets any peer find a session without its token.
pub fn third_member<'a>(
    sid: &SessionId,
    live: impl IntoIterator<Item = &'a PeerId>,
    exclude: &[PeerId],
) -> Option<PeerId> {
    let key = session_key(sid);
    live.into_iter()
        .filter(|peer| !exclude.contains(peer))
        .max_by(|a, b| score(&key, a).cmp(&score(&key, b)).then_with(|| b.cmp(a)))
        .cloned()
}

/// The `k` peers that are to keep the app ready, of those alive that may start it; all of them if
/// there are fewer.
pub fn keepers<'a>(
    app: &AppName,
    live: impl IntoIterator<Item = &'a PeerId>,
    k: usize,
) -> Vec<PeerId> {
    let mut key = Vec::with_capacity(1 + app.as_str().len());
    key.push(FOR_APP);
    key.extend_from_slice(app.as_str().as_bytes());
    let mut ranked = rank(&key, live);
    ranked.truncate(k);
    ranked
}

impl Incarnation {
    /// A life of `peer` that began at `born`. The random bits distinguish two lives that began in
    /// the same millisecond.
    #[must_use]
    pub fn of(peer: &PeerId, born: WallTime, random: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&random.to_be_bytes());
        bytes[4..10].copy_from_slice(&score(&[FOR_LIFE], peer).to_be_bytes()[2..]);
        bytes[10..].copy_from_slice(&born.0.to_be_bytes()[2..]);
        Self(bytes)
    }
}

fn session_key(sid: &SessionId) -> [u8; 17] {
    let mut key = [FOR_SESSION; 17];
    key[1..].copy_from_slice(&sid.0);
    key
}

fn score(key: &[u8], peer: &PeerId) -> u64 {
    let mut hash = SipHasher24::new_with_keys(KEY_0, KEY_1);
    // The length distinguishes inputs whose concatenation is the same. Only bytes are hashed:
    // `write_u64` and its like depend on the machine's byte order.
    hash.write(&(key.len() as u64).to_be_bytes());
    hash.write(key);
    hash.write(peer.as_str().as_bytes());
    hash.finish()
}
