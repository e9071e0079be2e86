//! An upgraded connection over a hop: both directions, until both have ended.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hop::body::BODY_FAILED;
use crate::http::tunnels::Farewell;
use crate::links::hop_body::{HopBodyReader, HopBodyWriter, HopPart};
use crate::links::link::HopLease;

/// Both directions of an upgraded connection over a hop. Its link stays open for as long as the
/// lease is held.
pub(crate) struct Tunnel {
    pub(crate) writer: HopBodyWriter,
    pub(crate) reader: HopBodyReader,
    pub(crate) lease: HopLease,
    /// Counts it among the requests that the peer serves for this one.
    pub(crate) served_there: Option<Box<dyn Send + Sync>>,
}

/// How long an upgraded connection's client may still send once the app has closed its side.
const CLOSED_APP_GRACE: Duration = Duration::from_secs(2);

/// Which end of a tunnel the app is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppIs {
    /// Behind the connection: this is the serving peer.
    Near,
    /// Behind the hop: this is the entry peer.
    Far,
}

/// Runs both directions of an upgraded connection until both have ended. A client may close its
/// side and keep receiving. An app that has closed its side receives nothing more, so the client's
/// side ends soon after.
async fn both_ways(from_client: impl Future<Output = ()>, from_app: impl Future<Output = ()>) {
    tokio::pin!(from_client, from_app);
    tokio::select! {
        () = &mut from_client => from_app.await,
        () = &mut from_app => {
            // A client that just stays runs into the timeout, which is a normal end.
            let _ = tokio::time::timeout(CLOSED_APP_GRACE, from_client).await;
        }
    }
}

/// Copies bytes between a client's upgraded connection and an app's on the same peer.
pub(crate) async fn join<C, A>(client: C, app: A, mut farewell: Farewell)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let cut = farewell.cut();
    let (mut client_in, mut client_out) = tokio::io::split(client);
    let (mut app_in, mut app_out) = tokio::io::split(app);
    let from_client = async {
        // However it ends, closing it ends the other side too.
        let _ = tokio::io::copy(&mut client_in, &mut app_out).await;
        let _ = app_out.shutdown().await;
    };
    let from_app = async {
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        loop {
            buffer.reserve(16 * 1024);
            let last = tokio::select! {
                biased;
                last = farewell.due() => Some(last),
                read = app_in.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => Some(farewell.lost()),
                    Ok(_) => None,
                },
            };
            let piece = last.map_or_else(|| buffer.split().freeze(), Bytes::from_static);
            farewell.passed(&piece);
            let sent = client_out.write_all(&piece).await;
            if sent.is_err() || client_out.flush().await.is_err() || last.is_some() {
                break;
            }
        }
        let _ = client_out.shutdown().await;
    };
    tokio::select! {
        () = both_ways(from_client, from_app) => {}
        () = cut => {}
    }
}

/// Copies bytes between an upgraded connection and a hop until both directions have ended.
pub(crate) async fn tunnel<IO>(
    io: IO,
    writer: HopBodyWriter,
    reader: HopBodyReader,
    app: AppIs,
    farewell: Farewell,
) where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let cut = farewell.cut();
    let (from, to) = tokio::io::split(io);
    // Only the bytes for the client end with the peer's own close.
    let never = Farewell::default();
    let (to_hop, to_io) = match app {
        AppIs::Near => (farewell, never),
        AppIs::Far => (never, farewell),
    };
    let up = into_hop(from, writer, to_hop);
    let down = out_of_hop(reader, to, to_io);
    let both = async {
        match app {
            AppIs::Near => both_ways(down, up).await,
            AppIs::Far => both_ways(up, down).await,
        }
    };
    tokio::select! {
        () = both => {}
        () = cut => {}
    }
}

/// Copies the connection's bytes into the hop, and the `farewell` if the hop leads to the client.
async fn into_hop<R>(mut from: R, mut writer: HopBodyWriter, mut farewell: Farewell)
where
    R: tokio::io::AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        buffer.reserve(16 * 1024);
        let read = tokio::select! {
            biased;
            last = farewell.due() => {
                let _ = writer.write_data(Bytes::from_static(last)).await;
                break;
            }
            read = from.read_buf(&mut buffer) => read,
        };
        match read {
            Ok(0) => {
                let _ = writer.write_data(Bytes::from_static(farewell.lost())).await;
                break;
            }
            Ok(_) => {
                let piece = buffer.split().freeze();
                farewell.passed(&piece);
                if writer.write_data(piece).await.is_err() {
                    return;
                }
            }
            Err(_) => {
                let last = farewell.lost();
                if last.is_empty() {
                    writer.abort(BODY_FAILED);
                    return;
                }
                let _ = writer.write_data(Bytes::from_static(last)).await;
                break;
            }
        }
    }
    let _ = writer.write_end(Bytes::new(), None).await;
}

/// Copies the hop's bytes into the connection, and the `farewell` if the connection leads to the
/// client.
async fn out_of_hop<W>(mut reader: HopBodyReader, mut to: W, mut farewell: Farewell)
where
    W: tokio::io::AsyncWrite + Unpin,
{
    loop {
        let data = tokio::select! {
            biased;
            last = farewell.due() => {
                let _ = to.write_all(last).await;
                break;
            }
            part = reader.next() => match part {
                Ok(HopPart::Data(data)) => data,
                Ok(HopPart::End(_)) | Err(_) => {
                    let _ = to.write_all(farewell.lost()).await;
                    break;
                }
            },
        };
        farewell.passed(&data);
        if to.write_all(&data).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;
    use tokio::io::duplex;

    use super::*;
    use crate::http::tunnels::Tunnels;

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_cut_off_in_the_middle_of_a_write() {
        let tunnels = Tunnels::default();
        let websocket = HeaderValue::from_static("websocket");
        let (client, _unread) = duplex(16);
        let (app, mut app_end) = duplex(1024);
        let joined = tokio::spawn(join(client, app, tunnels.farewell(Some(&websocket))));
        // Frames without bytes, between any two of which the close could be sent; more than fit, so
        // that some have been read by then and are being written.
        app_end.write_all(&[0x82, 0].repeat(750)).await.unwrap();
        tunnels.closing.cancel();
        tunnels.cut.cancel();
        tokio::time::timeout(Duration::from_secs(30), joined).await.expect("it ends").unwrap();
    }
}
