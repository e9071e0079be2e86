//! How services that have their own server or framework use the mesh: over what is public alone.

#[cfg(feature = "axum")]
pub mod extract;
pub(crate) mod hop_layer;
#[cfg(feature = "tower-sessions")]
pub mod session_store;
