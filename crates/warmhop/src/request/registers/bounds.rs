//! How large a register may be.

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024 + 4096;
/// The bytes of a register besides its key and its value: when it expires, and its encoding.
pub(crate) const HELD_BYTES: usize = 8 + 1 + 2;
/// The largest state of a register's session.
pub(crate) const STATE_BYTES_MAX: usize = HELD_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;
