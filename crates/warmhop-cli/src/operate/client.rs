//! The commands' side of the admin listener: one small HTTP request and its answer.

mod connect;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a peer may take to accept and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A longer answer is not read: no peer has one.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The media type of a peer's refusal: problem details (RFC 9457).
const PROBLEM: &str = "application/problem+json";

/// The URL of an admin listener: `http://HOST:PORT`, or `https://HOST:PORT` if a proxy in front of
/// it ends TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl {
    https: bool,
    host: String,
    port: u16,
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "expected http://HOST:PORT, such as http://127.0.0.1:9001, or https://HOST:PORT";
        let with_scheme =
            if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|_| form.to_owned())?;
        let https = uri.scheme_str() == Some("https");
        let known = https || uri.scheme_str() == Some("http");
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|_| known && bare).ok_or(form)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(form.into());
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host: authority.host().into(), port })
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// One peer's admin listener.
#[derive(Clone)]
pub struct Admin {
    url: AdminUrl,
    token: Option<String>,
    ca_file: Option<PathBuf>,
}

/// Why a peer did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing listens there.
    #[error(
        "no peer answers at {url}: is it running? Start one with `warmhop run --config FILE`, or \
         name another with --admin URL ({source})"
    )]
    Unreachable {
        /// The URL that was asked.
        url: AdminUrl,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It accepted the connection and then did not answer in time.
    #[error("the peer at {url} did not answer within {} s; is it stopped or overloaded?", ANSWER_TIMEOUT.as_secs())]
    Silent {
        /// The URL that was asked.
        url: AdminUrl,
    },
    /// The TLS handshake with it failed.
    #[error("no TLS connection to {url}: {why}")]
    Tls {
        /// The URL that was asked.
        url: AdminUrl,
        /// Why, and what to do.
        why: String,
    },
    /// The answer does not come from a peer's admin listener.
    #[error(
        "what listens at {url} is not the admin listener of a peer: {why}; name one with --admin URL or \
         WARMHOP_ADMIN, as [admin] listen of the peer has it"
    )]
    NotAPeer {
        /// The URL that was asked.
        url: AdminUrl,
        /// What was wrong.
        why: String,
    },
    /// Its answer began, and broke off.
    #[error("the answer of the peer at {url} broke off: {why}")]
    BrokeOff {
        /// The URL that was asked.
        url: AdminUrl,
        /// How.
        why: String,
    },
    /// The peer refused.
    #[error("{detail}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its reason.
        detail: String,
    },
}

impl Admin {
    /// The listener at `url`, which gets `token` if there is one.
    #[must_use]
    pub fn new(url: AdminUrl, token: Option<String>) -> Self {
        Self { url, token, ca_file: None }
    }

    /// Trusts the authorities in this file, in PEM, instead of those that this system trusts.
    #[must_use]
    pub fn ca_file(mut self, file: Option<PathBuf>) -> Self {
        self.ca_file = file;
        self
    }

    /// The URL of the listener.
    #[must_use]
    pub fn url(&self) -> &AdminUrl {
        &self.url
    }

    /// `GET /v1/status`, as sent.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn status(&self) -> Result<Value, AskError> {
        self.ask(Method::GET, "/v1/status", "/peer/name").await
    }

    /// Asks for `path`, whose parts have been through [`encoded`].
    ///
    /// `mark` points (RFC 6901) to a field that every peer's answer has. Other programs answer JSON
    /// as well, and since absent fields count as empty, theirs would be shown as that of a peer
    /// with nothing.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask(&self, method: Method, path: &str, mark: &str) -> Result<Value, AskError> {
        let answer = timeout(ANSWER_TIMEOUT, self.exchange(method, path)).await;
        let answer = answer.map_err(|_| AskError::Silent { url: self.url.clone() })??;
        if answer.headers().contains_key("warmhop-request-id") {
            return Err(self.not_a_peer("it answers as a front door does"));
        }
        let status = answer.status();
        let value: Result<Value, _> = serde_json::from_slice(answer.body());
        if status.is_success() {
            let value = value.map_err(|_| self.not_a_peer("its answer is not JSON"))?;
            return match value.pointer(mark) {
                Some(found) if *found != "" => Ok(value),
                _ => Err(self.not_a_peer(format!("its answer to {path} has no {mark}"))),
            };
        }
        Err(self.refusal(status, answer.headers(), answer.body(), path))
    }

    /// The answer to [`Admin::ask`] in its type.
    ///
    /// # Errors
    /// [`AskError::NotAPeer`] if it has another one.
    pub fn read<T: for<'a> Deserialize<'a>>(&self, answer: &Value) -> Result<T, AskError> {
        T::deserialize(answer).map_err(|error| self.not_a_peer(error))
    }

    fn broke_off(&self, why: &hyper::Error) -> AskError {
        AskError::BrokeOff { url: self.url.clone(), why: why.to_string() }
    }

    fn not_a_peer(&self, why: impl fmt::Display) -> AskError {
        AskError::NotAPeer { url: self.url.clone(), why: why.to_string() }
    }

    /// The body of `path` as text, whatever it is.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn text(&self, path: &str) -> Result<String, AskError> {
        let answer = timeout(ANSWER_TIMEOUT, self.exchange(Method::GET, path)).await;
        let answer = answer.map_err(|_| AskError::Silent { url: self.url.clone() })??;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        match answer.status() {
            status if status.is_success() => Ok(text),
            status => Err(self.refusal(status, answer.headers(), answer.body(), path)),
        }
    }

    /// Asks for a stream of lines, and passes each to `take` as it comes, until `take` or the peer
    /// ends it. Only the wait for the answer's beginning is bounded.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn lines(
        &self,
        method: Method,
        path: &str,
        mut take: impl FnMut(&str) -> std::ops::ControlFlow<()>,
    ) -> Result<(), AskError> {
        let head = timeout(ANSWER_TIMEOUT, self.open(method, path)).await;
        let (head, mut body) =
            head.map_err(|_| AskError::Silent { url: self.url.clone() })??.into_parts();
        if !head.status.is_success() {
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.not_a_peer(error))?.to_bytes();
            return Err(self.refusal(head.status, &head.headers, &body, path));
        }
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broke_off(&error))?;
            rest.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if take(String::from_utf8_lossy(&line).trim_end()).is_break() {
                    return Ok(());
                }
            }
            if rest.len() > ANSWER_BYTES_MAX {
                return Err(self.not_a_peer("a line of its answer has no end"));
            }
        }
        Ok(())
    }

    fn refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        path: &str,
    ) -> AskError {
        let is_problem = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
        let refusal = serde_json::from_slice::<Value>(body).ok().filter(|_| is_problem);
        match refusal.and_then(|refusal| Some(refusal.get("detail")?.as_str()?.to_owned())) {
            Some(detail) => AskError::Refused { status, detail },
            None => self.not_a_peer(format!("it answers {path} with {status}")),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Response<Bytes>, AskError> {
        let (head, body) = self.open(method, path).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| self.not_a_peer(error))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    async fn open(&self, method: Method, path: &str) -> Result<Response<Incoming>, AskError> {
        let host = self.url.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.url.port))
            .await
            .map_err(|source| AskError::Unreachable { url: self.url.clone(), source })?;
        let stream: Box<dyn connect::Stream> = if self.url.https {
            let stream = connect::tls(stream, host, self.ca_file.as_deref()).await;
            stream.map_err(|why| AskError::Tls { url: self.url.clone(), why })?
        } else {
            Box::new(stream)
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.not_a_peer(error))?;
        tokio::spawn(connection);
        let authority = format!("{}:{}", self.url.host, self.url.port);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, authority)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("warmhop/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| self.not_a_peer("the token has characters that no token may have"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|error| self.not_a_peer(error))?;
        sender.send_request(request).await.map_err(|error| self.not_a_peer(error))
    }
}

/// `text` as part of a path: characters that are not unreserved (RFC 3986 section 2.3) are
/// percent-encoded, except for `/`, which keys and request ids may contain.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut path = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// The host and port of a front door, if `text` is one.
pub(crate) fn front_door(text: &str) -> Option<Authority> {
    text.parse::<Authority>().ok().filter(|authority| authority.port_u16().is_some())
}
