//! Notices that the other end of a link has fallen silent while answers are awaited from it.
//!
//! While at least one hop waits for its answer, the link is looked at ten times a second. If nothing has
//! come since the last look, the other end is asked for a sign of life, which a live one gives within a
//! round trip whatever its app does. After six looks in vain the peer counts as suspect, and hops that may
//! go elsewhere do; after two seconds more the link is closed, and with it those that may not. Nothing is
//! looked at while no answer is awaited.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::links::context::Shared;
use crate::links::handler::Heard;
use crate::links::link::Link;
use crate::links::{clocks, close_code};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How late a timer may fire in a process that was not suspended. One that was has not read yet what came
/// meanwhile, so a look that comes later than this counts for nothing.
const LATE_MAX: Duration = Duration::from_millis(50);
/// After so many looks in vain the peer is suspect: 0.6 s.
const SUSPECT_AFTER: u32 = 6;
/// After so many looks in vain the link is closed: 2.6 s.
const CLOSED_AFTER: u32 = 26;

/// Watches the link until it closes.
pub(super) async fn run(shared: Arc<Shared>, link: Arc<Link>) {
    loop {
        tokio::select! {
            () = link.silence.begins() => {}
            _ = link.conn.closed() => return,
        }
        watch_once(&shared, &link).await;
    }
}

/// Looks at the link until no answer is awaited any more or it closes.
async fn watch_once(shared: &Shared, link: &Arc<Link>) {
    let mut before = link.conn.stats().udp_rx.datagrams;
    let mut in_vain = 0;
    while link.conn.close_reason().is_none() {
        let began = Instant::now();
        sleep(LOOK_EVERY).await;
        let now = link.conn.stats().udp_rx.datagrams;
        if now != before {
            before = now;
            if in_vain >= SUSPECT_AFTER {
                tell(shared, link, Heard::Alive);
            }
            in_vain = 0;
            if link.silence.ends() {
                return;
            }
        } else if began.elapsed() < LOOK_EVERY + LATE_MAX {
            in_vain += 1;
            found_silent(shared, link, in_vain);
        }
    }
}

fn found_silent(shared: &Shared, link: &Arc<Link>, in_vain: u32) {
    if in_vain == SUSPECT_AFTER {
        tell(shared, link, Heard::Suspect);
    }
    if in_vain >= CLOSED_AFTER {
        link.conn.close(close_code::SILENT, b"");
    } else if in_vain.is_multiple_of(SUSPECT_AFTER) {
        link.silence.is_found();
    } else if in_vain % SUSPECT_AFTER == 1 {
        clocks::ask(shared, link);
    }
}

/// Tells what a link shows of its peer, unless another link to it has taken its place.
fn tell(shared: &Shared, link: &Arc<Link>, heard: Heard) {
    let peer = &link.peer;
    if shared.links.to(&peer.peer).is_some_and(|it| Arc::ptr_eq(&it, link)) {
        shared.handler.on_liveness(&peer.peer, peer.incarnation, heard);
    }
}
