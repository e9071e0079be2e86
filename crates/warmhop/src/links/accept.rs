//! Accepts the connections that other peers open, within bounds.

use std::sync::Arc;

use tokio::time::timeout;
use tracing::debug;

use crate::identity::handshake::HandshakeFailure;
use crate::links::context::Shared;
use crate::links::endpoint::HANDSHAKES_MAX;
use crate::links::meet;
use crate::links::met::MeetError;

pub(super) async fn accept(shared: Arc<Shared>) {
    let free = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        // A dialer first proves that it receives what is sent to its address (RFC 9000 section 8.1.2):
        // a peer does within a round trip, a host that spoofs addresses never does. A handshake that
        // begins at the dialer's word sends it more than three times as much as came: the bound of
        // section 8.1 is checked before a datagram, whatever its length.
        if !incoming.remote_address_validated() {
            shared.counters.handshake_retried();
            // `retry` fails only for an address that is validated already, which was checked above.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = free.clone().try_acquire_owned() else {
            shared.counters.links_refused("handshakes");
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        shared.tasks.clone().spawn(async move {
            let from = incoming.remote_address();
            let accepted = async {
                let connecting = incoming.accept()?;
                timeout(shared.tuning.dial_within, connecting)
                    .await
                    .map_err(|_| quinn::ConnectionError::TimedOut)?
            };
            match accepted.await {
                Ok(conn) => {
                    let from = conn.remote_address();
                    if let Err(error) = meet::meet(&shared, conn, None).await {
                        debug!(%from, %error, "a link was not accepted");
                        if !matches!(error, MeetError::Connection(_)) {
                            shared.seeds.refused(from, &error.to_string());
                        }
                    }
                }
                Err(error) => {
                    shared.counters.handshake_failed(HandshakeFailure::of_quic(&error));
                    debug!(%from, %error, "a handshake failed");
                    shared.seeds.handshake_failed(from, &error);
                }
            }
            drop(permit);
        });
    }
}
