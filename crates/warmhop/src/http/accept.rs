//! The one loop that accepts connections, for every listener of a peer: the front doors, the admin
//! listener, and those of programs that embed the mesh.

use std::fmt;
use std::iter;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How long to leave the listener alone after a failure. Mostly the process is out of file
/// descriptors, and some are closed meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is logged that no connection can be accepted.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Accepts the connections of one listener, and goes on after failures.
///
/// ```
/// # async fn shown(listener: tokio::net::TcpListener, mesh: warmhop::Mesh) {
/// let leaving = std::future::pending(); // until the program ends
/// warmhop::Acceptor::new(listener, "the statistics listener")
///     .until(leaving, |stream, client| {
///         // Serve the connection in a task, and bound the number of those.
///     })
///     .await;
/// # }
/// ```
pub struct Acceptor {
    listener: TcpListener,
    what: &'static str,
    on_failure: Option<Box<dyn Fn() + Send>>,
    /// After a failure: when to try again.
    paused_until: Option<Instant>,
    logged: Option<Instant>,
}

impl Acceptor {
    /// For `listener`, which log lines call `what`.
    #[must_use]
    pub fn new(listener: TcpListener, what: &'static str) -> Self {
        Self { listener, what, on_failure: None, paused_until: None, logged: None }
    }

    /// Has `free` called after each failure, to close what is not needed.
    #[must_use]
    pub(crate) fn on_failure(mut self, free: impl Fn() + Send + 'static) -> Self {
        self.on_failure = Some(Box::new(free));
        self
    }

    /// Passes each connection to `each` until `ends`, those included that clients had opened by
    /// then: they are not reset. The listener is closed when this returns.
    pub async fn until(
        mut self,
        ends: impl Future<Output = ()>,
        mut each: impl FnMut(TcpStream, SocketAddr),
    ) {
        let mut ends = pin!(ends);
        loop {
            tokio::select! {
                biased;
                () = ends.as_mut() => break,
                (stream, client) = self.next() => each(stream, client),
            }
        }
        self.close().for_each(|(stream, client)| each(stream, client));
    }

    /// The next connection. It is cancel-safe.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Some(until) = self.paused_until {
                sleep_until(until).await;
                self.paused_until = None;
            }
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    if self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                        let what = self.what;
                        warn!(%error, "{what} cannot accept connections; clients wait until it can");
                        self.logged = Some(Instant::now());
                    }
                    if let Some(free) = &self.on_failure {
                        free();
                    }
                    self.paused_until = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Closes the listener, and returns the connections that clients had opened by then.
    pub(crate) fn close(self) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
        // The socket itself is asked, since the runtime does not know of the latest ones.
        let listener = self.listener.into_std().ok();
        let accepted = iter::from_fn(move || listener.as_ref()?.accept().ok());
        accepted.filter_map(|(stream, client)| {
            stream.set_nonblocking(true).ok()?;
            Some((TcpStream::from_std(stream).ok()?, client))
        })
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("listener", &self.listener).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn connections_opened_before_the_end_are_accepted_and_none_after_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let ends = CancellationToken::new();
        // Opened and ended before the acceptor runs at all.
        let _early =
            [TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap()];
        ends.cancel();
        let mut accepted = Vec::new();
        let acceptor = Acceptor::new(listener, "a listener");
        acceptor.until(ends.cancelled(), |stream, _| accepted.push(stream)).await;
        assert_eq!(accepted.len(), 2);
        assert!(TcpStream::connect(addr).await.is_err(), "the listener is closed");
    }

    #[tokio::test]
    async fn each_connection_is_passed_on_as_it_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (passed, mut passed_on) = tokio::sync::mpsc::channel(1);
        let acceptor = Acceptor::new(listener, "a listener");
        let accepting = acceptor.until(std::future::pending(), |_, client| {
            passed.try_send(client).unwrap();
        });
        tokio::select! {
            () = accepting => panic!("it goes on for ever"),
            () = async {
                for _ in 0..3 {
                    let client = TcpStream::connect(addr).await.unwrap();
                    assert_eq!(passed_on.recv().await, client.local_addr().ok());
                }
            } => {}
        }
    }
}
