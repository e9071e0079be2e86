//! How large the head of a request may be, for all who read it.

/// The largest one in bytes; hyper is given the same bound.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most fields.
pub(crate) const FIELDS_MAX: usize = 128;
