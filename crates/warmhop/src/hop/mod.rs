//! One hop: a request to a ready peer and its response back, over one QUIC stream. Both ends
//! are in this folder, so that the wire format is in one place.
//!
//! ```text
//! entry peer ── kind │ u32 length │ HopHead  │ body frames … │ end ──▶ serving peer
//!            ◀─        u32 length │ ReplyHead│ body frames … │ end ──
//! ```

mod answer;
mod ask;
mod body;
pub(crate) mod field_block;
pub(crate) mod head;
pub mod peer_service;
mod stored;
mod tunnel;

pub(crate) use answer::{
    ArrivedHop, HopIncoming, go, interim, refuse, reply, reply_switching, response_head,
};
pub(crate) use ask::{HopError, HopReply, HopRequest, OnSilence, ask, request_fields, wake};
pub(crate) use body::{CutShort, RIDE_ALONG_BYTES_MAX};
pub(crate) use head::{
    Forward, Hint, HopHead, HopKind, HopRefusal, Load, OfVersion, Relay, ReplyHead, ReplySession,
    SentProblem,
};
pub(crate) use stored::{restore_response, store_response};
pub(crate) use tunnel::{AppIs, Tunnel, join, tunnel};
