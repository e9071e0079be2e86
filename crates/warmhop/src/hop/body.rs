//! A body on its way over a hop, with back-pressure.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt;
use quinn::WriteError;
use tokio::task::JoinHandle;

use crate::hop::head::{fields_in, fields_out};
use crate::http::body::{Body, BoxError};
use crate::links::hop_body::{HopBodyReader, HopBodyWriter, HopEndError, HopPart};
use crate::links::link::HopLease;
use crate::links::wire::Trailers;

/// A body in memory of at most this size is sent with the head, in one write.
pub(crate) const RIDE_ALONG_BYTES_MAX: usize = 16 * 1024;

/// What to do with a stream whose body fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OnFailure {
    /// Reset it: the rest is not worth reading.
    Reset,
    /// End it: the head of the answer and the part of the body that was sent remain valid.
    CutOff,
}

/// A body that was not sent whole.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub(crate) struct CutShort {
    /// How many of its bytes were sent.
    pub(crate) bytes: u64,
    pub(crate) source: BoxError,
}

impl CutShort {
    /// One of which nothing was sent.
    pub(crate) fn at_once(error: impl Into<BoxError>) -> Self {
        Self { bytes: 0, source: error.into() }
    }

    /// Whether the other end wanted no more of it: its client has left.
    pub(crate) fn is_unwanted(&self) -> bool {
        let written = match self.source.downcast_ref::<HopEndError>() {
            Some(HopEndError::Write(error)) => Some(error),
            _ => self.source.downcast_ref::<WriteError>(),
        };
        matches!(written, Some(WriteError::Stopped(_)))
    }
}

/// Streams `body` with back-pressure, then its trailers and its end.
pub(crate) async fn send_body(
    writer: HopBodyWriter,
    body: Body,
    on_failure: OnFailure,
) -> Result<(), CutShort> {
    let mut bytes = 0;
    let sent = send_counted(writer, body, on_failure, &mut bytes).await;
    sent.map_err(|source| CutShort { bytes, source })
}

/// The same; `bytes` counts what was sent.
pub(super) async fn send_counted(
    mut writer: HopBodyWriter,
    mut body: Body,
    on_failure: OnFailure,
    bytes: &mut u64,
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
            Ok(data) => {
                let length = data.len() as u64;
                writer.write_data(data).await?;
                *bytes += length;
            }
            Err(frame) => {
                trailers = frame.into_trailers().ok().map(|fields| fields_out(&fields));
            }
        }
    }
    writer.write_end(Bytes::new(), trailers.as_ref()).await?;
    Ok(())
}

/// The most arrived bytes that are joined into one piece.
const GATHERED_BYTES: usize = 32 * 1024;

/// The reset code of a body whose source failed.
pub(super) const BODY_FAILED: quinn::VarInt = quinn::VarInt::from_u32(1);

/// Sends a request's body; dropping it ends that.
pub(super) struct Pump(pub(super) JoinHandle<()>);

impl Pump {
    /// Ends it, and waits until the body is dropped.
    pub(super) async fn end(mut self) {
        self.0.abort();
        // How it ended does not matter.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body that arrives over a hop. Dropping it before its end cancels the far side.
pub(super) struct HopBody {
    reader: HopBodyReader,
    /// Read ahead, because a reader that knows the length never asks for the end, and a stream
    /// that is not read to its end costs a packet each way.
    ahead: Option<Result<HopPart, BoxError>>,
    ended: bool,
    /// It ended before all of it had come.
    broken: bool,
    /// The request's body may still be on its way while the response's arrives.
    _pump: Option<Pump>,
    /// Keeps a link that is being replaced open until the hop has ended.
    _lease: Option<HopLease>,
}

impl HopBody {
    pub(super) fn new(reader: HopBodyReader, pump: Option<Pump>, lease: Option<HopLease>) -> Self {
        Self { reader, ahead: None, ended: false, broken: false, _pump: pump, _lease: lease }
    }

    /// Joins the bytes that have arrived after `first` with it into one piece. A QUIC chunk is what
    /// fits into a packet, and each would become an HTTP chunk, here and at the client; copying
    /// them together costs far less. A single chunk is not copied.
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
                    None => {
                        self.broken = true;
                        Poll::Ready(Some(Err("malformed trailers".into())))
                    }
                }
            }
            Err(error) => {
                self.ended = true;
                self.broken = true;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        (self.ended && !self.broken) || matches!(self.ahead, Some(Ok(HopPart::End(None))))
    }
}
