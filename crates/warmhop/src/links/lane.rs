//! The way of session frames to one peer, and why something is not sent.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{Connection, SendStream, WriteError};
use tokio::sync::mpsc;

use crate::links::wire::KIND_SESSION;

/// Bytes of sessions that wait for one link.
const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What carries the mesh itself goes before the bodies of hops, however many of those wait.
const AHEAD_OF_HOPS: i32 = 1;

/// The way of session frames to one peer, in order on one stream, opened with the first of them.
pub(super) struct Lane {
    pub(super) out: tokio::sync::Mutex<LaneStream>,
    pub(super) queue: mpsc::Sender<Bytes>,
    /// What was taken and not written yet.
    pub(super) bytes: AtomicUsize,
}

#[derive(Default)]
pub(super) struct LaneStream {
    pub(super) send: Option<SendStream>,
    /// The end of a frame whose beginning is written.
    pub(super) rest: Bytes,
}

impl Lane {
    /// Writes the frame at once where nothing is before it and the stream has room: that saves a
    /// task switch at each end of a round trip. Else it waits in the queue.
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

    /// Returns what is to be queued.
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
            // Whoever writes what is queued finds the stream closed.
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

/// Lets what is written to a stream leave before what waits on the streams of hops.
pub(super) fn go_ahead(send: &SendStream) {
    // It fails only for a stream that has ended, which has nothing to send.
    let _ = send.set_priority(AHEAD_OF_HOPS);
}

/// Why something was not sent; the label of the counter.
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
