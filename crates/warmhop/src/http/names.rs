//! The names of fields that were read lately. Most messages have the same few, and to check and look
//! up the letters of a name again costs several times what it costs to compare them.

use std::cell::RefCell;

use http::HeaderName;

/// How many names each thread keeps.
const KEPT_MAX: usize = 128;
/// A longer name is not kept.
const NAME_BYTES_MAX: usize = 32;

/// A name as it was sent, and what it is.
struct Known {
    sent: [u8; NAME_BYTES_MAX],
    length: usize,
    name: HeaderName,
}

thread_local! {
    static KEPT: RefCell<[Option<Known>; KEPT_MAX]> = const { RefCell::new([const { None }; KEPT_MAX]) };
}

/// The place of a name. Names that share one only replace each other.
fn place_of(sent: &[u8]) -> usize {
    let at = |at: usize| usize::from(sent.get(at).copied().unwrap_or_default());
    let length = sent.len();
    (at(0) + 3 * at(length / 2) + 5 * at(length.saturating_sub(1)) + 7 * length) % KEPT_MAX
}

/// The name with these letters, upper or lower case; `None` if it is malformed.
pub(crate) fn name_of(sent: &[u8]) -> Option<HeaderName> {
    if sent.len() > NAME_BYTES_MAX {
        return HeaderName::from_bytes(sent).ok();
    }
    KEPT.with_borrow_mut(|kept| {
        let place = &mut kept[place_of(sent)];
        if let Some(known) = place
            && known.sent[..known.length] == *sent
        {
            return Some(known.name.clone());
        }
        let name = HeaderName::from_bytes(sent).ok()?;
        let mut copied = [0; NAME_BYTES_MAX];
        copied[..sent.len()].copy_from_slice(sent);
        *place = Some(Known { sent: copied, length: sent.len(), name: name.clone() });
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_however_often_and_beside_which_others_it_is_read() {
        let names = (0..4 * KEPT_MAX).map(|at| format!("X-Name-{at}"));
        let more = ["Host", "host", "HOST", "a", "", "a b", "b\u{e9}", "x\0", "Content-Length"];
        let long = ["x".repeat(NAME_BYTES_MAX), "x".repeat(NAME_BYTES_MAX + 1), "é".repeat(16)];
        let all: Vec<String> = names.chain(more.map(String::from)).chain(long).collect();
        for sent in all.iter().chain(all.iter().rev()).chain(&all) {
            for _ in 0..2 {
                let known = HeaderName::from_bytes(sent.as_bytes()).ok();
                assert_eq!(name_of(sent.as_bytes()), known, "{sent:?}");
            }
        }
    }
}
