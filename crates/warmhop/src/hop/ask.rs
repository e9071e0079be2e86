//! The entry peer's end of a hop: it sends a request to a ready peer and reads its reply.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::EXPECT;
use http::{HeaderMap, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use warmhop_core::ids::{AppName, Incarnation, PeerId};

use crate::hop::body::{HopBody, OnFailure, Pump, RIDE_ALONG_BYTES_MAX, send_body};
use crate::hop::field_block::FieldBlock;
use crate::hop::head::{
    HEAD_BYTES_MAX, HopHead, HopKind, HopRefusal, INTERIM, Load, OfVersion, ReplyHead, ReplySession,
};
use crate::hop::tunnel::Tunnel;
use crate::http::body::Body;
use crate::http::interim::Interim;
use crate::links::hop_body::{HopBodyReader, HopBodyWriter};
use crate::links::link::HopLease;
use crate::links::net::{Net, OpenError, OpenHop};
use crate::links::wire::{self, FrameReader, KIND_HOP, put_frame};

/// After this, a body whose client waits for `100 Continue` is sent although the app answered without
/// asking for it.
const UNASKED_BODY_AFTER: Duration = Duration::from_secs(1);
/// Why a hop brought no response.
#[derive(Debug)]
pub(crate) enum HopError {
    /// The peer was not reached: no byte of the request was sent. Its body is returned.
    Unreachable(OpenError, Body),
    /// The peer refused: no byte of the request reached an app, except with `AppFailed` and
    /// `TooSlow`. A body that was not sent is returned, and one that was sent in part is dropped.
    Refused(HopRefusal, Load, Option<Body>),
    /// The link broke or the reply was malformed: the app may have seen the request.
    Broken(String),
}

/// The reply of a hop.
pub(crate) struct HopReply {
    pub(crate) response: Response<Body>,
    pub(crate) session: ReplySession,
    pub(crate) served_by: String,
    pub(crate) load: Load,
    pub(crate) executor: Incarnation,
    /// Both directions of an upgraded connection.
    pub(crate) tunnel: Option<Tunnel>,
}

/// The request of a hop.
pub(crate) struct HopRequest {
    pub(crate) head: HopHead,
    pub(crate) body: Body,
    /// The way to its client for interim responses, if that can get any.
    pub(crate) interim: Option<Interim>,
    pub(crate) on_silence: OnSilence,
}

/// What becomes of a request while the peer that has it sends nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSilence {
    /// It fails soon: it may be sent elsewhere.
    GoElsewhere,
    /// It waits for as long as the link lasts: nobody else may run it, and the peer may only be busy.
    WaitOn,
}

/// The fields of a hop's request; `interim` is the way to its client for interim responses.
pub(crate) fn request_fields(fields: &HeaderMap, interim: Option<&Interim>) -> FieldBlock {
    let takes = INTERIM;
    FieldBlock::of_both(fields, interim.map(|_| (&takes, &b"?1"[..])))
}

/// Sends `request` to `to` and waits for the head of its reply.
///
/// With `careful`, nothing that an app acts on is sent before the peer has shown that it is alive.
/// That costs one more round trip; in return, a dead peer certainly has not seen the request.
pub(crate) async fn ask(
    net: &Net,
    to: &PeerId,
    request: HopRequest,
    careful: bool,
) -> Result<HopReply, HopError> {
    let HopRequest { mut head, mut body, interim, on_silence } = request;
    let upgrades = head.upgrade.is_some();
    let whole = if upgrades { None } else { body.take_whole(RIDE_ALONG_BYTES_MAX) };
    let mut expects = head.fields.contains(EXPECT.as_str());
    if expects && whole.is_some() {
        // The body is sent with the head, so there is no need to wait for a go-ahead.
        head.fields = head.fields.without(EXPECT.as_str());
        expects = false;
    }
    head.asks_go = !upgrades && (careful || whole.is_none());
    // The kind, the head and a small body leave in one write: one packet instead of two.
    let mut prefix = BytesMut::with_capacity(1024);
    prefix.put_u8(KIND_HOP);
    put_frame(&mut prefix, &head, HEAD_BYTES_MAX)
        .map_err(|error| HopError::Broken(format!("the request's head does not fit: {error}")))?;
    let opened = match net.open_hop(to).await {
        Ok(opened) => opened,
        Err(error) => {
            let body = whole.map_or(body, Body::from);
            return Err(HopError::Unreachable(error, body));
        }
    };
    let (link, number) = (opened.lease.link(), opened.send.id().index());
    let kept = whole.clone();
    let asks_go = head.asks_go;
    let sent = Sent { prefix, whole, body, upgrades, expects, asks_go, interim, on_silence };
    let reply = ask_over(opened, to, sent).await;
    match (reply, kept) {
        // The peer left without having accepted the hop: no app has seen the request.
        (Err(HopError::Broken(_)), kept)
            if link.never_took(number) && (kept.is_some() || upgrades) =>
        {
            let body = kept.map_or(Body::empty(), Body::from);
            Err(HopError::Unreachable(OpenError::Unreachable(to.clone()), body))
        }
        (reply, _) => reply,
    }
}

/// What a hop sends.
struct Sent {
    prefix: BytesMut,
    /// The whole body, if it is small and in memory; otherwise it is in `body`.
    whole: Option<Bytes>,
    body: Body,
    upgrades: bool,
    expects: bool,
    asks_go: bool,
    interim: Option<Interim>,
    on_silence: OnSilence,
}

/// Both streams of a hop under way.
struct Asking {
    writer: HopBodyWriter,
    reader: FrameReader,
    executor: Incarnation,
    waiting: Waiting,
}

/// What a hop needs while it waits for its answer.
struct Waiting {
    lease: HopLease,
    interim: Option<Interim>,
    on_silence: OnSilence,
}

async fn ask_over(opened: OpenHop, to: &PeerId, sent: Sent) -> Result<HopReply, HopError> {
    let OpenHop { send, recv, incarnation: executor, lease } = opened;
    let Sent { prefix, whole, body, upgrades, expects, asks_go, interim, on_silence } = sent;
    let writer = HopBodyWriter::new(send, prefix);
    let reader = FrameReader::new(recv);
    let waiting = Waiting { lease, interim, on_silence };
    let mut asking = Asking { writer, reader, executor, waiting };
    if upgrades {
        return asking.upgrade().await;
    }
    if asks_go {
        let answer = match asking.writer.flush().await {
            // Nothing was sent yet that an app acts on.
            Ok(()) => read_head(&asking.waiting, &mut asking.reader, OnSilence::GoElsewhere).await,
            Err(error) => Err(broken(error)),
        };
        match answer {
            Ok(ReplyHead::Go) => {}
            Ok(ReplyHead::Refused { why, load }) => {
                let body = whole.map_or(body, Body::from);
                return Err(HopError::Refused(why, load, Some(body)));
            }
            Ok(ReplyHead::Response { .. } | ReplyHead::Interim { .. }) | Err(_) => {
                let body = whole.map_or(body, Body::from);
                return Err(HopError::Unreachable(OpenError::Unreachable(to.clone()), body));
            }
        }
    }
    if let Some(whole) = whole {
        asking.writer.write_end(whole, None).await.map_err(broken)?;
        let Asking { reader, waiting, .. } = asking;
        let (mut reply, reader) = read_reply(&waiting, reader, executor).await?;
        *reply.response.body_mut() = Body::new(HopBody::new(reader, None, Some(waiting.lease)));
        return Ok(reply);
    }
    // A client may wait for the app to speak first, so its body's first byte cannot be what
    // acknowledges the go-ahead.
    asking.writer.write_begun().await.map_err(broken)?;
    if expects {
        // Polling the body would ask the client for it, and only the app may do that.
        match asking.head().await? {
            ReplyHead::Go => {}
            // The client has not been asked for the body, so another peer may be tried with it.
            ReplyHead::Refused { why, load } => {
                return Err(HopError::Refused(why, load, Some(body)));
            }
            head @ (ReplyHead::Response { .. } | ReplyHead::Interim { .. }) => {
                return asking.answered_unasked(head, body);
            }
        }
    }
    let Asking { writer, reader, waiting, .. } = asking;
    let pump = pump(writer, body, None);
    let (mut reply, reader) = match read_reply(&waiting, reader, executor).await {
        Ok(read) => read,
        Err(error) => {
            // A body that was lent has come back then.
            pump.end().await;
            return Err(error);
        }
    };
    *reply.response.body_mut() = Body::new(HopBody::new(reader, Some(pump), Some(waiting.lease)));
    Ok(reply)
}

impl Asking {
    async fn head(&mut self) -> Result<ReplyHead, HopError> {
        read_head(&self.waiting, &mut self.reader, self.waiting.on_silence).await
    }

    /// Asks for an upgrade: if the app switches, both streams are the tunnel from there on.
    async fn upgrade(self) -> Result<HopReply, HopError> {
        let Self { mut writer, reader, executor, waiting } = self;
        writer.flush().await.map_err(broken)?;
        let (mut reply, reader) = read_reply(&waiting, reader, executor).await?;
        let lease = waiting.lease;
        if reply.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            reply.tunnel = Some(Tunnel { writer, reader, lease, served_there: None });
        } else {
            // The client sends nothing before the switch, so its half has ended. A peer that has
            // answered completely may have stopped reading, which does not affect its answer.
            let _ = writer.write_end(Bytes::new(), None).await;
            *reply.response.body_mut() = Body::new(HopBody::new(reader, None, Some(lease)));
        }
        Ok(reply)
    }

    /// An app that answers without asking for the body may read it all the same, and otherwise must
    /// not see it cut off while it still answers. It is sent when the client would have been asked
    /// for it; by then the client has its answer, and is asked for nothing more.
    #[expect(clippy::result_large_err, reason = "a refusal is read where it arises, once")]
    fn answered_unasked(self, head: ReplyHead, body: Body) -> Result<HopReply, HopError> {
        let mut reply = interpret(head, self.executor)?;
        let pump = pump(self.writer, body, Some(UNASKED_BODY_AFTER));
        let body = HopBody::new(self.reader.into_body(), Some(pump), Some(self.waiting.lease));
        *reply.response.body_mut() = Body::new(body);
        Ok(reply)
    }
}

/// Sends a body beside the answer, for as long as the answer is read.
fn pump(writer: HopBodyWriter, body: Body, after: Option<Duration>) -> Pump {
    Pump(tokio::spawn(async move {
        if let Some(after) = after {
            tokio::time::sleep(after).await;
        }
        if let Err(error) = send_body(writer, body, OnFailure::Reset).await {
            tracing::debug!(%error, "request body ended early");
        }
    }))
}

/// Asks `to` to start an app.
pub(crate) async fn wake(net: &Net, to: &PeerId, app: AppName) -> Result<(), HopError> {
    let head = HopHead {
        kind: HopKind::Wake,
        app,
        request_id: "wake".into(),
        method: "GET".into(),
        target: "/".into(),
        fields: FieldBlock::default(),
        upgrade: None,
        asks_go: false,
        counts_on: None,
    };
    let on_silence = OnSilence::GoElsewhere;
    let request = HopRequest { head, body: Body::empty(), interim: None, on_silence };
    match ask(net, to, request, false).await {
        Ok(_) | Err(HopError::Refused(HopRefusal::NotReady, ..)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn broken(error: impl std::fmt::Display) -> HopError {
    HopError::Broken(error.to_string())
}

async fn read_reply(
    waiting: &Waiting,
    mut reader: FrameReader,
    executor: Incarnation,
) -> Result<(HopReply, HopBodyReader), HopError> {
    let head = read_head(waiting, &mut reader, waiting.on_silence).await?;
    let mut reader = reader.into_body();
    match interpret(head, executor) {
        Ok(reply) => Ok((reply, reader)),
        Err(error) => {
            // A refusal has no body; the stream is read to its end, so that no superfluous stop is
            // sent.
            let _ = reader.next().await;
            Err(error)
        }
    }
}

/// The next head that is not that of an interim response; those are passed on to the client.
async fn read_head(
    waiting: &Waiting,
    reader: &mut FrameReader,
    on_silence: OnSilence,
) -> Result<ReplyHead, HopError> {
    let Waiting { lease, interim, .. } = waiting;
    let awaiting = lease.awaits();
    loop {
        let frame = reader.frame(HEAD_BYTES_MAX);
        let head = match on_silence {
            OnSilence::GoElsewhere => tokio::select! {
                biased;
                head = frame => head,
                () = awaiting.silence() => return Err(broken("the peer fell silent")),
            },
            // If it stays silent, the link is closed.
            OnSilence::WaitOn => frame.await,
        };
        let head = head.map_err(broken)?;
        let head = head.ok_or_else(|| broken("the reply ended before its head"))?;
        let head = wire::decode::<_, HEAD_BYTES_MAX>(&head).map_err(|error| {
            HopError::Broken(format!("the reply's head does not decode: {error}"))
        })?;
        let ReplyHead::Interim { status, fields } = head else { return Ok(head) };
        let (Some(interim), Ok(status), Some(fields)) =
            (interim, StatusCode::from_u16(status), fields.into_headers())
        else {
            return Err(broken("an interim response is malformed, or was not asked for"));
        };
        // One that finds no room is dropped.
        let _ = interim.send(status, &fields);
    }
}

#[expect(clippy::result_large_err, reason = "a refusal is read where it arises, once")]
fn interpret(head: ReplyHead, executor: Incarnation) -> Result<HopReply, HopError> {
    match head {
        ReplyHead::Go => Err(broken("the peer sent its go-ahead twice")),
        ReplyHead::Interim { .. } => Err(broken("an interim response is no answer")),
        ReplyHead::Refused { why, load } => Err(HopError::Refused(why, load, None)),
        ReplyHead::Response { status, reason, fields, session, served_by, version, load } => {
            let malformed = || HopError::Broken("the reply's head is malformed".into());
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).map_err(|_| malformed())?;
            if let Some(reason) = reason {
                let reason = ReasonPhrase::try_from(reason).map_err(|_| malformed())?;
                response.extensions_mut().insert(reason);
            }
            if let Some(version) = version {
                response.extensions_mut().insert(OfVersion(version));
            }
            *response.headers_mut() = fields.into_headers().ok_or_else(malformed)?;
            Ok(HopReply { response, session, served_by, load, executor, tunnel: None })
        }
    }
}
