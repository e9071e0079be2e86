//! Chaos: load and faults on a mesh of real processes, and a judge that saw neither.

pub mod history;
