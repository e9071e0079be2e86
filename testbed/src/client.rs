//! An HTTP client that keeps cookies and takes times.
//!
//! Each request goes over a connection of its own, so that none is ever lost to a pooled
//! connection whose peer has just died, and every time includes the connect, as a new client's
//! would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::header::{COOKIE, HOST, HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a whole exchange may take unless the caller says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(40);

/// A request's body.
pub type RequestBody = BoxBody<Bytes, std::io::Error>;

/// One client of the mesh; like a browser behind a load balancer, it takes every front door for
/// the same site.
#[derive(Debug, Clone, Default)]
pub struct Client {
    cookies: BTreeMap<String, String>,
}

/// A request in the making.
#[derive(Debug)]
pub struct Call<'a> {
    client: &'a mut Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Option<RequestBody>,
    timeout: Duration,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// From the first step of connecting to the last byte.
    pub took: Duration,
}

impl Client {
    /// A client that the site does not know yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a request.
    pub fn call(&mut self, method: Method, path: impl Into<String>) -> Call<'_> {
        Call {
            client: self,
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: None,
            timeout: TIMEOUT,
        }
    }

    /// `GET path` at the front door `addr`.
    ///
    /// # Errors
    /// If no whole response came.
    pub async fn get(&mut self, addr: SocketAddr, path: impl Into<String>) -> Result<Reply> {
        self.call(Method::GET, path).send(addr).await
    }

    /// `POST path` at the front door `addr`, without a body.
    ///
    /// # Errors
    /// If no whole response came.
    pub async fn post(&mut self, addr: SocketAddr, path: impl Into<String>) -> Result<Reply> {
        self.call(Method::POST, path).send(addr).await
    }

    /// A cookie that it was given.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.get(name).map(String::as_str)
    }

    /// Gives it a cookie.
    pub fn set_cookie(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.cookies.insert(name.into(), value.into());
    }

    /// The peer that its affinity cookie names.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.cookie("warmhop")?.split_once('.').map(|(_, route)| route)
    }

    fn keep(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(SET_COOKIE) {
            let Some((name, rest)) = value.to_str().ok().and_then(|v| v.split_once('=')) else {
                continue;
            };
            let value = rest.split(';').next().unwrap_or_default();
            self.cookies.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
}

impl Call<'_> {
    /// Adds a header field.
    ///
    /// # Panics
    /// If it is not a valid one: both come from the program, not from outside.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        let value = HeaderValue::from_str(value.as_ref()).expect("callers pass valid values");
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    /// A body that is known.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.streaming(Full::new(body.into()).map_err(|never| match never {}).boxed())
    }

    /// A body that is streamed.
    #[must_use]
    pub fn streaming(mut self, body: RequestBody) -> Self {
        self.body = Some(body);
        self
    }

    /// How long the exchange may take.
    #[must_use]
    pub fn timeout(mut self, bound: Duration) -> Self {
        self.timeout = bound;
        self
    }

    /// Sends it to the front door `addr` and reads the whole response.
    ///
    /// # Errors
    /// If no whole response came in time.
    pub async fn send(self, addr: SocketAddr) -> Result<Reply> {
        let began = Instant::now();
        let (what, bound) = (format!("{} {} at {addr}", self.method, self.path), self.timeout);
        let exchange = async {
            let response = self.open(addr).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.context("the response broke off")?.to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body, took: began.elapsed() })
        };
        timeout(bound, exchange)
            .await
            .unwrap_or_else(|_| Err(anyhow!("no response within {bound:?}")))
            .context(what)
    }

    /// Sends it to the front door `addr`; the response's body is the caller's to read.
    ///
    /// # Errors
    /// If no response began.
    pub async fn open(self, addr: SocketAddr) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(self.method).uri(&self.path).body(
            self.body.unwrap_or_else(|| Full::default().map_err(|never| match never {}).boxed()),
        )?;
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            headers.insert(HOST, HeaderValue::from_str(&addr.to_string())?);
        }
        let cookies: Vec<String> =
            self.client.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty() && !headers.contains_key(COOKIE) {
            headers.insert(COOKIE, HeaderValue::from_str(&cookies.join("; "))?);
        }
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the response's body, or when the response is dropped.
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await?;
        self.client.keep(response.headers());
        Ok(response)
    }
}

impl Reply {
    /// The first value of a header field, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The peer that ran the app.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.header("warmhop-peer")
    }

    /// Whether another peer than the one that was asked ran the app.
    #[must_use]
    pub fn hopped(&self) -> bool {
        self.headers.contains_key("via")
    }

    /// The request's id.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.header("warmhop-request-id")
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Fails unless the status says that it worked.
    ///
    /// # Errors
    /// If it is not 2xx; with the body, which says why.
    pub fn ok(self) -> Result<Self> {
        if self.status.is_success() {
            return Ok(self);
        }
        let proxy = self.header("proxy-status").unwrap_or("").to_owned();
        Err(anyhow!("{} {proxy}: {}", self.status, self.text().trim()))
    }
}
