//! The fuzzed functions: each takes any bytes, and panics if an invariant does not hold. The tests
//! here feed them for seconds, with inputs of `arbitrary`.

#[cfg(test)]
pub(crate) mod arbitrary;
mod frames;
mod framing;
mod heads;
mod origin;
mod sessions;
mod tokens;

pub use frames::frames;
pub use framing::framing;
pub use heads::hop_heads;
pub use origin::proxy_header;
pub use sessions::sessions;
pub use tokens::tokens;
