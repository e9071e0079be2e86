//! Sends requests to a child: over HTTP/1.1 through a small pool of kept-alive connections, or over
//! HTTP/2 on as few connections as suffice.
//!
//! Upgrades: the response to a request that switched protocols leaves here with hyper's
//! `OnUpgrade` of the app's side in its extensions, and the caller joins the two sides.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tower::Service;
use warmhop::app::{AnsweringWhole, AnswersWhole, WholeRequest};
use warmhop::{Body, BoxError, Interim};

use super::h2::H2Client;
use super::http1::Http1Client;
use super::interim;
use super::plain::Asked;
use super::request::{Gate, RequestBody, WHOLE_BYTES_MAX};
use crate::child::launch::Protocol;

/// How long a request body waits for the app's `100 Continue` (RFC 9110 section 10.1.1 forbids
/// clients to wait for ever).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends requests to the child. If the app has closed a kept-alive connection meanwhile, no request
/// is lost: it is sent again on a new one if no byte of it had left, or if it is safe (RFC 9110
/// section 9.2.1), has no body and got no byte of an answer. A request that changes something is
/// sent on a connection that is new or was used a moment ago, and on neither once the app has
/// closed it.
#[derive(Clone)]
pub struct ChildService {
    client: AppClient,
    authority: Authority,
    port: u16,
}

/// How requests are sent to the app.
#[derive(Clone)]
enum AppClient {
    /// A pool of connections, one request at a time on each.
    Http1(Http1Client),
    /// Usually one connection for all requests, which HTTP/2 interleaves.
    H2(Arc<H2Client>),
}

impl ChildService {
    /// Requests to `127.0.0.1:port`.
    #[must_use]
    pub fn new(port: u16, protocol: Protocol) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let client = match protocol {
            Protocol::Http1 => AppClient::Http1(Http1Client::new(addr)),
            Protocol::H2 => AppClient::H2(Arc::new(H2Client::new(addr))),
        };
        let Ok(authority) = addr.to_string().parse() else {
            unreachable!("an address and a port are an authority");
        };
        Self { client, authority, port }
    }

    /// The port that the child listens on.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What requests of the most common kind can be lent to, if there is such a thing.
    pub(super) fn lends(&self) -> Option<Lends> {
        match &self.client {
            AppClient::Http1(client) => Some(Lends(client.clone())),
            AppClient::H2(_) => None,
        }
    }

    /// The request in the form that the app gets, and the way to its client for interim responses.
    fn outgoing(
        &self,
        request: Request<Body>,
    ) -> Result<(Request<RequestBody>, Option<Interim>), http::Error> {
        let (mut parts, body) = request.into_parts();
        let has = Has::of(&parts.headers);
        if !has.host {
            // HTTP/2 has the host in the target.
            let host = parts.uri.authority().unwrap_or(&self.authority).as_str();
            parts.headers.insert(HOST, HeaderValue::from_str(host)?);
        }
        let is_h2 = matches!(self.client, AppClient::H2(_));
        if is_h2 {
            // HTTP/2 has the host in `:authority` and has no upgrade of a connection: an app that
            // is asked for one answers as it answers any request.
            let host = parts.headers.remove(HOST);
            let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(authority.unwrap_or_else(|| self.authority.clone()));
            uri.path_and_query = Some(path_of(&parts.uri));
            parts.uri = Uri::from_parts(uri)?;
            parts.headers.remove(CONNECTION);
            parts.headers.remove(UPGRADE);
            parts.version = Version::HTTP_2;
        } else {
            if has.upgrade && has.te {
                // Many servers accept no second token in `Connection` besides this one.
                parts.headers.remove(TE);
            } else if has.te {
                // RFC 9110 section 10.1.4: it concerns this connection alone, and `Connection` has
                // to name it.
                parts.headers.append(CONNECTION, HeaderValue::from_static("te"));
            }
            parts.version = Version::HTTP_11;
            if parts.uri.authority().is_some() {
                // RFC 9112 section 3.2.1: the host is in its field.
                parts.uri = Uri::from(path_of(&parts.uri));
            }
        }
        // The mesh's own extensions of a request mean nothing to the client in here.
        let interim = parts.extensions.remove::<Interim>();
        parts.extensions = Extensions::new();
        let is_continue =
            |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let waits = has.expect && parts.headers.get(EXPECT).is_some_and(is_continue);
        let body = RequestBody::new(&mut parts.headers, body);
        if !is_h2 && body.is_of_unknown_length() && body.whole().is_none() {
            // Without this, hyper assumes that a GET has no body, and sends none of it.
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let mut request = Request::from_parts(parts, body);
        if waits {
            let (said, go) = oneshot::channel();
            let patience = Box::pin(sleep(CONTINUE_TIMEOUT));
            request.body_mut().gate = Some(Gate { go: Some(go), patience });
            interim::pass_on(&mut request, interim.clone(), Some(said));
        }
        Ok((request, interim))
    }
}

/// Which fields that decide about a request's form it has. One pass over the names costs less than a
/// lookup of each.
#[derive(Default)]
struct Has {
    host: bool,
    upgrade: bool,
    te: bool,
    expect: bool,
}

impl Has {
    fn of(headers: &HeaderMap) -> Self {
        let mut has = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "host" => has.host = true,
                "upgrade" => has.upgrade = true,
                "te" => has.te = true,
                "expect" => has.expect = true,
                _ => {}
            }
        }
        has
    }
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// Whether the connection of an answer ends with it though no field says so: that of a server of
/// HTTP/1.0, or of one that has its answer end so (RFC 9112 sections 9.3 and 6.3).
fn ends_with_its_connection(response: &Response<Body>) -> bool {
    let headers = response.headers();
    if headers.contains_key(CONNECTION) {
        return false;
    }
    let has_length = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|it| headers.contains_key(it));
    response.version() == Version::HTTP_10 || !has_length
}

/// Has a field say that the connection of a refusal ends with it, also where the app's says nothing: what
/// follows goes by that, since the server may not have read the request to its end.
fn mark_end(response: &mut Response<Body>, is_head: bool) {
    let is_refusal = response.status() == StatusCode::BAD_REQUEST && !is_head;
    if is_refusal && ends_with_its_connection(response) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Answers the requests of the most common kind, which go over HTTP/1.1 as they are.
pub(super) struct Lends(Http1Client);

impl AnswersWhole for Lends {
    fn takes(&self, request: &WholeRequest<'_>) -> bool {
        let bytes = request.body.len();
        bytes as u64 <= WHOLE_BYTES_MAX && is_plain(request.fields, bytes)
    }

    fn answer<'a>(&'a self, request: WholeRequest<'a>) -> AnsweringWhole<'a> {
        Box::pin(async move {
            let WholeRequest { method, target, fields, ref further, body, interim, .. } = request;
            let (target, further) = (target.as_str(), further.as_ref());
            let asked = Asked { method, target, fields, further, body };
            let mut response = self.0.whole(asked, interim).await?;
            mark_end(&mut response, *method == Method::HEAD);
            *response.version_mut() = Version::HTTP_11;
            Ok(response)
        })
    }
}

/// Whether the app can get these fields as they are: they name its host, say nothing of a connection, and
/// no other length than the body's.
fn is_plain(fields: &HeaderMap, body_bytes: usize) -> bool {
    let (mut has_host, mut has_length) = (false, false);
    for (name, value) in fields {
        match name.as_str() {
            "host" => has_host = true,
            "connection" | "expect" | "te" | "transfer-encoding" | "upgrade" => return false,
            "content-length" => {
                let mut digits = itoa::Buffer::new();
                if has_length || *value != *digits.format(body_bytes) {
                    return false;
                }
                has_length = true;
            }
            _ => {}
        }
    }
    has_host
}

impl Service<Request<Body>> for ChildService {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let outgoing = self.outgoing(request);
        let client = self.client.clone();
        Box::pin(async move {
            let (outgoing, interim) = outgoing?;
            let mut response = match client {
                AppClient::Http1(client) => {
                    let is_head = *outgoing.method() == Method::HEAD;
                    let mut response = client.request(outgoing, interim).await?;
                    mark_end(&mut response, is_head);
                    response
                }
                // hyper reports no interim responses there.
                AppClient::H2(client) => Box::pin(client.request(outgoing)).await?,
            };
            // The client's connection must not become HTTP/1.0 because the app speaks that.
            *response.version_mut() = Version::HTTP_11;
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests;
