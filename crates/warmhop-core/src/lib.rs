//! The decisions of the warmhop mesh.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod affinity;
pub mod app;
pub mod config;
pub mod ids;
pub mod rank;
pub mod route;
pub mod session;
pub mod view;
