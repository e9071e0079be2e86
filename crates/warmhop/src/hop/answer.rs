//! The serving peer's end of a hop: it reads the request and answers it.

use bytes::BytesMut;
use http::{HeaderMap, Method, Response};
use hyper::ext::ReasonPhrase;
use tokio_util::sync::CancellationToken;

use crate::hop::body::{CutShort, HopBody, OnFailure, RIDE_ALONG_BYTES_MAX, send_counted};
use crate::hop::field_block::FieldBlock;
use crate::hop::head::{
    HEAD_BYTES_MAX, HopHead, HopRefusal, INTERIM, Load, OfVersion, ReplyHead, ReplySession,
};
use crate::http::body::{Body, BoxError};
use crate::links::hop_body::{HopBodyReader, HopBodyWriter};
use crate::links::wire::{self, FrameReader, put_frame};

/// Why an answer was cut off that nobody reads.
const OVER_BUDGET: &str =
    "requests hold more memory than `[http] memory` allows, and this one held the most";

/// A request that arrived over a hop.
pub(crate) struct ArrivedHop {
    pub(crate) head: HopHead,
    pub(crate) method: Method,
    pub(crate) fields: HeaderMap,
    pub(crate) incoming: HopIncoming,
    /// The entry peer accepts interim responses.
    pub(crate) takes_interim: bool,
}

/// What follows a hop's head.
pub(crate) enum HopIncoming {
    Body(Body),
    Tunnel(HopBodyReader),
}

impl ArrivedHop {
    /// Reads the head, after the caller has read the stream's kind; `None` if it is malformed.
    pub(crate) async fn read(recv: quinn::RecvStream) -> Option<Self> {
        let mut reader = FrameReader::new(recv);
        let bytes = reader.frame(HEAD_BYTES_MAX).await.ok()??;
        let mut head: HopHead = wire::decode::<_, HEAD_BYTES_MAX>(&bytes).ok()?;
        let method = Method::from_bytes(head.method.as_bytes()).ok()?;
        let mut fields = std::mem::take(&mut head.fields).into_headers()?;
        let takes_interim = fields.remove(INTERIM).is_some();
        let reader = reader.into_body();
        let incoming = if head.upgrade.is_some() {
            HopIncoming::Tunnel(reader)
        } else {
            HopIncoming::Body(Body::new(HopBody::new(reader, None, None)))
        };
        Some(Self { head, method, fields, incoming, takes_interim })
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
        version: response.extensions().get::<OfVersion>().map(|it| it.0.clone()),
        load,
    }
}

/// Tells the entry peer to send the body.
pub(crate) async fn go(send: &mut quinn::SendStream) -> Result<(), BoxError> {
    let prefix = reply_prefix(&ReplyHead::Go)?;
    send.write_all(&prefix).await?;
    Ok(())
}

/// Sends an interim response before the answer.
pub(crate) async fn interim(
    send: &mut quinn::SendStream,
    head: &Response<()>,
) -> Result<(), BoxError> {
    let fields = FieldBlock::of(head.headers());
    let prefix = reply_prefix(&ReplyHead::Interim { status: head.status().as_u16(), fields })?;
    send.write_all(&prefix).await?;
    Ok(())
}

/// Answers a hop with a response, unless it `gives_way` before its end.
pub(crate) async fn reply(
    send: quinn::SendStream,
    head: &ReplyHead,
    mut body: Body,
    gives_way: Option<CancellationToken>,
) -> Result<(), CutShort> {
    let mut writer = HopBodyWriter::new(send, reply_prefix(head).map_err(CutShort::at_once)?);
    if let Some(whole) = body.take_whole(RIDE_ALONG_BYTES_MAX) {
        writer.write_end(whole, None).await.map_err(CutShort::at_once)?;
        return Ok(());
    }
    writer.flush().await.map_err(CutShort::at_once)?;
    let stopped = writer.stream().stopped();
    // Boxed: sending a body takes long enough for the allocation not to matter.
    Box::pin(async move {
        let mut bytes = 0;
        let gives_way = async {
            match &gives_way {
                Some(gives_way) => gives_way.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let sent = tokio::select! {
            sent = send_counted(writer, body, OnFailure::CutOff, &mut bytes) => sent,
            // The client left. Dropping the body's source cancels it.
            _ = stopped => Ok(()),
            () = gives_way => Err(OVER_BUDGET.into()),
        };
        sent.map_err(|source| CutShort { bytes, source })
    })
    .await
}

/// Answers a hop with a 101 and returns the stream.
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
) -> Result<(), CutShort> {
    reply(send, &ReplyHead::Refused { why, load }, Body::empty(), None).await
}
