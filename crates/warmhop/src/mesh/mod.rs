//! A peer as a whole: built, started, drained and shut down.

pub(crate) mod background;
pub(crate) mod builder;
pub(crate) mod change;
mod doors;
pub(crate) mod leaving;
mod refusing;
pub(crate) mod running;
pub(crate) mod shutdown;
mod start;
#[cfg(test)]
mod tests;
