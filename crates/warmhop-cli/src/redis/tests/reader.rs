//! Requests as bytes, and replies.

use super::*;
use crate::redis::frame::LINES_READ;

#[test]
fn what_has_arrived_of_a_request_is_not_looked_at_again_whenever_more_arrives() {
    let words = vec![&b"x"[..]; 4096];
    let whole = request(&words);
    LINES_READ.set(0);
    let mut incoming = Incoming::default();
    for (at, byte) in whole.iter().enumerate() {
        assert_eq!(incoming.take_request(), Ok(None), "{at}");
        assert!(!incoming.is_complete(), "{at}");
        incoming.bytes.extend_from_slice(&[*byte]);
    }
    assert!(incoming.is_complete());
    assert_eq!(incoming.take_request().unwrap().unwrap().len(), words.len());
    // Each byte had the last line be looked for twice, and each line was found once.
    let read = LINES_READ.get();
    assert!(read <= 2 * whole.len() + words.len() + 1, "{read} lines for {} bytes", whole.len());
}

#[test]
fn no_bytes_whatever_make_the_reader_stumble() {
    let dice = RandomState::new();
    let valid = request(&[b"SET", b"key", b"value", b"EX", b"10"]);
    for round in 0..20_000u64 {
        let mut bytes = valid.clone();
        for change in 0..=round % 3 {
            let random = dice.hash_one((round, change));
            let at = random as usize % bytes.len();
            bytes[at] = (random >> 32) as u8;
        }
        bytes.truncate(dice.hash_one(round) as usize % (valid.len() + 1));
        let mut incoming = Incoming::from(&bytes[..]);
        while let Ok(Some(arguments)) = incoming.take_request() {
            let _ = crate::redis::cmd::find(&arguments[0]).map(|spec| spec.keys_of(&arguments));
        }
    }
}

#[test]
fn a_request_is_refused_before_its_bytes_arrive() {
    let announced = format!("*2\r\n$3\r\nGET\r\n${REQUEST_BYTES_MAX}\r\n");
    let mut incoming = Incoming::from(announced.as_bytes());
    assert!(matches!(incoming.take_request(), Err(ProtocolError::Oversized(_))));
    for wrong in ["*+1\r\n$4\r\nPING\r\n", "*01\r\n$4\r\nPING\r\n", "*-0\r\n"] {
        assert_eq!(Incoming::from(wrong.as_bytes()).take_request(), Err(ProtocolError::Arguments));
    }
    for wrong in ["*1\r\n$+4\r\nPING\r\n", "*1\r\n$04\r\nPING\r\n", "*1\r\n$536870913\r\n"] {
        assert_eq!(Incoming::from(wrong.as_bytes()).take_request(), Err(ProtocolError::Length));
    }
    let mut incoming = Incoming::from(&b"*1\r\n$4\r\nPINGxxPING\r\n"[..]);
    assert_eq!(incoming.take_request(), Err(ProtocolError::Argument));
    let mut incoming = Incoming::from(&b"*0\r\n*-1\r\n*-5\r\n\r\nget  a\r\n"[..]);
    let words = vec![Bytes::from_static(b"get"), Bytes::from_static(b"a")];
    assert_eq!(incoming.take_request(), Ok(Some(words)));
}

#[test]
fn a_reply_that_holds_line_breaks_stays_one_reply() {
    let mut bytes = BytesMut::new();
    Reply::error("ERR", "one\r\n+OK").put(2, &mut bytes);
    assert_eq!(&bytes[..], b"-ERR one  +OK\r\n");
}
