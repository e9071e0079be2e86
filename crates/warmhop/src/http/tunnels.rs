//! Upgraded connections: counted, and closed in their own protocol when the peer drains.
//!
//! The bytes of an upgraded connection belong to the app and the client; a peer only passes them
//! on. There are two cases in which a peer sends a WebSocket's client a close frame (RFC 6455
//! section 7.4.1) that the app did not send. It sends status 1001, "going away", at the end of the
//! peer's own grace time or when the app's copy is stopped, so that the client reconnects
//! elsewhere. It sends 1011, "unexpected condition", when the app or the way to it is gone without
//! a close. A close frame is allowed only between two frames, so [`Frames`] follows where each
//! begins.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A close frame with status 1001, as a server sends it: unmasked, without a reason.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xE9];

/// A close frame with status 1011.
const UNEXPECTED_CONDITION: [u8; 4] = [0x88, 0x02, 0x03, 0xF3];

/// How long the clients of upgraded connections have to answer a close.
pub(crate) const GOODBYE_WITHIN: Duration = Duration::from_secs(3);

/// The upgraded connections of one copy of an app.
#[derive(Debug, Clone, Default)]
pub(crate) struct CopyTunnels {
    open: TaskTracker,
    closing: CancellationToken,
    cut: CancellationToken,
}

impl CopyTunnels {
    /// Closes them by their own protocol, and cuts off those that have not ended by then.
    pub(crate) async fn end(&self) {
        self.open.close();
        self.closing.cancel();
        let _ = tokio::time::timeout(GOODBYE_WITHIN, self.open.wait()).await;
        self.cut.cancel();
    }
}

/// The upgraded connections of one peer, and the hops that it answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tunnels {
    /// Counts upgraded connections.
    pub(crate) open: TaskTracker,
    /// Counts hops that are answered here, those that become upgraded connections included.
    pub(crate) hops: TaskTracker,
    /// Cancelled when the grace time is over: upgraded connections are closed by their own
    /// protocol, everything else is cut off.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the clients of upgraded connections have had their time to answer the close.
    pub(crate) cut: CancellationToken,
}

impl Tunnels {
    /// How to close a connection that speaks `protocol`.
    pub(crate) fn farewell(&self, protocol: Option<&http::HeaderValue>) -> Farewell {
        let websocket =
            protocol.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        Farewell {
            closing: self.closing.clone(),
            cut: self.cut.clone(),
            of_copy: None,
            frames: websocket.then(Frames::default),
        }
    }
}

/// Finds where in the bytes from the app to the client the peer may end the connection.
#[derive(Debug, Default)]
pub(crate) struct Farewell {
    closing: CancellationToken,
    cut: CancellationToken,
    /// Where the app is on this peer, the tunnels of its copy, which may end this one as well.
    of_copy: Option<(CopyTunnels, TaskTrackerToken)>,
    /// Absent where the protocol has no close frame that a peer could send.
    frames: Option<Frames>,
}

impl Farewell {
    /// The same for a connection to this copy of an app.
    pub(crate) fn with_copy(mut self, copy: &CopyTunnels) -> Self {
        self.of_copy = Some((copy.clone(), copy.open.token()));
        self
    }

    async fn closes(&self) {
        match &self.of_copy {
            Some((copy, _)) => tokio::select! {
                () = self.closing.cancelled() => {}
                () = copy.closing.cancelled() => {}
            },
            None => self.closing.cancelled().await,
        }
    }

    /// Notes bytes on their way to the client.
    pub(crate) fn passed(&mut self, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            frames.see(bytes);
        }
    }

    /// Resolves once the connection is to end and may end here, with the last bytes for the client.
    /// A frame that is under way is passed on first.
    pub(crate) async fn due(&self) -> &'static [u8] {
        match &self.frames {
            Some(frames) if frames.closed => {
                // The app has already sent a close frame.
                self.closes().await;
                &[]
            }
            Some(frames) if !frames.is_between() => std::future::pending().await,
            Some(_) => {
                self.closes().await;
                &GOING_AWAY
            }
            None => {
                self.closes().await;
                &[]
            }
        }
    }

    /// Resolves when the connection is cut off at any position: a client that reads nothing cannot
    /// get a close frame.
    pub(crate) fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        let (peer, copy) = (self.cut.clone(), self.of_copy.as_ref().map(|(it, _)| it.cut.clone()));
        async move {
            match copy {
                Some(copy) => tokio::select! {
                    () = peer.cancelled() => {}
                    () = copy.cancelled() => {}
                },
                None => peer.cancelled().await,
            }
        }
    }

    /// The last bytes for the client where the app's side ended by itself.
    pub(crate) fn lost(&self) -> &'static [u8] {
        match &self.frames {
            Some(frames) if frames.is_between() && !frames.closed => &UNEXPECTED_CONDITION,
            _ => &[],
        }
    }
}

/// Follows WebSocket frames (RFC 6455 section 5.2) just far enough to know where each begins.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 14],
    have: usize,
    payload_left: u64,
    closed: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.have == 0 && self.payload_left == 0
    }

    fn see(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let take = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= take;
                bytes = &bytes[take as usize..];
                continue;
            }
            self.head[self.have] = *first;
            self.have += 1;
            bytes = rest;
            if self.have >= 2 && self.have == self.head_bytes() {
                self.payload_left = self.payload_bytes();
                self.closed |= self.head[0] & 0x0f == 0x8;
                self.have = 0;
            }
        }
    }

    /// The length of the head, which its second byte tells.
    fn head_bytes(&self) -> usize {
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn payload_bytes(&self) -> u64 {
        let long = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.head[1] & 0x7f {
            126 => long(&self.head[2..4]),
            127 => long(&self.head[2..10]),
            short => u64::from(short),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_where_the_last_one_ended_however_the_bytes_are_cut() {
        let mut stream = vec![0x81, 3, b'a', b'b', b'c', 0x82, 126, 1, 0];
        stream.extend([7; 256]);
        stream.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        stream.extend(vec![7; 65_536]);
        stream.extend([0x89, 0x80, 1, 2, 3, 4]);
        let ends = [5, 265, 265 + 10 + 65_536, stream.len()];
        let mut frames = Frames::default();
        for (at, byte) in stream.iter().enumerate() {
            frames.see(&[*byte]);
            assert_eq!(frames.is_between(), ends.contains(&(at + 1)), "after byte {at}");
        }
        let mut whole = Frames::default();
        whole.see(&stream);
        assert!(whole.is_between() && !whole.closed);
        whole.see(&GOING_AWAY);
        assert!(whole.is_between() && whole.closed);
    }

    #[tokio::test]
    async fn the_close_frame_goes_between_two_frames_and_only_once() {
        let tunnels = Tunnels::default();
        let websocket = http::HeaderValue::from_static("WebSocket");
        let mut farewell = tunnels.farewell(Some(&websocket));
        assert_eq!(farewell.lost(), UNEXPECTED_CONDITION);
        farewell.passed(&[0x81, 2, b'a']);
        tunnels.closing.cancel();
        assert_eq!(farewell.lost(), [0_u8; 0], "in the middle of a frame nothing can be said");
        assert!(futures_util::FutureExt::now_or_never(farewell.due()).is_none());
        farewell.passed(b"b");
        assert_eq!(
            (farewell.lost(), farewell.due().await),
            (&UNEXPECTED_CONDITION[..], &GOING_AWAY[..])
        );
        farewell.passed(&[0x88, 2, 0x03, 0xE8]);
        assert_eq!((farewell.lost(), farewell.due().await), (&[][..], &[][..]), "it knows");
        let copy = CopyTunnels::default();
        let here = Tunnels::default().farewell(Some(&websocket)).with_copy(&copy);
        assert!(futures_util::FutureExt::now_or_never(here.due()).is_none());
        tokio::join!(copy.end(), async {
            assert_eq!(here.due().await, GOING_AWAY, "its copy of the app ends");
            drop(here);
        });
        let other = tunnels.farewell(Some(&http::HeaderValue::from_static("tcp")));
        assert_eq!((other.lost(), other.due().await), (&[][..], &[][..]));
    }
}
