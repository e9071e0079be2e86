//! Why a link is closed; the other end reads it.

use quinn::VarInt;

/// The peer leaves the mesh, in good order. The reason, if there is one, is how many hops it has
/// accepted.
pub(crate) const GOODBYE: VarInt = VarInt::from_u32(1);
/// Another link took this one's place, and its hops have ended.
pub(crate) const DRAINED: VarInt = VarInt::from_u32(2);
/// The peer has restarted as another incarnation.
pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
/// A peer dialed itself.
pub(crate) const MYSELF: VarInt = VarInt::from_u32(4);
/// Another live peer has this name; the reason is its address.
pub(crate) const NAME_IN_USE: VarInt = VarInt::from_u32(5);
/// The certificate does not prove a peer of this cluster, or the hello says otherwise.
pub(crate) const WRONG_IDENTITY: VarInt = VarInt::from_u32(6);
/// Another protocol version.
pub(crate) const WRONG_VERSION: VarInt = VarInt::from_u32(7);
/// No valid hello came in time.
pub(crate) const NO_HELLO: VarInt = VarInt::from_u32(8);
/// The link reached its maximum age and was not renewed.
pub(crate) const TOO_OLD: VarInt = VarInt::from_u32(9);
/// The peer knows too many others.
pub(crate) const FULL: VarInt = VarInt::from_u32(10);
/// The other end did not answer a hop in time.
pub(crate) const SILENT: VarInt = VarInt::from_u32(11);
/// The operator of the peer has configured it to refuse the other.
pub(crate) const REFUSED: VarInt = VarInt::from_u32(12);
/// As [`GOODBYE`], but others have not yet copied all that the peer held.
pub(crate) const CUT_SHORT: VarInt = VarInt::from_u32(13);
/// The certificate of the other end has expired since the link was made.
pub(crate) const EXPIRED: VarInt = VarInt::from_u32(14);

/// A stream of an unknown kind or with a malformed frame is stopped and reset with this code.
pub(crate) const STREAM_REFUSED: VarInt = VarInt::from_u32(0x100);
