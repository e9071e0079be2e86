//! One hop: a request to a ready peer and its response back, over one QUIC stream. Both ends
//! are here, so that the form on the wire is read in one place.
//!
//! ```text
//! entry peer ── kind │ u32 length │ HopHead  │ body frames … │ end ──▶ serving peer
//!            ◀─        u32 length │ ReplyHead│ body frames … │ end ──
//! ```

pub(crate) mod field_block;
pub mod peer_service;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{EXPECT, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;
use warmhop_core::ids::{AppName, Ballot, Incarnation, PeerId, RequestKey, SessionId};
use warmhop_core::session::message::{Config, Exec, ExecDone, Stored};

use crate::hop::field_block::FieldBlock;
use crate::http::body::{Body, BoxError};
use crate::http::tunnels::Farewell;
use crate::links::hop_body::{HopBodyReader, HopBodyWriter, HopPart};
use crate::links::link::HopLease;
use crate::links::net::{Net, OpenError, OpenHop};
use crate::links::wire::{self, FrameReader, KIND_HOP, Trailers, put_frame};

/// The largest head of a hop in bytes, the session's inline base included.
pub(crate) const HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// When a body is sent that its client wanted to be asked for, and the app answered without asking.
const UNASKED_BODY_AFTER: Duration = Duration::from_secs(1);
/// A peer that sends nothing at all for so long after a hop began is given up.
const SILENT_AFTER: Duration = Duration::from_millis(600);
/// A body known to be whole and at most so large rides with the head in one write.
const RIDE_ALONG_BYTES_MAX: usize = 16 * 1024;

/// What a hop asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HopKind {
    /// Serve it; sessions are none of the mesh's business.
    Plain,
    /// Nothing to serve: start the app, which the asking peer may not.
    Wake,
    /// Execute it for a session that another peer owns.
    Exec { sid: SessionId, exec: Exec },
    /// You own its session: do all that an entry peer does.
    Forward(Forward),
    /// Not for an app, but for a service that peers offer to each other; the app's name is its.
    Service,
}

/// A request on its way to its session's owner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forward {
    pub(crate) sid: SessionId,
    /// The members that the client's token names; absent where a key names the session.
    pub(crate) cfg: Option<Config>,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
    pub(crate) rid: RequestKey,
    pub(crate) fingerprint: u64,
    pub(crate) keyed: bool,
    pub(crate) seen: Option<u64>,
    /// Tells the request from its client's repeats. Another one once an app may have seen it.
    pub(crate) attempt: u64,
    /// How many peers it may still be sent on to.
    pub(crate) hops_left: u8,
    /// The entry peer wants to own the session after this request.
    pub(crate) hand_over: Option<Incarnation>,
    /// The entry peer does not hear the owner of what a key names: find it, or take it over. Whether
    /// the request makes it where there is none.
    pub(crate) relay: Option<bool>,
}

/// The head of a hop.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HopHead {
    pub(crate) kind: HopKind,
    pub(crate) app: AppName,
    pub(crate) request_id: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: FieldBlock,
    /// The protocol that the client asks to upgrade to.
    pub(crate) upgrade: Option<Vec<u8>>,
    /// The body is a stream, which cannot be sent twice: it waits for [`ReplyHead::Go`]. With a
    /// field `Expect` it waits for a second one, which comes when the app asks for the body.
    pub(crate) asks_go: bool,
}

/// The load of an app on the peer that replies, for the next choice among peers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    pub(crate) latency_us: u32,
}

/// What the client's token should say of its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hint {
    /// Another than the request's where that was renewed.
    pub(crate) sid: SessionId,
    pub(crate) cfg: Config,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
}

/// The session's part of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplySession {
    None,
    /// What came of an execution.
    Done(ExecDone),
    /// The owner committed it: what the client's token should say.
    Committed {
        hint: Hint,
        replayed: bool,
    },
    /// The owner committed it, and the client is to have no session.
    Cleared {
        replayed: bool,
    },
}

/// Why a hop was refused; no app has seen the request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum HopRefusal {
    /// The app is not ready here: the view of the peer that asked was stale.
    NotReady,
    /// There is no such app here.
    UnknownApp,
    /// The executor cannot run on that base, or may not vote.
    Exec(ExecDone),
    /// This peer does not own the session.
    NotOwner { claim: Option<Ballot>, cfg: Option<Config> },
    /// A problem for the client, decided by the owner.
    Problem { status: u16, name: String, detail: String, retry_after_ms: Option<u64> },
    /// The app took the request and failed before it answered.
    AppFailed { detail: String },
    /// The app took the request and did not answer in time.
    TooSlow { detail: String },
    /// Every place of the copy here is taken: no app has seen the request.
    Busy,
    /// The head was out of form.
    Malformed,
    /// Too many of the session's holders are gone for good; the session that one of them goes on
    /// as, and who that is.
    Lost { went_on: Option<(SessionId, Incarnation)> },
    /// Another peer took the session over while the request ran: the claim of the likely owner, who
    /// knows whether it was applied.
    Deposed { to: Option<Ballot>, n: u64 },
    /// The session's id was ended on purpose.
    Ended,
}

impl HopKind {
    /// What it asks for, in a word.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Plain => "serve it",
            Self::Wake => "start the app",
            Self::Exec { .. } => "execute it for its session's owner",
            Self::Forward(_) => "own its session",
            Self::Service => "answer as a peer",
        }
    }
}

impl HopRefusal {
    /// Every name.
    pub(crate) const LABELS: [&str; 12] = [
        "not-ready",
        "unknown-app",
        "session-base-or-vote",
        "not-owner",
        "problem",
        "app-failed",
        "too-slow",
        "busy",
        "malformed",
        "session-lost",
        "deposed",
        "session-ended",
    ];

    /// A stable name for counters and traces.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::UnknownApp => "unknown-app",
            Self::Exec(_) => "session-base-or-vote",
            Self::NotOwner { .. } => "not-owner",
            Self::Problem { .. } => "problem",
            Self::AppFailed { .. } => "app-failed",
            Self::TooSlow { .. } => "too-slow",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
            Self::Lost { .. } => "session-lost",
            Self::Deposed { .. } => "deposed",
            Self::Ended => "session-ended",
        }
    }
}

/// The head of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplyHead {
    /// The request is taken, or its body asked for: send it. The reply proper follows.
    Go,
    Response {
        status: u16,
        /// What an app that speaks HTTP/1 says beside it, where that is not the usual.
        reason: Option<Vec<u8>>,
        fields: FieldBlock,
        session: ReplySession,
        /// The peer that ran the app.
        served_by: String,
        load: Load,
    },
    Refused {
        why: HopRefusal,
        load: Load,
    },
}

/// Why a hop brought no response.
#[derive(Debug)]
pub(crate) enum HopError {
    /// The peer was not reached: no byte of the request left. Its body comes back.
    Unreachable(OpenError, Body),
    /// The peer said no: no byte of the request reached an app, except for `AppFailed`. A body
    /// that was not sent comes back.
    Refused(HopRefusal, Load, Option<Body>),
    /// The link broke or the reply was out of form: the app may have seen the request.
    Broken(String),
}

/// Both directions of an upgraded connection that goes over a hop. Its link stays open for as long
/// as the lease is held.
pub(crate) struct Tunnel {
    pub(crate) writer: HopBodyWriter,
    pub(crate) reader: HopBodyReader,
    pub(crate) lease: HopLease,
    /// Counts it among those that the peer serves for this one.
    pub(crate) served_there: Option<Box<dyn Send + Sync>>,
}

/// What came back.
pub(crate) struct HopReply {
    pub(crate) response: Response<Body>,
    pub(crate) session: ReplySession,
    pub(crate) served_by: String,
    pub(crate) load: Load,
    pub(crate) executor: Incarnation,
    /// Both directions of an upgraded connection.
    pub(crate) tunnel: Option<Tunnel>,
}

/// What is sent.
pub(crate) struct HopRequest {
    pub(crate) head: HopHead,
    pub(crate) body: Body,
}

fn fields_out(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn fields_in(fields: Vec<(String, Vec<u8>)>) -> Option<HeaderMap> {
    // A peer may send more than a map holds.
    let mut headers = HeaderMap::try_with_capacity(fields.len()).ok()?;
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.try_append(name, HeaderValue::from_bytes(&value).ok()?).ok()?;
    }
    Some(headers)
}

/// Sends `request` to `to` and waits for the head of its reply.
///
/// With `careful`, nothing that an app acts on is sent before the peer has said that it is there:
/// one round trip more, for which a dead peer is known not to have seen the request.
pub(crate) async fn ask(
    net: &Net,
    to: &PeerId,
    request: HopRequest,
    careful: bool,
) -> Result<HopReply, HopError> {
    let HopRequest { mut head, mut body } = request;
    let upgrades = head.upgrade.is_some();
    let whole = if upgrades { None } else { body.take_whole(RIDE_ALONG_BYTES_MAX) };
    if whole.is_some() {
        // It rides along, so there is nothing to ask for.
        head.fields = head.fields.without(EXPECT.as_str());
    }
    let expects = head.fields.contains(EXPECT.as_str());
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
    let sent = Sent { prefix, whole, body, upgrades, expects, asks_go: head.asks_go };
    let reply = ask_over(opened, to, sent).await;
    match (reply, kept) {
        // A peer that left without having taken it in: no app has seen it.
        (Err(HopError::Broken(_)), kept)
            if link.never_took(number) && (kept.is_some() || upgrades) =>
        {
            let body = kept.map_or(Body::empty(), Body::from);
            Err(HopError::Unreachable(OpenError::Unreachable(to.clone()), body))
        }
        (reply, _) => reply,
    }
}

/// What goes out over a hop's streams.
struct Sent {
    prefix: BytesMut,
    /// The whole body, where it is small and known; else `body`.
    whole: Option<Bytes>,
    body: Body,
    upgrades: bool,
    expects: bool,
    asks_go: bool,
}

async fn ask_over(opened: OpenHop, to: &PeerId, sent: Sent) -> Result<HopReply, HopError> {
    let OpenHop { send, recv, incarnation: executor, lease } = opened;
    let Sent { prefix, whole, body, upgrades, expects, asks_go } = sent;
    let mut writer = HopBodyWriter::new(send, prefix);
    let mut reader = FrameReader::new(recv);
    if upgrades {
        writer.flush().await.map_err(broken)?;
        let (mut reply, reader) = read_reply(&lease, reader, executor).await?;
        if reply.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            reply.tunnel = Some(Tunnel { writer, reader, lease, served_there: None });
        } else {
            // The client sends nothing before the switch, so its half has ended. A peer that has
            // answered in full may have stopped listening, which takes nothing from its answer.
            let _ = writer.write_end(Bytes::new(), None).await;
            *reply.response.body_mut() = Body::new(HopBody::new(reader, None, Some(lease)));
        }
        return Ok(reply);
    }
    if asks_go {
        let told = match writer.flush().await {
            Ok(()) => read_head(&lease, &mut reader).await,
            Err(error) => Err(broken(error)),
        };
        match told {
            Ok(ReplyHead::Go) => {}
            Ok(ReplyHead::Refused { why, load }) => {
                let body = whole.map_or(body, Body::from);
                return Err(HopError::Refused(why, load, Some(body)));
            }
            Ok(ReplyHead::Response { .. }) | Err(_) => {
                let body = whole.map_or(body, Body::from);
                return Err(HopError::Unreachable(OpenError::Unreachable(to.clone()), body));
            }
        }
    }
    let pump = match whole {
        Some(whole) => {
            writer.write_end(whole, None).await.map_err(broken)?;
            None
        }
        None => {
            // A client may wait for the app to speak first, so the body's first byte must not be
            // what shows that the go-ahead was heard.
            writer.write_begun().await.map_err(broken)?;
            if expects {
                // Touching the body would ask the client for it, which is the app's to do.
                match read_head(&lease, &mut reader).await? {
                    ReplyHead::Go => {}
                    // Nobody has asked for the body, so another peer may be asked with it.
                    ReplyHead::Refused { why, load } => {
                        return Err(HopError::Refused(why, load, Some(body)));
                    }
                    // An app that answers without a word on the body may read it all the same, and
                    // one that does not must not find it broken off while it still answers. It is
                    // sent when the client would have been told to go on; by then it has heard the
                    // answer, and is told nothing more.
                    head @ ReplyHead::Response { .. } => {
                        let mut reply = interpret(head, executor)?;
                        let task = tokio::spawn(async move {
                            tokio::time::sleep(UNASKED_BODY_AFTER).await;
                            if let Err(error) = send_body(writer, body, OnFailure::Reset).await {
                                tracing::debug!(%error, "request body ended early");
                            }
                        });
                        let pump = Some(AbortOnDrop(task.abort_handle()));
                        let body = HopBody::new(reader.into_body(), pump, Some(lease));
                        *reply.response.body_mut() = Body::new(body);
                        return Ok(reply);
                    }
                }
            }
            let task = tokio::spawn(async move {
                if let Err(error) = send_body(writer, body, OnFailure::Reset).await {
                    tracing::debug!(%error, "request body ended early");
                }
            });
            Some(AbortOnDrop(task.abort_handle()))
        }
    };
    let (mut reply, reader) = read_reply(&lease, reader, executor).await?;
    *reply.response.body_mut() = Body::new(HopBody::new(reader, pump, Some(lease)));
    Ok(reply)
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
    };
    match ask(net, to, HopRequest { head, body: Body::empty() }, false).await {
        Ok(_) | Err(HopError::Refused(HopRefusal::NotReady, ..)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn broken(error: impl std::fmt::Display) -> HopError {
    HopError::Broken(error.to_string())
}

async fn read_reply(
    lease: &HopLease,
    mut reader: FrameReader,
    executor: Incarnation,
) -> Result<(HopReply, HopBodyReader), HopError> {
    let head = read_head(lease, &mut reader).await?;
    let mut reader = reader.into_body();
    match interpret(head, executor) {
        Ok(reply) => Ok((reply, reader)),
        Err(error) => {
            // A refusal has no body; read to the stream's end, so that no stop is sent for nothing.
            let _ = reader.next().await;
            Err(error)
        }
    }
}

async fn read_head(lease: &HopLease, reader: &mut FrameReader) -> Result<ReplyHead, HopError> {
    let head = tokio::select! {
        head = reader.frame(HEAD_BYTES_MAX) => head.map_err(broken)?,
        () = lease.fell_silent(SILENT_AFTER) => return Err(broken("the peer fell silent")),
    };
    let head = head.ok_or_else(|| broken("the reply ended before its head"))?;
    wire::decode::<_, HEAD_BYTES_MAX>(&head)
        .map_err(|error| HopError::Broken(format!("the reply's head does not decode: {error}")))
}

#[expect(clippy::result_large_err, reason = "a refusal is read where it arises, once")]
fn interpret(head: ReplyHead, executor: Incarnation) -> Result<HopReply, HopError> {
    match head {
        ReplyHead::Go => Err(broken("told to go on twice")),
        ReplyHead::Refused { why, load } => Err(HopError::Refused(why, load, None)),
        ReplyHead::Response { status, reason, fields, session, served_by, load } => {
            let out_of_form = || HopError::Broken("the reply's head is out of form".into());
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).map_err(|_| out_of_form())?;
            if let Some(reason) = reason {
                let reason = ReasonPhrase::try_from(reason).map_err(|_| out_of_form())?;
                response.extensions_mut().insert(reason);
            }
            *response.headers_mut() = fields.into_headers().ok_or_else(out_of_form)?;
            Ok(HopReply { response, session, served_by, load, executor, tunnel: None })
        }
    }
}

/// What is made of a stream whose body fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OnFailure {
    /// Nothing more of it is worth reading.
    Reset,
    /// What was sent before stands: the head of an answer, and what came of its body.
    CutOff,
}

/// Streams `body` with back-pressure, its trailers and its end.
pub(crate) async fn send_body(
    mut writer: HopBodyWriter,
    mut body: Body,
    on_failure: OnFailure,
) -> Result<(), BoxError> {
    let mut trailers: Option<Trailers> = None;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                match on_failure {
                    OnFailure::Reset => writer.abort(BODY_FAILED),
                    OnFailure::CutOff => writer.cut_off(),
                }
                return Err(error);
            }
        };
        match frame.into_data() {
            Ok(data) => writer.write_data(data).await?,
            Err(frame) => {
                trailers = frame.into_trailers().ok().map(|fields| fields_out(&fields));
            }
        }
    }
    writer.write_end(Bytes::new(), trailers.as_ref()).await?;
    Ok(())
}

/// How much of what has arrived is put into one piece.
const GATHERED_BYTES: usize = 32 * 1024;

/// The reset code of a body whose source failed.
const BODY_FAILED: quinn::VarInt = quinn::VarInt::from_u32(1);

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body that arrives over a hop. Dropping it before its end cancels the far side.
struct HopBody {
    reader: HopBodyReader,
    /// Read ahead, because a reader that knows the length never asks for the end, and a stream
    /// that is not read to its end costs a packet each way.
    ahead: Option<Result<HopPart, BoxError>>,
    ended: bool,
    /// The request's body may still be on its way while the response's arrives.
    _pump: Option<AbortOnDrop>,
    /// Keeps a link that is being replaced open until the hop has ended.
    _lease: Option<HopLease>,
}

impl HopBody {
    fn new(reader: HopBodyReader, pump: Option<AbortOnDrop>, lease: Option<HopLease>) -> Self {
        Self { reader, ahead: None, ended: false, _pump: pump, _lease: lease }
    }

    /// Puts what has arrived behind `first` into one piece with it. A chunk of QUIC is what fits
    /// into a packet, and each would cost a chunk of HTTP, here and at the client; copying them
    /// together costs far less. What arrives alone is not copied.
    fn with_what_has_arrived(&mut self, first: Bytes, cx: &mut Context<'_>) -> Bytes {
        let mut gathered: Option<BytesMut> = None;
        loop {
            match self.reader.poll_next(cx) {
                Poll::Ready(Ok(HopPart::Data(data))) => {
                    let gathered = gathered.get_or_insert_with(|| {
                        let mut all = BytesMut::with_capacity(GATHERED_BYTES + data.len());
                        all.extend_from_slice(&first);
                        all
                    });
                    if !gathered.is_empty() && gathered.len() + data.len() > GATHERED_BYTES {
                        self.ahead = Some(Ok(HopPart::Data(data)));
                        break;
                    }
                    gathered.extend_from_slice(&data);
                }
                Poll::Ready(part) => {
                    self.ahead = Some(part.map_err(Into::into));
                    break;
                }
                Poll::Pending => break,
            }
        }
        gathered.map_or(first, BytesMut::freeze)
    }
}

impl http_body::Body for HopBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let part = match self.ahead.take() {
            Some(part) => part,
            None => futures_util::ready!(self.reader.poll_next(cx)).map_err(Into::into),
        };
        match part {
            Ok(HopPart::Data(data)) => {
                let data = self.with_what_has_arrived(data, cx);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Ok(HopPart::End(trailers)) => {
                self.ended = true;
                let Some(trailers) = trailers else { return Poll::Ready(None) };
                match fields_in(trailers) {
                    Some(fields) => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                    None => Poll::Ready(Some(Err("trailers out of form".into()))),
                }
            }
            Err(error) => {
                self.ended = true;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || matches!(self.ahead, Some(Ok(HopPart::End(None))))
    }
}

/// A request that arrived over a hop.
pub(crate) struct Arrived {
    pub(crate) head: HopHead,
    pub(crate) method: Method,
    pub(crate) fields: HeaderMap,
    pub(crate) incoming: HopIncoming,
}

/// What follows a hop's head.
pub(crate) enum HopIncoming {
    Body(Body),
    Tunnel(HopBodyReader),
}

impl Arrived {
    /// Reads the head, the stream's kind having been read; `None` where it is out of form.
    pub(crate) async fn read(recv: quinn::RecvStream) -> Option<Self> {
        let mut reader = FrameReader::new(recv);
        let bytes = reader.frame(HEAD_BYTES_MAX).await.ok()??;
        let mut head: HopHead = wire::decode::<_, HEAD_BYTES_MAX>(&bytes).ok()?;
        let method = Method::from_bytes(head.method.as_bytes()).ok()?;
        let fields = std::mem::take(&mut head.fields).into_headers()?;
        let reader = reader.into_body();
        let incoming = if head.upgrade.is_some() {
            HopIncoming::Tunnel(reader)
        } else {
            HopIncoming::Body(Body::new(HopBody::new(reader, None, None)))
        };
        Some(Self { head, method, fields, incoming })
    }
}

fn reply_prefix(head: &ReplyHead) -> Result<BytesMut, BoxError> {
    let mut prefix = BytesMut::with_capacity(1024);
    put_frame(&mut prefix, head, HEAD_BYTES_MAX)?;
    Ok(prefix)
}

/// The head of a response on its way back.
pub(crate) fn response_head(
    response: &Response<Body>,
    session: ReplySession,
    served_by: String,
    load: Load,
) -> ReplyHead {
    let reason = response.extensions().get::<ReasonPhrase>();
    ReplyHead::Response {
        status: response.status().as_u16(),
        reason: reason.map(|reason| reason.as_bytes().to_vec()),
        fields: FieldBlock::of(response.headers()),
        session,
        served_by,
        load,
    }
}

/// Tells the entry peer to send the body.
pub(crate) async fn go(send: &mut quinn::SendStream) -> Result<(), BoxError> {
    let prefix = reply_prefix(&ReplyHead::Go)?;
    send.write_all(&prefix).await?;
    Ok(())
}

/// Answers a hop with a response.
pub(crate) async fn reply(
    send: quinn::SendStream,
    head: &ReplyHead,
    mut body: Body,
) -> Result<(), BoxError> {
    let mut writer = HopBodyWriter::new(send, reply_prefix(head)?);
    if let Some(whole) = body.take_whole(RIDE_ALONG_BYTES_MAX) {
        writer.write_end(whole, None).await?;
        return Ok(());
    }
    writer.flush().await?;
    let stopped = writer.stream().stopped();
    // Boxed, as what takes its time anyway.
    Box::pin(async move {
        tokio::select! {
            sent = send_body(writer, body, OnFailure::CutOff) => sent,
            // The client left: what still produces the body is dropped, and so cancelled.
            _ = stopped => Ok(()),
        }
    })
    .await
}

/// Answers a hop with a 101 and gives the stream over.
pub(crate) async fn reply_switching(
    send: quinn::SendStream,
    head: &ReplyHead,
) -> Result<HopBodyWriter, BoxError> {
    let mut writer = HopBodyWriter::new(send, reply_prefix(head)?);
    writer.flush().await?;
    Ok(writer)
}

/// Refuses a hop.
pub(crate) async fn refuse(
    send: quinn::SendStream,
    why: HopRefusal,
    load: Load,
) -> Result<(), BoxError> {
    reply(send, &ReplyHead::Refused { why, load }, Body::empty()).await
}

/// How long an upgraded connection's client may go on sending once the app has closed its side.
const CLOSED_APP_GRACE: Duration = Duration::from_secs(2);

/// Which end of a tunnel the app is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppIs {
    /// Behind the connection: this is the serving peer.
    Near,
    /// Behind the hop: this is the entry peer.
    Far,
}

/// Runs both directions of an upgraded connection until both have ended. A client may close its
/// side and go on listening; an app that has closed its side hears nobody any more, so the
/// client's side ends soon after.
async fn both_ways(from_client: impl Future<Output = ()>, from_app: impl Future<Output = ()>) {
    tokio::pin!(from_client, from_app);
    tokio::select! {
        () = &mut from_client => from_app.await,
        () = &mut from_app => {
            // Running out of time is how it ends where the client just stays.
            let _ = tokio::time::timeout(CLOSED_APP_GRACE, from_client).await;
        }
    }
}

/// Passes bytes between a client's upgraded connection and an app's on the same peer.
pub(crate) async fn join<C, A>(client: C, app: A, mut farewell: Farewell)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let cut = farewell.cut();
    let (mut client_in, mut client_out) = tokio::io::split(client);
    let (mut app_in, mut app_out) = tokio::io::split(app);
    let from_client = async {
        // However it ends, the other side is told by closing it.
        let _ = tokio::io::copy(&mut client_in, &mut app_out).await;
        let _ = app_out.shutdown().await;
    };
    let from_app = async {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        loop {
            buffer.reserve(16 * 1024);
            let last = tokio::select! {
                biased;
                last = farewell.due() => Some(last),
                read = app_in.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => Some(farewell.lost()),
                    Ok(_) => None,
                },
            };
            let piece = last.map_or_else(|| buffer.split().freeze(), Bytes::from_static);
            farewell.passed(&piece);
            let sent = client_out.write_all(&piece).await;
            if sent.is_err() || client_out.flush().await.is_err() || last.is_some() {
                break;
            }
        }
        let _ = client_out.shutdown().await;
    };
    tokio::select! {
        () = both_ways(from_client, from_app) => {}
        () = cut.cancelled() => {}
    }
}

/// Passes bytes between an upgraded connection and a hop until both directions have ended.
pub(crate) async fn tunnel<IO>(
    io: IO,
    mut writer: HopBodyWriter,
    mut reader: HopBodyReader,
    app: AppIs,
    farewell: Farewell,
) where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let cut = farewell.cut();
    let (mut from, mut to) = tokio::io::split(io);
    // Only what goes to the client ends with the peer's own close.
    let never = Farewell::default();
    let (mut to_hop, mut to_io) = match app {
        AppIs::Near => (farewell, never),
        AppIs::Far => (never, farewell),
    };
    let up = async {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        loop {
            buffer.reserve(16 * 1024);
            let read = tokio::select! {
                biased;
                last = to_hop.due() => {
                    let _ = writer.write_data(Bytes::from_static(last)).await;
                    break;
                }
                read = from.read_buf(&mut buffer) => read,
            };
            match read {
                Ok(0) => {
                    let _ = writer.write_data(Bytes::from_static(to_hop.lost())).await;
                    break;
                }
                Ok(_) => {
                    let piece = buffer.split().freeze();
                    to_hop.passed(&piece);
                    if writer.write_data(piece).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    let last = to_hop.lost();
                    if last.is_empty() {
                        writer.abort(BODY_FAILED);
                        return;
                    }
                    let _ = writer.write_data(Bytes::from_static(last)).await;
                    break;
                }
            }
        }
        let _ = writer.write_end(Bytes::new(), None).await;
    };
    let down = async {
        loop {
            let data = tokio::select! {
                biased;
                last = to_io.due() => {
                    let _ = to.write_all(last).await;
                    break;
                }
                part = reader.next() => match part {
                    Ok(HopPart::Data(data)) => data,
                    Ok(HopPart::End(_)) | Err(_) => {
                        let _ = to.write_all(to_io.lost()).await;
                        break;
                    }
                },
            };
            to_io.passed(&data);
            if to.write_all(&data).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let both = async {
        match app {
            AppIs::Near => both_ways(down, up).await,
            AppIs::Far => both_ways(up, down).await,
        }
    };
    tokio::select! {
        () = both => {}
        () = cut.cancelled() => {}
    }
}

/// A response as it is stored for a repeat of its request.
#[derive(Serialize, Deserialize)]
struct StoredResponse {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// Collects a response to store it, if it is at most `bytes_max` long; the response goes on
/// unchanged either way.
pub(crate) async fn store_response(
    response: Response<Body>,
    bytes_max: usize,
) -> Result<(Response<Body>, Stored), BoxError> {
    let (parts, mut body) = response.into_parts();
    let mut collected = bytes::BytesMut::new();
    let mut later = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if collected.len() + data.len() > bytes_max {
            later = Some(data);
            break;
        }
        collected.extend_from_slice(&data);
    }
    let collected = collected.freeze();
    if let Some(next) = later {
        let body = Body::resumed(vec![collected, next], body);
        return Ok((Response::from_parts(parts, body), Stored::TooLarge));
    }
    let stored = StoredResponse {
        status: parts.status.as_u16(),
        fields: fields_out(&parts.headers),
        body: collected.to_vec(),
    };
    let encoded = wire::encode(&stored, bytes_max.saturating_add(128 * 1024))?;
    let response = Response::from_parts(parts, Body::from(collected));
    Ok((response, Stored::Response(encoded.as_ref().into())))
}

/// The stored response of a request that is repeated.
pub(crate) fn restore_response(stored: &[u8]) -> Option<Response<Body>> {
    let stored: StoredResponse = wire::decode::<_, HEAD_BYTES_MAX>(stored).ok()?;
    let mut response = Response::new(Body::from(Bytes::from(stored.body)));
    *response.status_mut() = StatusCode::from_u16(stored.status).ok()?;
    *response.headers_mut() = fields_in(stored.fields)?;
    Some(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::http::tunnels::Tunnels;

    #[test]
    fn more_fields_than_a_map_holds_are_refused() {
        let field = |at: usize| (format!("x-{at}"), Vec::new());
        for count in [40_000, 100_000] {
            assert!(fields_in((0..count).map(field).collect()).is_none(), "{count}");
        }
        assert_eq!(fields_in((0..9).map(field).collect()).unwrap().len(), 9);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_cut_off_in_the_middle_of_a_write() {
        let tunnels = Tunnels::default();
        let websocket = HeaderValue::from_static("websocket");
        let (client, _unread) = duplex(16);
        let (app, mut app_end) = duplex(1024);
        let joined = tokio::spawn(join(client, app, tunnels.farewell(Some(&websocket))));
        // Frames without bytes, between any two of which the close could be sent; more than fits, so
        // that some have been read by then and are being written.
        app_end.write_all(&[0x82, 0].repeat(750)).await.unwrap();
        tunnels.closing.cancel();
        tunnels.cut.cancel();
        tokio::time::timeout(Duration::from_secs(30), joined).await.expect("it ends").unwrap();
    }
}
