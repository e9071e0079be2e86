//! What strangers on the mesh's UDP port can do to a peer: next to nothing.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use bed::{Bed, Gate, Plan, eventually};
use tokio_rustls::rustls;

/// First datagrams of so many handshakes, each with an identifier of its own.
async fn first_datagrams(count: usize) -> Vec<Vec<u8>> {
    let tap = UdpSocket::bind("127.0.0.1:0").unwrap();
    tap.set_read_timeout(Some(bed::PATIENCE)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"warmhop/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting: Vec<_> = (0..count)
        .map(|_| endpoint.connect_with(config.clone(), tap.local_addr().unwrap(), "x").unwrap())
        .collect();
    let datagrams = tokio::task::spawn_blocking(move || {
        let (mut ids, mut datagrams) = (HashSet::new(), Vec::new());
        let mut buffer = [0; 2048];
        while datagrams.len() < count {
            let (bytes, _) = tap.recv_from(&mut buffer).unwrap();
            let id = buffer[6..6 + usize::from(buffer[5])].to_vec();
            if ids.insert(id) {
                datagrams.push(buffer[..bytes].to_vec());
            }
        }
        datagrams
    });
    let datagrams = datagrams.await.unwrap();
    drop(connecting);
    datagrams
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_asked_to_show_themselves_and_crowd_out_no_peer() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &gate).await;
    let mesh: SocketAddr = one.mesh_addr();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    for datagram in first_datagrams(120).await {
        sent += stranger.send_to(&datagram, mesh).unwrap();
    }
    let retried = || {
        let metrics = one.metrics();
        let line = metrics.lines().find(|line| line.contains("handshakes_retried_total "));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    eventually("all are asked", || retried() >= 120).await;
    // A peer that comes just then shows itself, and is linked.
    bed.add("two", Plan::default(), &gate).await;
    stranger.set_nonblocking(true).unwrap();
    let (mut heard, mut buffer) = (0, [0; 2048]);
    while let Ok((bytes, _)) = stranger.recv_from(&mut buffer) {
        heard += bytes;
    }
    assert!(heard > 0 && heard < sent / 3, "{heard} bytes came of {sent}");
}
