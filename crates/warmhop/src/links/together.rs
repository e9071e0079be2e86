//! Frames that leave together. A task that sends many at once, such as the votes for all that it has just
//! received, has them leave at the end of its *round*, in one piece for each peer: that costs one write to
//! the link instead of one a frame.
//!
//! A round is one poll of the task. It waits for nothing, so no frame waits for longer than its thread
//! works on without a break; on the thread that drives the links, none would leave sooner by itself.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::BytesMut;
use warmhop_core::ids::Incarnation;

use crate::links::counters::NetCounters;
use crate::links::lane::Dropped;
use crate::links::link::Link;
use crate::links::session_bytes;
use crate::links::table::Table;
use crate::links::wire::{self, SessionFrame};

/// How many frames of the length of the one at hand get room at once, up to so many bytes: those of one
/// round are alike, and to grow by doubling would copy them several times.
const ROOM_FRAMES: usize = 8;
const ROOM_BYTES_MAX: usize = 8 * 1024;

/// A piece of this many bytes is sent although its round goes on.
const PIECE_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// The pieces of the round under way on this thread.
    static ROUND: RefCell<Option<Vec<Piece>>> = const { RefCell::new(None) };
}

/// The frames of a round for one link.
struct Piece {
    link: Arc<Link>,
    counters: Arc<NetCounters>,
    bytes: BytesMut,
    frames: u64,
}

/// Does `work`; what it sends during one poll leaves together.
pub(crate) fn together<F: Future>(work: F) -> impl Future<Output = F::Output> {
    // An async function would hold it twice.
    let mut work = Box::pin(work);
    std::future::poll_fn(move |cx| {
        let _round = Round::begin();
        work.as_mut().poll(cx)
    })
}

/// A round; dropping it sends what was held.
struct Round {
    /// Not within another one, which sends it all.
    is_outer: bool,
}

impl Round {
    fn begin() -> Self {
        let is_outer = ROUND.with_borrow_mut(|round| match round {
            Some(_) => false,
            None => {
                *round = Some(Vec::new());
                true
            }
        });
        Self { is_outer }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if self.is_outer {
            let pieces = ROUND.take().unwrap_or_default();
            pieces.into_iter().for_each(|mut piece| piece.send());
        }
    }
}

impl Piece {
    fn send(&mut self) {
        let bytes = self.bytes.split().freeze();
        let frames = std::mem::take(&mut self.frames);
        if bytes.is_empty() {
            return;
        }
        match self.link.lane.send(bytes) {
            Ok(()) => self.counters.session_frames_sent(frames),
            Err(dropped) => (0..frames).for_each(|_| count(&self.counters, dropped)),
        }
    }
}

fn count(counters: &NetCounters, dropped: Dropped) {
    counters.drop_counted("session", dropped.label());
}

/// Holds a frame for its addressees until the end of the round; false, and nothing is done, outside of one.
pub(super) fn hold(
    frame: &SessionFrame,
    to_all: impl IntoIterator<Item = Incarnation>,
    table: impl FnOnce() -> arc_swap::Guard<Arc<Table>>,
    counters: &Arc<NetCounters>,
) -> bool {
    ROUND.with_borrow_mut(|round| {
        let Some(pieces) = round else { return false };
        let mut links = LinksIn { pieces, counters, table: Some(table), read: None };
        let held = session_bytes::encoded(frame, |encoded| {
            for to in to_all {
                match links.piece(to) {
                    Some(piece) => piece.put(frame, to, encoded),
                    None => count(counters, Dropped::NoLink),
                }
            }
        });
        if held.is_err() {
            count(counters, Dropped::TooLarge);
        }
        true
    })
}

/// The pieces of a round, and the links that further ones may be for.
struct LinksIn<'a, T> {
    pieces: &'a mut Vec<Piece>,
    counters: &'a Arc<NetCounters>,
    table: Option<T>,
    read: Option<arc_swap::Guard<Arc<Table>>>,
}

impl<T: FnOnce() -> arc_swap::Guard<Arc<Table>>> LinksIn<'_, T> {
    /// The piece for a peer; `None` without a link to it.
    fn piece(&mut self, to: Incarnation) -> Option<&mut Piece> {
        let known = self.pieces.iter().position(|piece| piece.link.peer.incarnation == to);
        let at = match known {
            Some(at) => at,
            None => {
                if let Some(table) = self.table.take() {
                    self.read = Some(table());
                }
                let link = self.read.as_ref()?.by_incarnation.get(&to)?;
                let (link, counters) = (Arc::clone(link), Arc::clone(self.counters));
                self.pieces.push(Piece { link, counters, bytes: BytesMut::new(), frames: 0 });
                self.pieces.len() - 1
            }
        };
        self.pieces.get_mut(at)
    }
}

impl Piece {
    /// Appends a frame, `encoded` for any addressee.
    fn put(&mut self, frame: &SessionFrame, to: Incarnation, encoded: &[u8]) {
        let begin = self.bytes.len();
        let len = wire::FRAME_HEADER_BYTES + encoded.len();
        // A round's first frame may be its only one.
        if begin > 0 && self.bytes.capacity() - begin < len {
            self.bytes.reserve((ROOM_FRAMES * len).min(ROOM_BYTES_MAX).max(len));
        }
        wire::put_encoded(&mut self.bytes, encoded);
        session_bytes::readdress(&mut self.bytes[begin..], &frame.key, to);
        self.frames += 1;
        if self.bytes.len() >= PIECE_BYTES_MAX {
            self.send();
        }
    }
}
