//! The parts that the gossip loop and the links below it share: the way in to the loop, and the
//! screen that every gossip message passes first.

pub(crate) mod handle;
pub(crate) mod screen;
