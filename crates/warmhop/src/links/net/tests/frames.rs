//! Frames of sessions, and garbage in their place.

use super::*;
use crate::links::together::together;

#[tokio::test]
async fn garbage_closes_its_stream_alone_and_is_counted() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let conn = raw_link(&authority, "b", &peer).await;
    let mut control = say_hello(&conn, &hello_of("b")).await;
    peer.linked_with(&[id("b")]).await;

    let refused = async |bytes: &[u8]| {
        let mut stream = conn.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let stopped = timeout(WITHIN, stream.stopped()).await.unwrap().unwrap();
        assert_eq!(stopped, Some(STREAM_REFUSED));
    };
    refused(&[99]).await;
    assert_eq!(peer.refused("stream-kind"), 1);
    refused(&[KIND_SESSION, 0, 0, 0, 3, 255, 255, 255]).await;
    refused(&[KIND_SESSION, 255, 255, 255, 255]).await;
    assert_eq!(peer.refused("session"), 2);

    let mut gossip = conn.open_uni().await.unwrap();
    gossip.write_all(&[wire::KIND_GOSSIP, 1, 2, 3]).await.unwrap();
    gossip.finish().unwrap();
    conn.send_datagram(Bytes::from_static(&[wire::KIND_GOSSIP, 9])).unwrap();
    eventually("the gossip's refusal", || peer.refused("gossip") == 2).await;
    conn.send_datagram(Bytes::from_static(&[77])).unwrap();
    eventually("the datagram's refusal", || peer.refused("datagram-kind") == 1).await;

    let (mut hop, mut back) = conn.open_bi().await.unwrap();
    hop.write_all(&[5]).await.unwrap();
    assert!(back.read(&mut [0; 8]).await.is_err());

    // News about another peer is not first-hand.
    let foreign = wire::NewsBatch { news: vec![News::Peer(hello_of("c").peer)] };
    let mut bytes = BytesMut::new();
    wire::put_frame(&mut bytes, &foreign, wire::CONTROL_FRAME_BYTES_MAX).unwrap();
    control.write_chunk(bytes.freeze()).await.unwrap();
    eventually("foreign news", || peer.refused("foreign-news") == 1).await;

    // The link itself still works.
    let mut sessions = conn.open_uni().await.unwrap();
    let frame = session_frame(peer.net.incarnation(), b"state");
    let mut bytes = BytesMut::from(&[KIND_SESSION][..]);
    wire::put_frame(&mut bytes, &frame, wire::SESSION_FRAME_BYTES_MAX).unwrap();
    sessions.write_chunk(bytes.freeze()).await.unwrap();
    let wanted = Event::Session(hello_of("b").peer.incarnation, frame);
    peer.seen.until("the frame", |events| events.contains(&wanted).then_some(())).await;
    assert_eq!(peer.net.connected(), [id("b")]);
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn session_frames_arrive_in_order_large_ones_and_ones_own_included() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let (to, me) = (peers[1].net.incarnation(), peers[0].net.incarnation());
    let large = vec![0xA5; 1_200_000];
    let frames: Vec<SessionFrame> =
        [&b"first"[..], &large, b"last"].iter().map(|state| session_frame(to, state)).collect();
    for frame in &frames {
        peers[0].net.send_session(to, frame.clone());
    }
    peers[0].net.send_session(me, session_frame(me, b"mine"));
    let sessions = |events: &[Event]| -> Vec<(Incarnation, SessionFrame)> {
        let session = |event: &Event| match event {
            Event::Session(from, frame) => Some((*from, frame.clone())),
            _ => None,
        };
        events.iter().filter_map(session).collect()
    };
    let got = peers[1]
        .seen
        .until("three frames", |events| Some(sessions(events)).filter(|got| got.len() == 3))
        .await;
    assert!(got.iter().map(|(_, frame)| frame).eq(&frames));
    assert!(got.iter().all(|(from, _)| *from == me));
    let mine = peers[0]
        .seen
        .until("the own frame", |events| Some(sessions(events)).filter(|got| got.len() == 1))
        .await;
    assert_eq!(mine[0], (me, session_frame(me, b"mine")));
    close_all(peers).await;
}

#[tokio::test]
async fn a_frame_for_several_arrives_at_each_with_its_own_address() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c"]).await;
    let [me, b, c] = [0, 1, 2].map(|at: usize| peers[at].net.incarnation());
    let frame = session_frame(b, b"state");
    peers[0].net.send_session_to_all(&[c, me], frame.clone());
    peers[0].net.send_session_to_all(&[c], frame.clone());
    for (peer, to) in [(&peers[1], b), (&peers[2], c)] {
        let wanted = Event::Session(me, SessionFrame { to, ..frame.clone() });
        let arrived = |events: &[Event]| {
            let frames: Vec<_> =
                events.iter().filter(|it| matches!(it, Event::Session(..))).collect();
            (frames.len() == 2).then(|| frames.iter().all(|it| **it == wanted))
        };
        assert!(peer.seen.until("both frames", |events| arrived(events)).await);
    }
    close_all(peers).await;
}

#[tokio::test]
async fn what_is_sent_in_one_round_leaves_at_its_end_and_arrives_in_order() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b", "c"]).await;
    let [me, b, c] = [0, 1, 2].map(|at: usize| peers[at].net.incarnation());
    let net = &peers[0].net;
    // More than one piece of them.
    let frames: Vec<_> = (0..100).map(|at| session_frame(b, &[at; 3000])).collect();
    let sent = || net.counters().session_frames_sent.get();
    let before = sent();
    together(async {
        net.send_session_to_all(&[c], frames[0].clone());
        together(async { net.send_session(b, frames[1].clone()) }).await;
        net.send_session(c, SessionFrame { to: c, ..frames[1].clone() });
        assert_eq!(sent(), before, "the round is not over");
        tokio::task::yield_now().await;
        assert_eq!(sent(), before + 4, "a round is over when its task waits");
        for frame in &frames[2..] {
            net.send_session_to_all(&[c], frame.clone());
        }
        net.send_session(me, session_frame(me, b"mine"));
        let nobody = Incarnation([1; 16]);
        net.send_session(nobody, session_frame(nobody, b""));
        net.send_session(b, session_frame(b, &vec![0; wire::SESSION_FRAME_BYTES_MAX]));
    })
    .await;
    // That to this peer itself is one.
    assert_eq!(sent(), before + 201);
    for reason in ["no-link", "too-large"] {
        let family = &net.counters().dropped;
        assert_eq!(family.get_or_create(&Drop { what: "session", reason }).get(), 1, "{reason}");
    }
    for (peer, to) in [(&peers[1], b), (&peers[2], c)] {
        let arrived = |events: &[Event]| {
            let frame = |event: &Event| match event {
                Event::Session(from, frame) => Some((*from, frame.clone())),
                _ => None,
            };
            let arrived: Vec<_> = events.iter().filter_map(frame).collect();
            (arrived.len() == frames.len()).then_some(arrived)
        };
        let got = peer.seen.until("all frames", arrived).await;
        let wanted = frames.iter().map(|frame| (me, SessionFrame { to, ..frame.clone() }));
        assert!(got.into_iter().eq(wanted));
    }
    close_all(peers).await;
}

#[tokio::test]
async fn session_frames_that_cannot_leave_are_counted() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let counted = |reason| {
        let family = &peers[0].net.counters().dropped;
        family.get_or_create(&Drop { what: "session", reason }).get()
    };
    let nobody = Incarnation([1; 16]);
    peers[0].net.send_session(nobody, session_frame(nobody, b""));
    assert_eq!(counted("no-link"), 1);
    let to = peers[1].net.incarnation();
    peers[0].net.send_session(to, session_frame(to, &vec![0; wire::SESSION_FRAME_BYTES_MAX]));
    assert_eq!(counted("too-large"), 1);
    // This task does not yield, so on its one-threaded runtime nothing leaves the queue.
    let frame = session_frame(to, &vec![0; 1_000_000]);
    for _ in 0..40 {
        peers[0].net.send_session(to, frame.clone());
    }
    assert!(counted("full") >= 20, "{}", counted("full"));
    close_all(peers).await;
}
