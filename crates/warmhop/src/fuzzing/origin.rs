//! Whether a proxy's report about its client is read without harm.

use std::sync::OnceLock;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};

use crate::front::origin::proxied;
use crate::http::client::ClientInfo;

/// Reads `input` as the beginning of a connection; returns whether it began with a PROXY header.
///
/// # Panics
/// If it waits for more than there is.
pub fn proxy_header(mut input: &[u8]) -> bool {
    // Its timeout needs a runtime, but nothing is waited for.
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| Builder::new_current_thread().enable_time().build().ok());
    let Some(runtime) = made else { return false };
    let _entered = runtime.enter();
    let read = proxied(&mut input, ClientInfo::default()).now_or_never();
    read.expect("all there is can be read at once").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};

    #[test]
    fn whatever_stands_for_a_proxy_header_is_read_or_refused() {
        const WORDS: &[&[u8]] = &[
            b"PROXY TCP4 192.0.2.7 192.0.2.1 9 80\r\n",
            b"PROXY TCP6 2001:db8::7 2001:db8::1 9 80\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\0\x09\0\x50",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            b"\x20\0\x05\x01\0\0\0\0",
            b"PROXY ",
            b"TCP4 ",
            b"\r\n",
            b"GET / HTTP/1.1\r\n",
        ];
        let make = |numbers: &mut Numbers| strung(numbers, WORDS, 3);
        let read = feed("proxy_header", 3_000, make, |input| usize::from(proxy_header(input)));
        assert!(read > 200, "only {read} were read");
    }
}
