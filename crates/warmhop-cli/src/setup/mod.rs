//! The commands that make several peers at once, for a start: `warmhop dev` runs them on this
//! machine, and `warmhop init` writes their configurations and identities. Also the manual pages.

pub mod dev;
pub mod init;
pub mod manual;
