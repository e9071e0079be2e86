//! Hops: their bodies and bounds, and the links that stay for them.

use super::*;
use crate::hop::OnSilence;

#[tokio::test]
async fn a_hop_streams_both_ways_and_ends_with_trailers() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let hop = peers[0].net.open_hop(&id("b")).await.unwrap();
    assert_eq!(hop.incarnation, peers[1].net.incarnation());

    let mut prefix = BytesMut::from(&[KIND_HOP][..]);
    prefix.put_u32(4);
    prefix.put_slice(b"head");
    let mut writer = HopBodyWriter::new(hop.send, prefix);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let trailers: Trailers = vec![("x-sum".into(), b"1".to_vec())];
    let sent = body.clone();
    let last = trailers.clone();
    let sending = tokio::spawn(async move {
        let sent = Bytes::from(sent);
        // Small and large pieces, which travel differently.
        for piece in [sent.slice(..10), sent.slice(10..5000), sent.slice(5000..2_999_990)] {
            writer.write_data(piece).await.unwrap();
        }
        writer.write_end(sent.slice(2_999_990..), Some(&last)).await.unwrap();
    });

    let mut reader = FrameReader::new(hop.recv);
    assert_eq!(reader.frame(1024).await.unwrap().unwrap(), "head");
    let mut answer = reader.into_body();
    let mut got = Vec::new();
    let end = loop {
        match answer.next().await.unwrap() {
            HopPart::Data(data) => got.extend_from_slice(&data),
            HopPart::End(trailers) => break trailers,
        }
    };
    assert!(got == body);
    assert_eq!(end, Some(trailers));
    assert!(answer.is_done());
    assert!(matches!(answer.next().await, Err(HopBodyError::CutOff)));
    sending.await.unwrap();
    drop((answer, hop.lease));
    // Both ends read to the end of their streams, so neither asked the other to stop.
    for peer in &peers {
        let table = peer.net.parts.links.table();
        for link in table.by_peer.values() {
            let stats = link.conn.stats();
            assert_eq!((stats.frame_tx.stop_sending, stats.frame_rx.stop_sending), (0, 0));
        }
    }
    close_all(peers).await;
}

/// Begins a hop with this head.
async fn begin(from: &Peer, to: &str, head: &[u8]) -> (HopBodyWriter, FrameReader, HopLease) {
    let opened = timeout(WITHIN, from.net.open_hop(&id(to))).await.expect("it opens");
    let OpenHop { send, recv, lease, .. } = opened.unwrap();
    let mut prefix = BytesMut::from(&[KIND_HOP][..]);
    prefix.put_u32(u32::try_from(head.len()).unwrap());
    prefix.put_slice(head);
    let mut writer = HopBodyWriter::new(send, prefix);
    writer.flush().await.unwrap();
    (writer, FrameReader::new(recv), lease)
}

/// Sends a hop through and waits for its echo.
async fn echoes(from: &Peer, to: &str) {
    let (mut writer, mut reader, _lease) = begin(from, to, b"echo").await;
    let body = Bytes::from(vec![1; 3 * STREAM_WINDOW_BYTES as usize]);
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        writer.write_data(sent).await.unwrap();
        writer.write_end(Bytes::new(), None).await.unwrap();
    });
    let echo = async {
        assert_eq!(reader.frame(1024).await.unwrap().unwrap(), "echo");
        let (mut echo, mut back) = (reader.into_body(), BytesMut::new());
        while let HopPart::Data(data) = echo.next().await.unwrap() {
            back.extend_from_slice(&data);
        }
        back.freeze()
    };
    assert!(timeout(WITHIN, echo).await.expect("the echo comes") == body);
    sending.await.unwrap();
}

#[tokio::test]
async fn hops_that_nobody_reads_stop_no_other_hop_and_no_frame_of_a_session() {
    const STALLED: u64 = 48;
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(begin(&peers[0], "b", POUR).await);
    }
    // Each has filled its own window, or all of them have filled what they share.
    let link = peers[1].net.parts.links.to(&id("a")).unwrap();
    eventually("every one of them stalls", || {
        let sent = link.conn.stats().frame_tx;
        sent.stream_data_blocked >= STALLED || sent.data_blocked > 0
    })
    .await;

    let frame = session_frame(peers[0].net.incarnation(), &vec![5; 1024 * 1024]);
    peers[1].net.send_session(peers[0].net.incarnation(), frame.clone());
    let wanted = Event::Session(peers[1].net.incarnation(), frame);
    peers[0].seen.until("the frame", |events| events.contains(&wanted).then_some(())).await;
    echoes(&peers[0], "b").await;
    echoes(&peers[1], "a").await;
    drop(stalled);
    close_all(peers).await;
}

#[tokio::test]
async fn a_link_makes_room_for_more_hops_at_once_than_it_began_with() {
    const AT_ONCE: usize = 1100;
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        open.push(begin(&peers[0], "b", b"echo").await);
    }
    let link = peers[1].net.parts.links.to(&id("a")).unwrap();
    eventually("all of them have come", || link.hops() == AT_ONCE).await;
    echoes(&peers[0], "b").await;
    drop(open);
    eventually("all of them have ended", || link.hops() == 0).await;
    close_all(peers).await;
}

#[tokio::test]
async fn a_hop_more_than_may_be_is_refused_at_once_and_fits_when_one_has_ended() {
    let authority = Authority::generate("demo").unwrap();
    let b = Peer::start(config(&authority, "b", &[])).await;
    let mut few = config(&authority, "a", &[b.addr()]);
    few.tuning.hops_max = 2;
    let a = Peer::start(few).await;
    a.links_to(&[&b]).await;
    let mut open = vec![begin(&a, "b", b"echo").await, begin(&a, "b", b"echo").await];
    for _ in 0..3 {
        let refused = a.net.open_hop(&id("b")).now_or_never().expect("without waiting").err();
        assert_eq!(refused, Some(OpenError::Busy(id("b"))));
    }
    // What the other end opens is its own to count.
    echoes(&b, "a").await;
    drop(open.pop());
    echoes(&a, "b").await;
    drop(open);
    close_all(vec![a, b]).await;
}

#[tokio::test]
async fn a_malformed_body_is_refused_and_a_well_formed_one_is_answered() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let conn = raw_link(&authority, "b", &peer).await;
    let _control = say_hello(&conn, &hello_of("b")).await;
    peer.linked_with(&[id("b")]).await;

    // The handler sends back what it reads, and resets its stream where that is malformed.
    let answer = async |body: &[u8]| {
        let (mut send, mut recv) = conn.open_bi().await.unwrap();
        send.write_all(&[&[KIND_HOP, 0, 0, 0, 0], body].concat()).await.unwrap();
        send.finish().unwrap();
        timeout(WITHIN, recv.read_to_end(1024)).await.unwrap()
    };
    let end = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
    let whole = [&[0, 0, 0, 2, b'h', b'i'][..], &end].concat();
    assert_eq!(answer(&whole).await.unwrap(), [&[0; 4][..], &whole].concat());
    let malformed: [(&str, &[u8]); 8] = [
        ("nothing at all", &[]),
        ("a piece without bytes", &[0, 0, 0, 0]),
        ("a tag that is reserved", &[0xFF, 0xFF, 0xFF, 0xFE]),
        ("a piece that is cut off", &[0, 0, 0, 2, b'h']),
        ("an end that is cut off", &end[..7]),
        ("bytes behind the end", &[&end[..], &[0]].concat()),
        ("trailers beyond their bound", &[0xFF, 0xFF, 0xFF, 0xFF, 0, 1, 0, 1]),
        ("malformed trailers", &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 9]),
    ];
    for (what, body) in malformed {
        assert!(answer(body).await.is_err(), "{what}");
    }
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_never_passes_for_whole() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let hop = peers[0].net.open_hop(&id("b")).await.unwrap();
    let mut send = hop.send;
    // A piece, and no end: quinn finishes a stream that is dropped.
    send.write_all(&[KIND_HOP, 0, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).await.unwrap();
    drop(send);
    let mut reader = FrameReader::new(hop.recv);
    let head = reader.frame(1024).await;
    let cut_off = match head {
        Ok(Some(_)) => {
            let mut body = reader.into_body();
            loop {
                match body.next().await {
                    Ok(HopPart::Data(_)) => {}
                    Ok(HopPart::End(_)) => break false,
                    Err(_) => break true,
                }
            }
        }
        _ => true,
    };
    assert!(cut_off);
    close_all(peers).await;
}

#[tokio::test]
async fn a_hop_to_an_unknown_peer_fails_at_once() {
    let authority = Authority::generate("demo").unwrap();
    let peer = Peer::start(config(&authority, "a", &[])).await;
    let error = peer.net.open_hop(&id("nobody")).await.err();
    assert_eq!(error, Some(OpenError::Unknown(id("nobody"))));
    close_all(vec![peer]).await;
}

#[tokio::test]
async fn a_link_that_is_replaced_stays_for_as_long_as_a_tunnel_goes_over_it() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let link = peers[0].net.parts.links.to(&id("b")).unwrap();
    let head = HopHead {
        kind: HopKind::Plain,
        app: app("shop"),
        request_id: "one".into(),
        method: "GET".into(),
        target: "/ws".into(),
        fields: Default::default(),
        upgrade: Some(b"websocket".to_vec()),
        asks_go: false,
        counts_on: None,
    };
    let request = HopRequest {
        head,
        body: crate::Body::empty(),
        interim: None,
        on_silence: OnSilence::GoElsewhere,
    };
    let to = id("b");
    let asked = hop::ask(&peers[0].net, &to, request, false);
    let Ok(reply) = timeout(WITHIN, asked).await.unwrap() else { panic!("no answer") };
    let mut tunnel = reply.tunnel.expect("it was switched");
    carry::start_draining(&peers[0].shared(), &link);
    assert_eq!(link.hops(), 1);
    tunnel.writer.write_data(Bytes::from_static(b"hello")).await.unwrap();
    match timeout(WITHIN, tunnel.reader.next()).await.unwrap() {
        Ok(HopPart::Data(data)) => assert_eq!(&data[..], b"hello"),
        other => panic!("{other:?}"),
    }
    drop(tunnel);
    timeout(WITHIN, link.conn.closed()).await.expect("then it ends");
    close_all(peers).await;
}

#[tokio::test]
async fn a_peer_that_leaves_answers_what_it_took_and_says_what_it_did_not_take() {
    let authority = Authority::generate("demo").unwrap();
    let peers = mesh(&authority, &["a", "b"]).await;
    let (a, b) = (peers[0].net.clone(), peers[1].net.clone());
    let link = a.parts.links.to(&id("b")).unwrap();
    let request = |upgrade: Option<Vec<u8>>, body| {
        let head = HopHead {
            kind: HopKind::Plain,
            app: app("shop"),
            request_id: "r".into(),
            method: "POST".into(),
            target: "/".into(),
            fields: Default::default(),
            upgrade,
            asks_go: false,
            counts_on: None,
        };
        HopRequest { head, body, interim: None, on_silence: OnSilence::GoElsewhere }
    };
    let switches = request(Some(b"websocket".to_vec()), crate::Body::empty());
    let taken = timeout(WITHIN, hop::ask(&a, &id("b"), switches, false)).await.unwrap();
    let Ok(reply) = taken else { panic!("no answer") };
    let mut tunnel = reply.tunnel.expect("it was switched");

    let leaves = tokio::spawn({
        let b = b.clone();
        async move { b.close().await }
    });
    eventually("it leaves", || b.parts.leaving.is_cancelled()).await;
    let late = request(None, crate::Body::from(Bytes::from_static(b"late")));
    let late = tokio::spawn(async move { hop::ask(&a, &id("b"), late, false).await });
    eventually("another hop is opened", || link.hops() == 2).await;

    tunnel.writer.write_data(Bytes::from_static(b"hello")).await.unwrap();
    match timeout(WITHIN, tunnel.reader.next()).await.unwrap() {
        Ok(HopPart::Data(data)) => assert_eq!(&data[..], b"hello"),
        other => panic!("{other:?}"),
    }
    drop(tunnel);
    match timeout(WITHIN, late).await.unwrap().unwrap() {
        Err(hop::HopError::Unreachable(_, mut body)) => {
            assert_eq!(body.take_whole(100).as_deref(), Some(&b"late"[..]));
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was not taken"),
    }
    timeout(WITHIN, leaves).await.unwrap().unwrap();
    close_all(peers).await;
}
