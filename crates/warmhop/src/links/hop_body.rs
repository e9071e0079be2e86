//! The body of a hop on the wire.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use crate::links::wire::{
    EncodeError, FrameReader, TRAILERS_BYTES_MAX, Trailers, decode, put_frame,
};

/// The longest piece of a body; longer data is sent as several pieces.
const PIECE_BYTES_MAX: usize = 0x7FFF_FFFF;

const END_TAG: u32 = u32::MAX;

/// Pieces up to this size are copied behind their length; above, two chunks are cheaper.
const COALESCE_BYTES_MAX: usize = 2048;

/// Instead of a piece's length: a piece without bytes, by which the writer acknowledges the
/// go-ahead.
const BEGUN_TAG: [u8; 4] = [0; 4];

/// Writes a hop's body. Bytes that were put before it, such as the kind byte and the head, leave
/// together with the first piece.
pub(crate) struct HopBodyWriter {
    send: SendStream,
    pending: BytesMut,
}

impl HopBodyWriter {
    /// Writes to `send`, beginning with `prefix`.
    pub(crate) fn new(send: SendStream, prefix: BytesMut) -> Self {
        Self { send, pending: prefix }
    }

    /// Sends pending bytes without waiting for a piece: for a head whose body is slow.
    pub(crate) async fn flush(&mut self) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = self.pending.split().freeze();
        self.send.write_chunk(pending).await
    }

    /// Reports that the body has begun, before its first byte.
    pub(crate) async fn write_begun(&mut self) -> Result<(), WriteError> {
        self.pending.extend_from_slice(&BEGUN_TAG);
        self.flush().await
    }

    /// Sends one piece of the body, waiting while the receiver is slower. Large pieces are
    /// passed on without copying.
    pub(crate) async fn write_data(&mut self, mut data: Bytes) -> Result<(), WriteError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
            self.put_header(&piece);
            if piece.len() <= COALESCE_BYTES_MAX {
                self.pending.extend_from_slice(&piece);
                self.flush().await?;
            } else {
                let pending = self.pending.split().freeze();
                self.send.write_all_chunks(&mut [pending, piece]).await?;
            }
        }
        Ok(())
    }

    /// Sends the last piece, if any, together with the end and the trailers; all of a small
    /// response is one write. The stream is finished.
    pub(crate) async fn write_end(
        mut self,
        last: Bytes,
        trailers: Option<&Trailers>,
    ) -> Result<(), HopEndError> {
        if last.len() > COALESCE_BYTES_MAX {
            self.write_data(last).await?;
        } else if !last.is_empty() {
            self.put_header(&last);
            self.pending.extend_from_slice(&last);
        }
        self.pending.extend_from_slice(&END_TAG.to_be_bytes());
        match trailers {
            Some(trailers) => put_frame(&mut self.pending, trailers, TRAILERS_BYTES_MAX)?,
            None => self.pending.extend_from_slice(&[0; 4]),
        }
        self.flush().await?;
        // This fails only for a stream that was reset, and the reader sees that itself.
        let _ = self.send.finish();
        Ok(())
    }

    /// Resets the stream with the reason `code`. The reader sees that the body is incomplete.
    pub(crate) fn abort(mut self, code: quinn::VarInt) {
        // A stream that the reader has stopped needs no reset.
        let _ = self.send.reset(code);
    }

    /// Ends the stream without the mark of a complete body. Unlike with [`Self::abort`], the reader
    /// gets everything that was written before.
    pub(crate) fn cut_off(mut self) {
        let _ = self.send.finish();
    }

    /// The stream itself, for waiting on the reader's stop.
    pub(crate) fn stream(&mut self) -> &mut SendStream {
        &mut self.send
    }

    fn put_header(&mut self, piece: &Bytes) {
        let len = u32::try_from(piece.len()).expect("pieces are at most PIECE_BYTES_MAX");
        self.pending.extend_from_slice(&len.to_be_bytes());
    }
}

/// Why a body's end could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HopEndError {
    /// The trailers exceed [`TRAILERS_BYTES_MAX`].
    #[error("the trailers cannot be sent: {0}")]
    Trailers(#[from] EncodeError),
    /// The stream or its link broke, or the reader stopped it.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A part of a hop's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HopPart {
    /// Bytes of the body, not empty.
    Data(Bytes),
    /// The body is complete. The stream has been read to its end.
    End(Option<Trailers>),
}

/// Why a hop's body is incomplete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HopBodyError {
    /// The stream ended without the end mark: the sender died or gave up.
    #[error("the body was cut off before its end")]
    CutOff,
    /// The sender broke the protocol.
    #[error("the body is malformed: {0}")]
    Malformed(String),
    /// The stream was reset or its link broke.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads a hop's body; passes its chunks on as they arrive, without copying.
pub(crate) struct HopBodyReader {
    recv: RecvStream,
    left: Bytes,
    header: [u8; 4],
    stage: Stage,
}

enum Stage {
    /// Within a tag or length, of which `have` bytes are read.
    Tag { have: usize },
    /// Within a piece of which `left` bytes are to come.
    Piece { left: usize },
    /// Within the length of the trailers.
    TrailersLength { have: usize },
    /// Within the trailers.
    Trailers { len: usize, buffer: BytesMut },
    /// After the end mark, reading to the end of the stream.
    Finish { trailers: Option<Trailers> },
    /// The end or an error was returned.
    Done,
}

impl HopBodyReader {
    /// The next part. After [`HopPart::End`] or an error, `Err(CutOff)`.
    pub(crate) async fn next(&mut self) -> Result<HopPart, HopBodyError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] for implementations of `http_body::Body`.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<HopPart, HopBodyError>> {
        let result = ready!(self.poll_part(cx));
        if !matches!(result, Ok(HopPart::Data(_))) {
            self.stage = Stage::Done;
        }
        Poll::Ready(result)
    }

    #[cfg(test)]
    /// Whether [`HopPart::End`] or an error was returned.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<HopPart, HopBodyError>> {
        loop {
            let more = ready!(self.poll_fill(cx))?;
            match &mut self.stage {
                Stage::Done => return Poll::Ready(Err(HopBodyError::CutOff)),
                Stage::Finish { .. } if more => {
                    return malformed("bytes follow its end");
                }
                Stage::Finish { trailers } => {
                    return Poll::Ready(Ok(HopPart::End(trailers.take())));
                }
                // The trailers may have no bytes: then nothing more is needed.
                _ if !more => return Poll::Ready(Err(HopBodyError::CutOff)),
                Stage::Piece { left } => {
                    let data = self.left.split_to((*left).min(self.left.len()));
                    *left -= data.len();
                    if *left == 0 {
                        self.stage = Stage::Tag { have: 0 };
                    }
                    return Poll::Ready(Ok(HopPart::Data(data)));
                }
                Stage::Tag { have } | Stage::TrailersLength { have } if *have < 4 => {
                    self.header[*have] = self.left.get_u8();
                    *have += 1;
                    if *have == 4 {
                        if matches!(self.stage, Stage::Tag { .. }) && self.header == BEGUN_TAG {
                            self.stage = Stage::Tag { have: 0 };
                            return Poll::Ready(Ok(HopPart::Data(Bytes::new())));
                        }
                        match self.after_header() {
                            Ok(stage) => self.stage = stage,
                            Err(what) => return malformed(&what),
                        }
                    }
                }
                Stage::Tag { .. } | Stage::TrailersLength { .. } => {
                    unreachable!("a complete header leaves its stage at once")
                }
                Stage::Trailers { len, buffer } => {
                    let wanted = (*len - buffer.len()).min(self.left.len());
                    buffer.extend_from_slice(&self.left.split_to(wanted));
                    if buffer.len() == *len {
                        match decode::<Trailers, TRAILERS_BYTES_MAX>(buffer) {
                            Ok(trailers) => self.stage = Stage::Finish { trailers: Some(trailers) },
                            Err(error) => return malformed(&error.to_string()),
                        }
                    }
                }
            }
        }
    }

    fn after_header(&self) -> Result<Stage, String> {
        let value = u32::from_be_bytes(self.header);
        let len = value as usize;
        match self.stage {
            Stage::TrailersLength { .. } => match len {
                0 => Ok(Stage::Finish { trailers: None }),
                1..=TRAILERS_BYTES_MAX => Ok(Stage::Trailers { len, buffer: BytesMut::new() }),
                _ => Err(format!("trailers of {len} bytes exceed their bound")),
            },
            _ => match value {
                END_TAG => Ok(Stage::TrailersLength { have: 0 }),
                _ if (1..=PIECE_BYTES_MAX).contains(&len) => Ok(Stage::Piece { left: len }),
                _ => Err(format!("a piece cannot have the length {len}")),
            },
        }
    }

    /// Waits for bytes where none are left; false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ReadError>> {
        while self.left.is_empty() {
            // The future keeps nothing between polls, so each poll may create it again.
            match ready!(pin!(self.recv.read_chunk(usize::MAX, true)).poll(cx))? {
                Some(chunk) => self.left = chunk.bytes,
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }
}

fn malformed(what: &str) -> Poll<Result<HopPart, HopBodyError>> {
    Poll::Ready(Err(HopBodyError::Malformed(what.to_owned())))
}

impl FrameReader {
    /// The body that follows the frames read so far.
    pub(crate) fn into_body(self) -> HopBodyReader {
        HopBodyReader {
            recv: self.recv,
            left: self.left,
            header: [0; 4],
            stage: Stage::Tag { have: 0 },
        }
    }
}
