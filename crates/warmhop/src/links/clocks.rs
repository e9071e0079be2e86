//! Compares this peer's wall clock with that of the peer at the other end of a link: asks for it by
//! datagram now and then, and answers with this peer's. The next datagram makes up for a lost one.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::sleep;
use warmhop_core::ids::{Now, WallTime};

use crate::links::context::Shared;
use crate::links::link::Link;
use crate::links::wire::{KIND_CLOCK_ANSWER, KIND_CLOCK_ASKED};

/// How often the other end of a link is asked. A clock that is not synchronized drifts by a second in
/// hours.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often a peer's clock is asked for until its first answer.
const ASK_FIRST_EVERY: Duration = Duration::from_millis(200);

/// Asks for as long as the link is open.
pub(crate) async fn compare(shared: Arc<Shared>, link: Arc<Link>) {
    let asking = async {
        loop {
            ask(&shared, &link);
            let known = shared.clock.knows(&link.peer.peer);
            sleep(if known { ASK_EVERY } else { ASK_FIRST_EVERY }).await;
        }
    };
    tokio::select! {
        () = asking => {}
        _ = link.conn.closed() => {}
    }
}

/// Asks once. The other end answers at once if it lives.
pub(super) fn ask(shared: &Shared, link: &Link) {
    let mut asked = BytesMut::with_capacity(9);
    asked.put_u8(KIND_CLOCK_ASKED);
    asked.put_u64(shared.clock.now().0);
    // A datagram that cannot be sent counts as lost.
    let _ = link.conn.send_datagram(asked.freeze());
}

/// Handles a datagram of either kind.
pub(crate) fn receive(shared: &Shared, link: &Link, datagram: &Bytes) {
    let mut bytes = datagram.clone();
    match (bytes.try_get_u8(), bytes.len()) {
        (Ok(KIND_CLOCK_ASKED), 8) => {
            let mut answer = BytesMut::with_capacity(17);
            answer.put_u8(KIND_CLOCK_ANSWER);
            answer.extend_from_slice(&bytes);
            answer.put_u64(shared.clock.own_reading().0);
            let _ = link.conn.send_datagram(answer.freeze());
        }
        (Ok(KIND_CLOCK_ANSWER), 16) => {
            let (asked, reading) = (Now(bytes.get_u64()), WallTime(bytes.get_u64()));
            shared.clock.heard(&link.peer.peer, asked, reading);
        }
        _ => shared.counters.frame_refused("clock"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::time::Instant;

    use warmhop_core::ids::{AppName, PeerId};

    use super::*;
    use crate::identity::Authority;
    use crate::observe::clock::Clock;
    use crate::{Expires, Mesh, When};

    const MINUTES_40: i64 = 40 * 60 * 1000;
    const PATIENCE: Duration = Duration::from_secs(20);

    fn locks() -> AppName {
        AppName::new("locks").unwrap()
    }

    /// Three peers, of which the last has a clock that is so far ahead, once each knows every
    /// other's clock.
    async fn mesh_beside(ahead_ms: i64) -> Vec<Mesh> {
        let authority = Authority::generate("test").unwrap();
        let mut meshes: Vec<Mesh> = Vec::new();
        for (name, ahead_ms) in [("a", 0), ("b", 0), ("c", ahead_ms)] {
            let peer = PeerId::new(name).unwrap();
            let identity = authority.issue(&peer).unwrap();
            let mut builder = Mesh::builder(identity).registers(locks());
            builder.clock = Some(Clock::ahead(ahead_ms));
            if let Some(first) = meshes.first() {
                builder = builder.seed(first.mesh_addr().to_string());
            }
            meshes.push(builder.start().await.unwrap());
        }
        let late = Instant::now() + PATIENCE;
        let all_have_reported = |mesh: &Mesh| {
            let peers = mesh.status().peers;
            peers.len() == 2 && peers.iter().all(|it| it.alive && it.clock_ahead_ms.is_some())
        };
        while !meshes.iter().all(all_have_reported) {
            assert!(Instant::now() < late, "no peer learned the others' clocks");
            sleep(Duration::from_millis(10)).await;
        }
        meshes
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_peer_with_a_wrong_clock_takes_a_lock_or_makes_one_that_others_do_not_see() {
        for ahead_ms in [MINUTES_40, -MINUTES_40] {
            let meshes = mesh_beside(ahead_ms).await;
            let [right, other, wrong] = &meshes[..] else { panic!("three peers") };
            let at = |mesh: &Mesh| mesh.registers(&locks()).unwrap();
            let minute = Expires::After(Duration::from_secs(60));
            for lock in [b"one", b"two"] {
                assert!(at(right).put(lock, "right", minute, When::Absent).await.unwrap().done);
                let taken = at(wrong).put(lock, "wrong", minute, When::Absent).await.unwrap();
                assert!(!taken.done, "it holds: {ahead_ms} ms ahead");
                assert_eq!(&at(wrong).get(lock).await.unwrap().unwrap().bytes[..], b"right");
            }
            assert!(at(wrong).put(b"own", "wrong", minute, When::Absent).await.unwrap().done);
            assert!(!at(other).put(b"own", "other", minute, When::Absent).await.unwrap().done);
            assert_eq!(&at(right).get(b"own").await.unwrap().unwrap().bytes[..], b"wrong");

            let status = wrong.status();
            assert!((status.peer.clock_correction_ms + ahead_ms).abs() < 1_000, "{status:?}");
            assert_eq!(right.status().peer.clock_correction_ms, 0);
            let clock_of = |mesh: &Mesh| {
                let peers = mesh.status().peers;
                peers.iter().find(|it| it.name == "c").unwrap().clock_ahead_ms.unwrap()
            };
            assert!((clock_of(right) - ahead_ms).abs() < 1_000, "{}", clock_of(right));
            let metrics = right.metrics();
            assert!(metrics.contains("peer_clock_ahead_seconds{peer=\"c\"}"), "{metrics}");
            for mesh in &meshes {
                mesh.shutdown().await;
            }
        }
    }
}
