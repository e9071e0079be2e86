//! Requests as bytes, and replies.

use super::*;

#[test]
fn no_bytes_whatever_make_the_reader_stumble() {
    let dice = RandomState::new();
    let valid = request(&[b"SET", b"key", b"value", b"EX", b"10"]);
    for round in 0..20_000u64 {
        let mut bytes = BytesMut::from(&valid[..]);
        for change in 0..=round % 3 {
            let random = dice.hash_one((round, change));
            let at = random as usize % bytes.len();
            bytes[at] = (random >> 32) as u8;
        }
        bytes.truncate(dice.hash_one(round) as usize % (valid.len() + 1));
        while let Ok(Some(arguments)) = take_request(&mut bytes) {
            let _ = crate::redis::cmd::find(&arguments[0]).map(|spec| spec.keys_of(&arguments));
        }
    }
}

#[test]
fn a_request_is_refused_before_its_bytes_arrive() {
    let announced = format!("*2\r\n$3\r\nGET\r\n${REQUEST_BYTES_MAX}\r\n");
    let mut bytes = BytesMut::from(announced.as_bytes());
    assert!(matches!(take_request(&mut bytes), Err(ProtocolError::Oversized(_))));
    for wrong in ["*+1\r\n$4\r\nPING\r\n", "*01\r\n$4\r\nPING\r\n", "*-0\r\n"] {
        assert_eq!(take_request(&mut BytesMut::from(wrong)), Err(ProtocolError::Arguments));
    }
    for wrong in ["*1\r\n$+4\r\nPING\r\n", "*1\r\n$04\r\nPING\r\n", "*1\r\n$536870913\r\n"] {
        assert_eq!(take_request(&mut BytesMut::from(wrong)), Err(ProtocolError::Length));
    }
    let mut bytes = BytesMut::from("*1\r\n$4\r\nPINGxxPING\r\n");
    assert_eq!(take_request(&mut bytes), Err(ProtocolError::Argument));
    let mut bytes = BytesMut::from(&b"*0\r\n*-1\r\n*-5\r\n\r\nget  a\r\n"[..]);
    let words = vec![Bytes::from_static(b"get"), Bytes::from_static(b"a")];
    assert_eq!(take_request(&mut bytes), Ok(Some(words)));
}

#[test]
fn a_reply_that_holds_line_breaks_stays_one_reply() {
    let mut bytes = BytesMut::new();
    Reply::error("ERR", "one\r\n+OK").put(2, &mut bytes);
    assert_eq!(&bytes[..], b"-ERR one  +OK\r\n");
}
