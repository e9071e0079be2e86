//! One request, from the decision about where it goes to the committed response.

pub(crate) mod again;
pub(crate) mod apps;
pub(crate) mod arrivals;
pub(crate) mod at_once;
pub(crate) mod call;
pub(crate) mod carried;
pub(crate) mod error_page;
pub(crate) mod failed_at;
mod forward;
pub(crate) mod grpc;
pub(crate) mod heir;
mod in_line;
pub(crate) mod known_ids;
pub(crate) mod lent;
pub(crate) mod local_error;
pub(crate) mod matches;
pub(crate) mod node;
pub(crate) mod once;
pub(crate) mod own_ids;
pub(crate) mod portable;
pub(crate) mod problem;
mod received;
pub(crate) mod registers;
pub(crate) mod serve;
mod too_old;
pub(crate) mod under_way;
mod whose;
