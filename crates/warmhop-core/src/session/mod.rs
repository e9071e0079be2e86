//! One session as a replicated register.

pub mod message;
