//! Turns a connection into a link: proof of identity, hello, admission.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use quinn::Connection;
use tokio::time::timeout;
use tracing::{debug, info};
use warmhop_core::view::News;

use crate::identity::{Proven, proven_identity};
use crate::links::carry::{self, Greeted};
use crate::links::close_code;
use crate::links::context::Shared;
use crate::links::handler::Heard;
use crate::links::lane::go_ahead;
use crate::links::link::{CertificatesEnd, Link};
use crate::links::met::{MeetError, Met};
use crate::links::wire::{
    self, CONTROL_FRAME_BYTES_MAX, FrameError, FrameReader, Hello, KIND_CONTROL, PROTOCOL_VERSION,
};

/// Turns an established connection into a link: proof of identity, hello, admission. `dial` is the
/// number of this dial if this end opened the connection.
pub(crate) async fn meet(
    shared: &Arc<Shared>,
    conn: Connection,
    dial: Option<u64>,
) -> Result<Met, MeetError> {
    let result = match timeout(shared.tuning.hello_within, hello(shared, &conn, dial)).await {
        Ok(Ok(greeted)) => admit(shared, &conn, dial, greeted),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(MeetError::NoHello("it took too long".into())),
    };
    if let Err(error) = &result {
        let code = match error {
            MeetError::Connection(_) => return result,
            MeetError::NotOfCluster | MeetError::WrongName { .. } => close_code::WRONG_IDENTITY,
            MeetError::Version(_) => close_code::WRONG_VERSION,
            MeetError::NoHello(_) => close_code::NO_HELLO,
            MeetError::NameInUse(_) => close_code::NAME_IN_USE,
            MeetError::Refused(_) => close_code::REFUSED,
            MeetError::Full => close_code::FULL,
        };
        let reason = match error {
            MeetError::NameInUse(addr) => addr.to_string(),
            _ => String::new(),
        };
        shared.counters.links_refused(error.reason());
        conn.close(code, reason.as_bytes());
    }
    result
}

async fn hello(
    shared: &Shared,
    conn: &Connection,
    dial: Option<u64>,
) -> Result<Greeted, MeetError> {
    let Proven { cluster, peer: proven, certificate, ends } =
        proven_identity(conn.peer_identity()).ok_or(MeetError::NotOfCluster)?;
    if cluster != shared.cluster {
        return Err(MeetError::NotOfCluster);
    }
    if shared.refused.borrow().has(&proven, Some(certificate)) {
        return Err(MeetError::Refused(proven));
    }

    // Opened before the other end may open any, so that its id is the lowest.
    let mut control_out = conn.open_uni().await?;
    go_ahead(&control_out);
    let mut first = BytesMut::with_capacity(256);
    first.put_u8(KIND_CONTROL);
    let mine =
        Hello { version: PROTOCOL_VERSION, dial: dial.unwrap_or(0), peer: shared.own.peer() };
    wire::put_frame(&mut first, &mine, CONTROL_FRAME_BYTES_MAX)
        .map_err(|error| MeetError::NoHello(error.to_string()))?;
    let broken = |error: String| match conn.close_reason() {
        Some(closed) => MeetError::Connection(closed),
        None => MeetError::NoHello(error),
    };
    let unreadable = |error: FrameError| broken(error.to_string());
    let mut answer = Some(first.freeze());
    if dial.is_some()
        && let Some(first) = answer.take()
    {
        control_out.write_chunk(first).await.map_err(|error| broken(error.to_string()))?;
    }

    // Streams are accepted in the order of their ids, so the other end's first one comes first
    // whatever order their packets take.
    let mut control_in = FrameReader::new(conn.accept_uni().await?);
    if control_in.byte().await.map_err(unreadable)? != Some(KIND_CONTROL) {
        return Err(MeetError::NoHello("the first stream is not the control stream".into()));
    }
    let frame = control_in.frame(CONTROL_FRAME_BYTES_MAX).await.map_err(unreadable)?;
    let frame = frame.ok_or_else(|| MeetError::NoHello("the control stream is empty".into()))?;
    // The version comes first in the hello of every version, so that this one can be recognized.
    let hello = match wire::decode::<Hello, CONTROL_FRAME_BYTES_MAX>(&frame) {
        Ok(hello) if hello.version == PROTOCOL_VERSION => hello,
        Ok(hello) => return Err(MeetError::Version(hello.version)),
        Err(error) => {
            return Err(match wire::hello_version(&frame) {
                Some(version) if version != PROTOCOL_VERSION => MeetError::Version(version),
                _ => MeetError::NoHello(error.to_string()),
            });
        }
    };
    if hello.peer.peer != proven {
        return Err(MeetError::WrongName { said: hello.peer.peer, proven });
    }
    if !wire::is_presentable(&hello.peer) {
        return Err(MeetError::NoHello("its fields exceed their bounds".into()));
    }
    Ok(Greeted { hello, control_out, control_in, answer, certificate_ends: ends })
}

fn admit(
    shared: &Arc<Shared>,
    conn: &Connection,
    dial: Option<u64>,
    mut greeted: Greeted,
) -> Result<Met, MeetError> {
    let peer = greeted.hello.peer.clone();
    if peer.peer == shared.me {
        let myself = peer.incarnation == shared.incarnation;
        if !myself {
            shared.met_namesake(&peer, dial.is_some());
        }
        let code = if myself { close_code::MYSELF } else { close_code::NAME_IN_USE };
        let conn = conn.clone();
        let linger = shared.tuning.hello_within;
        shared.tasks.spawn(async move {
            if let Some(answer) = greeted.answer.take() {
                // Keeps the connection open until the end that dialed has read this one's hello.
                let _ = greeted.control_out.write_chunk(answer).await;
                let _ = timeout(linger, conn.closed()).await;
            }
            conn.close(code, b"");
        });
        return Ok(if myself { Met::Myself } else { Met::Namesake });
    }

    let opened_here = dial.is_some();
    let dial = dial.unwrap_or(greeted.hello.dial);
    let ends = CertificatesEnd { own: shared.identity.expires(), other: greeted.certificate_ends };
    let (link, queues) = Link::new(conn, peer.clone(), opened_here, dial, ends);

    let held = shared.links.hold();
    let current = shared.links.table().by_peer.get(&peer.peer).cloned();
    let alive = current.filter(|current| current.conn.close_reason().is_none());
    let mut surplus = false;
    match &alive {
        Some(current) if current.peer.incarnation == peer.incarnation => {
            surplus = current.rank(&shared.me) > link.rank(&shared.me);
            carry::start_draining(shared, if surplus { &link } else { current });
        }
        // While the link to the other life works, that life is taken to run: a newcomer at another
        // address has the same name by mistake, or must wait until the link to its former life has
        // timed out.
        Some(current) if current.peer.mesh != peer.mesh => {
            return Err(MeetError::NameInUse(current.peer.mesh));
        }
        Some(current) => current.conn.close(close_code::REPLACED, b""),
        None => {}
    }
    if !surplus {
        let before = shared.book.linked(&peer).ok_or(MeetError::Full)?;
        shared.links.put(&held, &link);
        if let Some(before) = before {
            shared.handler.on_liveness(&peer.peer, before, Heard::Gone);
        }
        shared.handler.on_news(News::Peer(peer.clone()), true);
        shared.handler.on_liveness(&peer.peer, peer.incarnation, Heard::Alive);
        shared.counters.link_opened();
        shared.counters.links_now(shared.links.table().by_peer.len());
        debug!(peer = %peer.peer, addr = %peer.mesh, opened_here, "link is up");
        if alive.is_none() {
            info!(peer = %peer.peer, addr = %peer.mesh, incarnation = %peer.incarnation, "joined");
        }
    }
    drop(held);

    let name = peer.peer.clone();
    shared.tasks.spawn(carry::run(shared.clone(), link, queues, greeted, surplus));
    Ok(Met::Peer(name))
}
