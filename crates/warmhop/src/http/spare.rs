//! Maps of fields that are no longer used. Each message has one, whose memory the next message of the
//! same thread takes over.

use std::cell::RefCell;

use http::HeaderMap;

/// How many each thread keeps.
const KEPT_MAX: usize = 64;
/// One with room for more fields is not kept.
const FIELDS_MAX: usize = 128;

thread_local! {
    static KEPT: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map.
pub(crate) fn take() -> HeaderMap {
    KEPT.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps the memory of a map. Its fields are dropped at once: they may be parts of a larger buffer.
pub(crate) fn keep(mut fields: HeaderMap) {
    if fields.capacity() > FIELDS_MAX {
        return;
    }
    fields.clear();
    KEPT.with_borrow_mut(|kept| {
        if kept.len() < KEPT_MAX {
            kept.push(fields);
        }
    });
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::HOST;

    use super::*;

    #[test]
    fn a_map_comes_back_without_its_fields_and_few_are_kept() {
        for _ in 0..2 * KEPT_MAX {
            let mut fields = HeaderMap::with_capacity(8);
            fields.insert(HOST, HeaderValue::from_static("a"));
            keep(fields);
        }
        keep(HeaderMap::with_capacity(4 * FIELDS_MAX));
        let kept = std::iter::repeat_with(take).take_while(|fields| fields.capacity() > 0);
        let kept: Vec<_> = kept.take(4 * KEPT_MAX).collect();
        assert_eq!(kept.len(), KEPT_MAX);
        assert!(kept.iter().all(|fields| fields.is_empty() && fields.capacity() <= FIELDS_MAX));
    }
}
