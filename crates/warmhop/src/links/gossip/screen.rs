//! Screens gossip before chitchat, which trusts its input: names, keys, values and numbers out of
//! bounds could end its task.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use bytes::{Buf, BufMut};
use chitchat::{ChitchatMessage, Deserializable};
use warmhop_core::ids::{AppName, PeerId};

use crate::links::wire::{GENERATION_MAX, GOSSIP_VALUE_BYTES_MAX};

/// Nodes in one message. Far above the digest of a mesh, and far below where one near
/// 64 KiB would end chitchat's task.
const NODES_PER_MESSAGE_MAX: usize = 600;

/// The largest size of the compressed part of one message, decompressed.
const DELTA_BYTES_MAX: usize = 4 << 20;

const BLOCK_BYTES_MAX: usize = u16::MAX as usize;

pub(in crate::links) const VALUE_CHARS_MAX: usize = GOSSIP_VALUE_BYTES_MAX.div_ceil(3) * 4;

/// The limit on heartbeats and versions, which nothing counts up to in any lifetime.
const COUNT_MAX: u64 = 1 << 53;

pub(in crate::links) const PEER_KEY: &str = "peer";

pub(in crate::links) const APP_PREFIX: &str = "app/";

/// Whether `bytes` are a message that chitchat would accept.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn is_well_formed(bytes: &[u8]) -> bool {
    screened(bytes, Me { name: "me", generation: 1, version: 0 }).is_some()
}

/// The first bytes of every message: a magic number and the version.
const HEADER: [u8; 3] = [0x53, 0xB0, 0];
/// The last message of three between two nodes if the other one lacks nothing: it is not sent.
pub(in crate::links) const EMPTY_ACK: [u8; 5] =
    [HEADER[0], HEADER[1], HEADER[2], 2, EMPTY_DELTA[0]];
/// An empty delta: no block follows.
const EMPTY_DELTA: [u8; 1] = [0];

/// The node whose state only this peer writes.
#[derive(Clone, Copy)]
pub(in crate::links) struct Me<'a> {
    pub(in crate::links) name: &'a str,
    pub(in crate::links) generation: u64,
    /// The highest version of its state so far.
    pub(in crate::links) version: u64,
}

/// The message, if its names, keys, values and numbers are within bounds.
///
/// Others repeat the earlier lives of `me`, which is harmless. They also repeat what they have just
/// learnt of its present life to a peer that asked before they learnt it: that part is left out,
/// since chitchat would take it for news. Nobody else knows of more than this peer has written.
pub(in crate::links) fn screened(bytes: &[u8], me: Me<'_>) -> Option<ChitchatMessage> {
    let mut rest = bytes.strip_prefix(&HEADER)?;
    let mut mended = None;
    match take_u8(&mut rest)? {
        0 => {
            screen_digest(&mut rest)?;
            take_text(&mut rest)?;
        }
        1 => {
            let mut digest = rest;
            screen_digest(&mut rest)?;
            if *rest == EMPTY_DELTA {
                // For chitchat, reading a delta costs as much as all the rest, and most deltas are
                // empty.
                let digest = Deserializable::deserialize(&mut digest).ok()?;
                return Some(ChitchatMessage::SynAck { digest, delta: Default::default() });
            }
            let before = bytes.len() - rest.len();
            mended = without_own(&bytes[..before], screen_delta(&mut rest, me)?);
        }
        2 => {
            let before = bytes.len() - rest.len();
            mended = without_own(&bytes[..before], screen_delta(&mut rest, me)?);
        }
        _ => return None,
    }
    if !rest.is_empty() {
        return None;
    }
    let mut whole = mended.as_deref().unwrap_or(bytes);
    ChitchatMessage::deserialize(&mut whole).ok()
}

/// The message that begins with `before` and goes on with a delta of the operations `kept`; `None`
/// if those are all.
fn without_own(before: &[u8], kept: Kept) -> Option<Vec<u8>> {
    let Kept::Some(operations) = kept else { return None };
    let mut message = before.to_vec();
    for block in operations.chunks(BLOCK_BYTES_MAX) {
        message.push(2);
        message.put_u16_le(u16::try_from(block.len()).expect("a block has at most that length"));
        message.extend_from_slice(block);
    }
    message.extend_from_slice(&EMPTY_DELTA);
    Some(message)
}

fn screen_digest(rest: &mut &[u8]) -> Option<()> {
    let nodes = usize::from(take_u16(rest)?);
    if nodes > NODES_PER_MESSAGE_MAX {
        return None;
    }
    for _ in 0..nodes {
        take_node(rest)?;
        // Heartbeat, collected version, highest version.
        for _ in 0..3 {
            take_count(rest)?;
        }
    }
    Some(())
}

/// What is kept of a delta.
enum Kept {
    All,
    /// These operations, since the others are about this peer's own present life.
    Some(Vec<u8>),
}

/// Compressed blocks of operations: a node, then values of it with growing versions.
fn screen_delta(rest: &mut &[u8], me: Me<'_>) -> Option<Kept> {
    let operations = operations_of(rest)?;
    let own = screen_operations(&operations, me)?;
    if own.is_empty() {
        return Some(Kept::All);
    }
    let mut kept = Vec::with_capacity(operations.len());
    let mut from = 0;
    for part in own {
        kept.extend_from_slice(&operations[from..part.start]);
        from = part.end;
    }
    kept.extend_from_slice(&operations[from..]);
    Some(Kept::Some(kept))
}

/// The operations, unpacked.
fn operations_of(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut operations = Vec::new();
    // Most deltas are empty, and clearing a block costs more than all the rest.
    let mut block = Vec::new();
    loop {
        let kind = take_u8(rest)?;
        if kind == 0 {
            break;
        }
        let len = usize::from(take_u16(rest)?);
        let bytes = take(rest, len)?;
        match kind {
            1 => {
                block.resize(BLOCK_BYTES_MAX, 0);
                let len = zstd::bulk::decompress_to_buffer(bytes, &mut block[..]).ok()?;
                operations.extend_from_slice(&block[..len]);
            }
            2 => operations.extend_from_slice(bytes),
            _ => return None,
        }
        if operations.len() > DELTA_BYTES_MAX {
            return None;
        }
    }
    Some(operations)
}

/// The places of those that are about this peer's own present life.
fn screen_operations(operations: &[u8], me: Me<'_>) -> Option<Vec<Range<usize>>> {
    let mut rest = operations;
    let mut nodes = 0;
    let mut version = None;
    let mut own: Vec<Range<usize>> = Vec::new();
    // Whether the present node is this one, and the highest version that there can be of it.
    let (mut is_own, mut version_max) = (false, COUNT_MAX);
    while !rest.is_empty() {
        let at = operations.len() - rest.len();
        match take_u8(&mut rest)? {
            0 => {
                nodes += 1;
                let (name, generation) = take_node(&mut rest)?;
                is_own = name == me.name && generation == me.generation;
                let is_of_later_life = name == me.name && generation > me.generation;
                if nodes > NODES_PER_MESSAGE_MAX || is_of_later_life {
                    return None;
                }
                version_max = if is_own { me.version } else { COUNT_MAX };
                // Collected version, and the version that the values begin after.
                let (collected, after) = (take_count(&mut rest)?, take_count(&mut rest)?);
                if collected.max(after) > version_max {
                    return None;
                }
                version = Some(0);
                if is_own {
                    own.push(at..at);
                }
            }
            1 => {
                let key = take_text(&mut rest)?;
                let app = key.strip_prefix(APP_PREFIX).is_some_and(|app| AppName::new(app).is_ok());
                if !(key == PEER_KEY || app) || take_text(&mut rest)?.len() > VALUE_CHARS_MAX {
                    return None;
                }
                let next = take_count(&mut rest)?;
                // Set, deleted, or deleted later; warmhop only ever sets.
                if take_u8(&mut rest)? != 0 || version? >= next || next > version_max {
                    return None;
                }
                version = Some(next);
            }
            // The highest version of a node without values to send.
            2 => {
                if version? != 0 {
                    return None;
                }
                version = Some(take_count(&mut rest).filter(|next| *next <= version_max)?);
            }
            _ => return None,
        }
        if is_own && let Some(part) = own.last_mut() {
            part.end = operations.len() - rest.len();
        }
    }
    Some(own)
}

/// A node's name and generation, if the rest of its id is well-formed as well.
fn take_node<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, u64)> {
    let name = take_text(rest)?;
    PeerId::new(name).ok()?;
    let generation = take_u64(rest).filter(|generation| *generation <= GENERATION_MAX)?;
    let ip: IpAddr = match take_u8(rest)? {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(take(rest, 4)?).ok()?).into(),
        6 => Ipv6Addr::from(<[u8; 16]>::try_from(take(rest, 16)?).ok()?).into(),
        _ => return None,
    };
    let port = take_u16(rest)?;
    (port != 0 && !ip.is_unspecified()).then_some((name, generation))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = take_u16(rest)?;
    std::str::from_utf8(take(rest, len.into())?).ok()
}

fn take_count(rest: &mut &[u8]) -> Option<u64> {
    take_u64(rest).filter(|count| *count <= COUNT_MAX)
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    rest.try_get_u8().ok()
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    rest.try_get_u16_le().ok()
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    rest.try_get_u64_le().ok()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use chitchat::transport::{Socket, Transport};
    use chitchat::{
        ChitchatConfig, ChitchatId, FailureDetectorConfig, Serializable, spawn_chitchat,
    };
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn an_ack_that_brings_nothing_is_known_by_its_bytes() {
        let message = screened(&EMPTY_ACK, me("me", 1)).unwrap();
        assert!(matches!(message, ChitchatMessage::Ack { .. }));
        assert_eq!(message.serialize_to_vec(), EMPTY_ACK);
    }

    #[test]
    fn an_answer_whose_delta_is_empty_is_read_as_chitchat_reads_it() {
        let mut answer = Vec::from(HEADER);
        answer.extend([1, 1, 0]);
        put_node(&mut answer, "peer", 7);
        for count in [3_u64, 0, 5] {
            answer.extend(count.to_le_bytes());
        }
        answer.extend(EMPTY_DELTA);
        let read = screened(&answer, me("me", 1)).unwrap();
        assert_eq!(read, ChitchatMessage::deserialize(&mut &answer[..]).unwrap());
        assert!(screened(&[&answer[..], &EMPTY_DELTA].concat(), me("me", 1)).is_none());
        assert!(screened(&answer[..answer.len() - 1], me("me", 1)).is_none());
    }

    /// A node whose state nobody has written yet.
    fn me(name: &str, generation: u64) -> Me<'_> {
        Me { name, generation, version: 0 }
    }

    fn put_text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn put_node(bytes: &mut Vec<u8>, name: &str, generation: u64) {
        put_text(bytes, name);
        bytes.extend(generation.to_le_bytes());
        bytes.extend([4, 127, 0, 0, 1]);
        bytes.extend(7001_u16.to_le_bytes());
    }

    /// An ACK whose delta has one node and one value, in a block that is not compressed.
    fn ack(name: &str, key: &str, value: &str, versions: [u64; 3]) -> Vec<u8> {
        let mut operations = vec![0];
        put_node(&mut operations, name, 1);
        operations.extend(versions[0].to_le_bytes());
        operations.extend(versions[1].to_le_bytes());
        operations.push(1);
        put_text(&mut operations, key);
        put_text(&mut operations, value);
        operations.extend(versions[2].to_le_bytes());
        operations.push(0);
        message_of_delta(&operations)
    }

    fn message_of_delta(operations: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x53, 0xB0, 0, 2, 2];
        bytes.extend(u16::try_from(operations.len()).unwrap().to_le_bytes());
        bytes.extend(operations);
        bytes.push(0);
        bytes
    }

    #[test]
    fn messages_that_chitchat_itself_makes_pass_the_screen() {
        let config = |name: &str, port: u16| ChitchatConfig {
            chitchat_id: ChitchatId::new(name, 1, SocketAddr::from(([127, 0, 0, 1], port))),
            cluster_id: "demo".into(),
            gossip_interval: Duration::from_secs(1),
            listen_addr: SocketAddr::from(([127, 0, 0, 1], port)),
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(1),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Two loops over a transport that hands out their messages.
        let (tap, mut said) = mpsc::channel::<Vec<u8>>(64);
        let values: Vec<(String, String)> =
            (0..500).map(|n| (format!("app/a{n}"), format!("{n:064}"))).collect();
        runtime.block_on(async {
            let (a_in, a_out) = mpsc::channel(64);
            let (b_in, b_out) = mpsc::channel(64);
            let a =
                Tapped { inbound: Mutex::new(Some(a_out)), other: b_in, tap: tap.clone(), from: 1 };
            let b = Tapped { inbound: Mutex::new(Some(b_out)), other: a_in, tap, from: 2 };
            let a = spawn_chitchat(config("a", 1), values, &a).await.unwrap();
            let b = spawn_chitchat(config("b", 2), Vec::new(), &b).await.unwrap();
            b.gossip(SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
            let mut kinds = std::collections::HashSet::new();
            while kinds.len() < 3 {
                let message = said.recv().await.unwrap();
                assert!(screened(&message, me("me", 1)).is_some(), "kind {}", message[3]);
                kinds.insert(message[3]);
            }
            a.abort();
            b.abort();
        });
    }

    struct Tapped {
        inbound: Mutex<Option<mpsc::Receiver<(SocketAddr, ChitchatMessage)>>>,
        other: mpsc::Sender<(SocketAddr, ChitchatMessage)>,
        tap: mpsc::Sender<Vec<u8>>,
        from: u16,
    }

    struct TappedSocket {
        inbound: mpsc::Receiver<(SocketAddr, ChitchatMessage)>,
        other: mpsc::Sender<(SocketAddr, ChitchatMessage)>,
        tap: mpsc::Sender<Vec<u8>>,
        from: u16,
    }

    #[async_trait::async_trait]
    impl Transport for Tapped {
        async fn open(&self, _: SocketAddr) -> Result<Box<dyn Socket>, anyhow::Error> {
            let inbound = self.inbound.lock().unwrap().take().unwrap();
            let (other, tap) = (self.other.clone(), self.tap.clone());
            Ok(Box::new(TappedSocket { inbound, other, tap, from: self.from }))
        }
    }

    #[async_trait::async_trait]
    impl Socket for TappedSocket {
        async fn send(
            &mut self,
            _: SocketAddr,
            message: ChitchatMessage,
        ) -> Result<(), anyhow::Error> {
            let _ = self.tap.try_send(message.serialize_to_vec());
            let from = SocketAddr::from(([127, 0, 0, 1], self.from));
            let _ = self.other.try_send((from, message));
            Ok(())
        }

        async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage), anyhow::Error> {
            match self.inbound.recv().await {
                Some(message) => Ok(message),
                None => std::future::pending().await,
            }
        }
    }

    #[test]
    fn messages_that_could_end_chitchats_task_are_refused() {
        let fine = ack("b", "app/shop", "value", [0, 0, 1]);
        assert!(screened(&fine, me("a", 1)).is_some());
        assert!(screened(&fine, me("b", 1)).is_none(), "nobody else writes this peer's state");
        assert!(screened(&fine, me("b", 2)).is_some(), "but its former lives are no secret");
        let refused = [
            ("a key of another form", ack("b", "épée", "v", [0, 0, 1])),
            ("a malformed app", ack("b", "app/a b", "v", [0, 0, 1])),
            ("a long value", ack("b", "peer", &"v".repeat(VALUE_CHARS_MAX + 1), [0, 0, 1])),
            ("a version that ends counting", ack("b", "peer", "v", [0, 0, u64::MAX])),
            ("a collected version that does", ack("b", "peer", "v", [u64::MAX, 0, 1])),
            ("a version zero", ack("b", "peer", "v", [0, 0, 0])),
            ("a malformed name", ack("b.c", "peer", "v", [0, 0, 1])),
            ("another magic number", [&[0, 0], &fine[2..]].concat()),
            ("another version", [&fine[..2], &[1], &fine[3..]].concat()),
            ("a rejection, which no peer of this cluster sends", vec![0x53, 0xB0, 0, 3]),
            ("bytes behind the message", [&fine[..], &[0]].concat()),
        ];
        for (what, message) in refused {
            assert!(screened(&message, me("a", 1)).is_none(), "{what}");
        }

        // A highest version below that of a value would fail an assertion inside.
        let mut operations = vec![0];
        put_node(&mut operations, "b", 1);
        operations.extend([0; 16]);
        operations.push(1);
        put_text(&mut operations, "peer");
        put_text(&mut operations, "v");
        operations.extend(9_u64.to_le_bytes());
        operations.push(0);
        operations.push(2);
        operations.extend(3_u64.to_le_bytes());
        assert!(screened(&message_of_delta(&operations), me("a", 1)).is_none());

        // A digest with a heartbeat that cannot be incremented.
        let mut syn = vec![0x53, 0xB0, 0, 0, 1, 0];
        put_node(&mut syn, "b", 1);
        let heartbeat = syn.len();
        syn.extend([0; 24]);
        put_text(&mut syn, "demo");
        assert!(screened(&syn, me("a", 1)).is_some());
        syn[heartbeat..heartbeat + 8].fill(0xFF);
        assert!(screened(&syn, me("a", 1)).is_none());
    }

    /// A part about a node: the collected version, the one before the values, and theirs.
    fn part(name: &str, generation: u64, before: [u64; 2], versions: &[u64]) -> Vec<u8> {
        let mut operations = vec![0];
        put_node(&mut operations, name, generation);
        operations.extend(before.map(u64::to_le_bytes).as_flattened());
        for version in versions {
            operations.push(1);
            put_text(&mut operations, "app/shop");
            put_text(&mut operations, "value");
            operations.extend(version.to_le_bytes());
            operations.push(0);
        }
        operations
    }

    #[test]
    fn repeats_of_this_peers_own_state_are_dropped_and_the_rest_is_heard() {
        let me = Me { version: 5, ..me("b", 7) };
        let own = part("b", 7, [0, 3], &[4, 5]);
        let others = [part("a", 1, [0, 0], &[1, 9]), part("c", 1, [2, 2], &[3])];
        let rest = message_of_delta(&others.concat());
        let expected = screened(&rest, me).unwrap();
        for at in 0..=others.len() {
            let mut parts = others.to_vec();
            parts.insert(at, own.clone());
            let repeated = message_of_delta(&parts.concat());
            assert_eq!(screened(&repeated, me).as_ref(), Some(&expected), "at {at}");
        }
        let alone = screened(&message_of_delta(&own), me).unwrap();
        assert_eq!(alone.serialize_to_vec(), EMPTY_ACK);

        // An answer also contains its digest.
        let mut answer = Vec::from(HEADER);
        answer.extend([1, 1, 0]);
        put_node(&mut answer, "a", 1);
        answer.extend([0; 24]);
        let whole = [&answer[..], &message_of_delta(&own)[4..]].concat();
        let empty = [&answer[..], &EMPTY_DELTA].concat();
        assert_eq!(screened(&whole, me), screened(&empty, me));
        assert!(screened(&whole, me).is_some());
    }

    #[test]
    fn forged_news_about_this_peer_is_refused() {
        let me = Me { version: 5, ..me("b", 7) };
        let mut highest = part("b", 7, [0, 3], &[]);
        highest.push(2);
        let highest_is = |version: u64| [&highest[..], &version.to_le_bytes()].concat();
        let passes = |operations: &[u8]| screened(&message_of_delta(operations), me).is_some();
        assert!(passes(&highest_is(5)));
        assert!(passes(&part("b", 6, [0, 3], &[9])), "its earlier life may have had more");
        let mut malformed = part("b", 7, [0, 3], &[4]);
        *malformed.last_mut().unwrap() = 1;
        for (what, operations) in [
            ("a newer value", part("b", 7, [0, 3], &[4, 6])),
            ("a newer highest version", highest_is(6)),
            ("values collected later", part("b", 7, [6, 3], &[4])),
            ("values after later ones", part("b", 7, [0, 6], &[])),
            ("a later life", part("b", 8, [0, 0], &[1])),
            ("a deleted value", malformed),
            ("two values of one version", part("b", 7, [0, 3], &[4, 4])),
        ] {
            assert!(!passes(&operations), "{what}");
            let among_others = [part("a", 1, [0, 0], &[1]), operations, part("c", 1, [0, 0], &[1])];
            assert!(!passes(&among_others.concat()), "{what} among others");
        }
    }

    #[test]
    fn a_small_message_cannot_unfold_into_a_large_one() {
        let zeros = vec![0; BLOCK_BYTES_MAX];
        let block = zstd::bulk::compress(&zeros, 0).unwrap();
        let mut bomb = vec![0x53, 0xB0, 0, 2];
        for _ in 0..DELTA_BYTES_MAX / BLOCK_BYTES_MAX + 2 {
            bomb.push(1);
            bomb.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
            bomb.extend(&block);
        }
        bomb.push(0);
        assert!(bomb.len() < 10_000);
        assert!(screened(&bomb, me("a", 1)).is_none());
    }

    #[test]
    fn no_bytes_make_the_screen_panic() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let fine = ack("b", "app/shop", "value", [0, 0, 1]);
        for len in 0..fine.len() {
            assert!(screened(&fine[..len], me("a", 1)).is_none());
        }
        for _ in 0..5000 {
            let mut bytes = fine.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(3..bytes.len());
                bytes[at] = rng.random();
            }
            let _ = screened(&bytes, me("a", 1));
        }
    }
}
