//! What is fuzzed, as functions of any bytes that panic where an invariant does not hold. The targets
//! in `fuzz/` feed them for as long as one likes; the tests here, for seconds, with what
//! [`arbitrary`] makes.

#[cfg(test)]
pub(crate) mod arbitrary;
mod framing;

pub use framing::framing;
