//! The queue of session frames to one peer, and the reasons why a frame is not sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::{Connection, SendStream, WriteError};
use tokio::sync::{Notify, mpsc};

use crate::links::session_bytes;
use crate::links::wire::{KIND_SESSION, SessionFrame};

/// The most bytes of session frames that wait for one link.
const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many frames are gathered at most before they are sent.
const GATHERED_MAX: usize = 64;

/// The mesh's own messages are sent before the bodies of hops, however many of those wait.
const AHEAD_OF_HOPS: i32 = 1;

/// Sends session frames to one peer, in order, on one stream that is opened for the first of them.
pub(super) struct Lane {
    pub(super) out: tokio::sync::Mutex<LaneStream>,
    pub(super) queue: mpsc::Sender<Bytes>,
    /// The bytes of frames that were accepted and are not written yet.
    pub(super) bytes: AtomicUsize,
    /// Frames that confirm reads. They are sent once all received frames have been handled, so that
    /// many leave in one piece; of those with the same question about the same session only the
    /// last is sent.
    gathered: Mutex<Vec<SessionFrame>>,
    has_gathered: Notify,
}

#[derive(Default)]
pub(super) struct LaneStream {
    pub(super) send: Option<SendStream>,
    /// The rest of a frame that is partly written.
    pub(super) rest: Bytes,
}

impl Lane {
    pub(super) fn new(queue: mpsc::Sender<Bytes>) -> Self {
        Self {
            out: Default::default(),
            queue,
            bytes: AtomicUsize::new(0),
            gathered: Mutex::default(),
            has_gathered: Notify::new(),
        }
    }

    /// Sends a frame, at once or gathered with others of its kind. Returns false if a gathered
    /// frame says the same, or if this one replaces a gathered frame.
    pub(super) fn take(&self, frame: SessionFrame) -> Result<bool, Dropped> {
        if frame.message.may_be_gathered() {
            return self.gather(frame);
        }
        let mut bytes = BytesMut::with_capacity(256);
        session_bytes::put_frame(&mut bytes, &frame).map_err(|_| Dropped::TooLarge)?;
        self.send(bytes.freeze()).map(|()| true)
    }

    fn gather(&self, frame: SessionFrame) -> Result<bool, Dropped> {
        let mut gathered = self.gathered();
        let about_it = |other: &&mut SessionFrame| other.key.sid == frame.key.sid;
        for other in gathered.iter_mut().filter(about_it) {
            if other.key != frame.key || other.to != frame.to {
                continue;
            }
            if frame.message.asks_all_of(&other.message) {
                *other = frame;
                return Ok(false);
            }
            if other.message.asks_all_of(&frame.message) {
                return Ok(false);
            }
        }
        let is_first = gathered.is_empty();
        gathered.push(frame);
        let is_full = gathered.len() >= GATHERED_MAX;
        drop(gathered);
        if is_full {
            self.send_gathered()?;
        } else if is_first {
            self.has_gathered.notify_one();
        }
        Ok(true)
    }

    /// Resolves once frames are gathered.
    pub(super) async fn gathers(&self) {
        self.has_gathered.notified().await;
    }

    /// Sends all gathered frames.
    pub(super) fn send_gathered(&self) -> Result<(), Dropped> {
        let mut gathered = self.gathered();
        let mut bytes = BytesMut::with_capacity(128 * gathered.len());
        for frame in gathered.drain(..) {
            session_bytes::put_frame(&mut bytes, &frame).map_err(|_| Dropped::TooLarge)?;
        }
        drop(gathered);
        if bytes.is_empty() { Ok(()) } else { self.send(bytes.freeze()) }
    }

    fn gathered(&self) -> MutexGuard<'_, Vec<SessionFrame>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the frame at once if no other waits and the stream has room, which saves a task switch at
    /// each end of a round trip. Otherwise the frame waits in the queue.
    pub(super) fn send(&self, frame: Bytes) -> Result<(), Dropped> {
        let len = frame.len();
        let before = self.bytes.fetch_add(len, Ordering::AcqRel);
        if before + len > LANE_BYTES_MAX {
            self.bytes.fetch_sub(len, Ordering::AcqRel);
            return Err(Dropped::Full);
        }
        let frame = match before {
            0 => self.write_now(frame),
            _ => Some(frame),
        };
        // An empty one wakes the task that writes the rest.
        let Some(frame) = frame else { return Ok(()) };
        let queued = frame.len();
        self.queue.try_send(frame).map_err(|error| {
            self.bytes.fetch_sub(queued, Ordering::AcqRel);
            match error {
                mpsc::error::TrySendError::Full(_) => Dropped::Full,
                mpsc::error::TrySendError::Closed(_) => Dropped::NoLink,
            }
        })
    }

    /// Returns what remains to be queued.
    fn write_now(&self, frame: Bytes) -> Option<Bytes> {
        let Ok(mut out) = self.out.try_lock() else { return Some(frame) };
        let LaneStream { send: Some(send), rest } = &mut *out else { return Some(frame) };
        if !rest.is_empty() {
            return Some(frame);
        }
        let mut chunks = [frame];
        let written = send.write_chunks(&mut chunks).now_or_never();
        let [left] = chunks;
        match written {
            Some(Ok(written)) => {
                self.bytes.fetch_sub(written.bytes, Ordering::AcqRel);
                *rest = left;
                (!rest.is_empty()).then(Bytes::new)
            }
            // The task that writes what is queued finds the stream closed.
            Some(Err(_)) | None => Some(left),
        }
    }
}

impl LaneStream {
    pub(super) async fn write(
        &mut self,
        conn: &Connection,
        frame: Bytes,
    ) -> Result<(), WriteError> {
        let send = match &mut self.send {
            Some(send) => send,
            None => {
                let mut send = conn.open_uni().await?;
                go_ahead(&send);
                send.write_all(&[KIND_SESSION]).await?;
                self.send.insert(send)
            }
        };
        send.write_chunk(std::mem::take(&mut self.rest)).await?;
        send.write_chunk(frame).await
    }
}

/// Gives a stream priority over the streams of hops.
pub(super) fn go_ahead(send: &SendStream) {
    // This fails only for a stream that has ended, and that has nothing to send.
    let _ = send.set_priority(AHEAD_OF_HOPS);
}

/// Why a frame was not sent; the label of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// There is no link to the addressee.
    NoLink,
    /// The link's queue is full.
    Full,
    /// It exceeds the bound of its kind.
    TooLarge,
}

impl Dropped {
    /// The label of the counter.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::NoLink => "no-link",
            Self::Full => "full",
            Self::TooLarge => "too-large",
        }
    }
}

#[cfg(test)]
mod tests;
