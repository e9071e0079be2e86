//! The cart, carried as the session's state in the field `Warmhop-Session`.
//!
//! The field is an RFC 9651 byte sequence, `:<base64>:`. A request without it begins a new
//! session; a response with it sets the state; a response without it leaves the state alone.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The field that carries the state, both ways.
pub(crate) const FIELD: HeaderName = HeaderName::from_static("warmhop-session");
/// The mesh carries 4 KiB a session, so the cart shows its latest items only.
const ITEMS_MAX: usize = 200;
const ITEMS_BYTES_MAX: usize = 3_000;
const ITEM_CHARS_MAX: usize = 64;

/// What one client has put aside.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cart {
    /// How many items were ever added.
    pub(crate) count: u64,
    /// The latest of them, oldest first.
    pub(crate) items: Vec<String>,
}

impl Cart {
    /// Adds one item.
    pub(crate) fn add(&mut self, item: &str) {
        self.count += 1;
        self.items.push(item.chars().take(ITEM_CHARS_MAX).collect());
        // As JSON, each has quotes and a comma besides.
        let bytes = |items: &[String]| items.iter().map(|item| item.len() + 3).sum::<usize>();
        while self.items.len() > ITEMS_MAX || bytes(&self.items) > ITEMS_BYTES_MAX {
            self.items.remove(0);
        }
    }

    /// The field's value that stores this cart.
    pub(crate) fn to_field(&self) -> HeaderValue {
        let json = serde_json::to_vec(self).unwrap_or_default();
        HeaderValue::from_str(&format!(":{}:", STANDARD.encode(json)))
            .unwrap_or_else(|_| Self::cleared())
    }

    /// The field's value that stores this cart under a new id of the session.
    pub(crate) fn to_field_renewed(&self) -> HeaderValue {
        let mut field = self.to_field().as_bytes().to_vec();
        field.extend_from_slice(b";renew");
        HeaderValue::from_bytes(&field).unwrap_or_else(|_| Self::cleared())
    }

    /// The field's value that ends the session.
    pub(crate) fn cleared() -> HeaderValue {
        HeaderValue::from_static("::")
    }

    fn from_field(value: &HeaderValue) -> Option<Self> {
        let base64 = value.to_str().ok()?.trim().strip_prefix(':')?.strip_suffix(':')?;
        serde_json::from_slice(&STANDARD.decode(base64).ok()?).ok()
    }
}

impl<S: Sync> FromRequestParts<S> for Cart {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.headers.get(FIELD).and_then(Self::from_field).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_comes_back_from_its_field() {
        let mut cart = Cart::default();
        cart.add("The Silent Harbour");
        cart.add("naïve ☕");
        assert_eq!(Cart::from_field(&cart.to_field()), Some(cart));
    }

    #[test]
    fn a_long_cart_counts_on_and_keeps_the_latest() {
        let mut cart = Cart::default();
        (0..500).for_each(|n| cart.add(&n.to_string()));
        assert_eq!((cart.count, cart.items.len()), (500, ITEMS_MAX));
        assert_eq!(cart.items.last().map(String::as_str), Some("499"));
        (0..500).for_each(|_| cart.add(&"x".repeat(500)));
        assert_eq!(cart.count, 1000);
        assert!(serde_json::to_vec(&cart).unwrap().len() < 4096);
    }

    #[test]
    fn garbage_is_an_empty_cart() {
        for garbage in ["", ":", "::", ":!!:", ":Zm9v:", "Zm9v"] {
            assert_eq!(Cart::from_field(&HeaderValue::from_static(garbage)), None, "{garbage:?}");
        }
    }
}
