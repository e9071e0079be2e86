//! A peer as a whole: built, started, drained and shut down.

pub(crate) mod builder;
pub(crate) mod change;
pub(crate) mod leaving;
mod refusing;
pub(crate) mod shutdown;
