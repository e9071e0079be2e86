//! How services with their own server or framework use the mesh: through public items alone.

#[cfg(feature = "axum")]
pub mod extract;
pub(crate) mod hop_layer;
#[cfg(feature = "tower-sessions")]
pub mod session_store;
