//! The connection to an app that speaks HTTP/2.

use std::net::SocketAddr;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;
use warmhop::BoxError;

use super::request::RequestBody;
use super::service::CONNECT_TIMEOUT;

/// The one HTTP/2 connection to an app, made anew when the app has closed it.
pub(super) struct H2Client {
    pub(super) addr: SocketAddr,
    pub(super) sender: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
}

impl H2Client {
    /// The connection as it is, or a fresh one.
    async fn sender(&self) -> Result<http2::SendRequest<RequestBody>, BoxError> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = &mut *kept
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let connect = tokio::net::TcpStream::connect(self.addr);
        let stream = timeout(CONNECT_TIMEOUT, connect).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await?;
        // How it ends is told to each of its requests.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(kept.insert(sender).clone())
    }

    pub(super) async fn request(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, BoxError> {
        let mut again = true;
        loop {
            let mut sender = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    // The connection ended before a byte of the request had left.
                    Some(unsent) if again => {
                        request = unsent;
                        again = false;
                    }
                    _ => return Err(error.into_error().into()),
                },
            }
        }
    }
}
