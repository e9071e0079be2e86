//! The way to a collector: HTTP, or HTTPS with the authorities that this system trusts or others,
//! compressed if that is configured.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};

use super::Settings;
use crate::host::https;

/// How long a collector may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often a batch is sent, and how long the pause before the second try is; it doubles after
/// that.
const TRIES: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest pause that an overloaded collector may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A collector, and how to send to it.
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    headers: HeaderMap,
}

impl Collector {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let tls = tls(&settings.endpoint, settings.authorities.as_deref())?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
        let connector = connector.https_or_http().enable_http1().build();
        let mut headers = settings.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let agent = concat!("warmhop/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if settings.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, endpoint: settings.endpoint.clone(), headers })
    }

    /// Sends a request until the collector accepts it or another try is useless.
    pub(super) async fn send(&self, json: &str) -> Result<(), String> {
        let body = self.packed(json).map_err(|error| error.to_string())?;
        let mut wait = RETRY_AFTER;
        for left in (0..TRIES).rev() {
            let (error, again) = match timeout(ANSWER_WITHIN, self.ask(body.clone())).await {
                Ok(Ok(answer)) if answer.status().is_success() => return Ok(()),
                Ok(Ok(answer)) => {
                    let status = answer.status();
                    wait = pause(answer.headers()).unwrap_or(wait);
                    let again = matches!(
                        status,
                        StatusCode::TOO_MANY_REQUESTS
                            | StatusCode::BAD_GATEWAY
                            | StatusCode::SERVICE_UNAVAILABLE
                            | StatusCode::GATEWAY_TIMEOUT
                    );
                    (format!("it answers {status}"), again)
                }
                Ok(Err(error)) => (with_cause(&error), true),
                Err(_) => (format!("no answer within {} s", ANSWER_WITHIN.as_secs()), false),
            };
            if left == 0 || !again {
                return Err(error);
            }
            sleep(wait).await;
            wait *= 2;
        }
        Ok(())
    }

    fn ask(&self, body: Bytes) -> ResponseFuture {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        self.client.request(request)
    }

    fn packed(&self, json: &str) -> io::Result<Bytes> {
        if !self.headers.contains_key(CONTENT_ENCODING) {
            return Ok(Bytes::copy_from_slice(json.as_bytes()));
        }
        let mut packer = GzEncoder::new(Vec::with_capacity(json.len() / 8), Compression::fast());
        packer.write_all(json.as_bytes())?;
        packer.finish().map(Bytes::from)
    }
}

/// The failure and its cause: for a failed handshake the client itself reports only that there was
/// no connection.
fn with_cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The TLS configuration for a collector.
fn tls(endpoint: &Uri, authorities: Option<&Path>) -> Result<ClientConfig, String> {
    if endpoint.scheme_str() == Some("https") {
        https::client(authorities, "OTEL_EXPORTER_OTLP_CERTIFICATE", "the collector's certificate")
    } else {
        https::nobody()
    }
}

/// The pause that a collector asks for (OTLP/HTTP, "OTLP/HTTP Throttling"), in whole seconds; a
/// date (RFC 9110 section 10.2.3) would need clocks that agree.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::sync::Arc;

    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper_util::rt::TokioIo;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn a_collector_is_left_alone_for_as_long_as_it_asks_within_a_bound() {
        let asked = |value: &'static str| {
            pause(&HeaderMap::from_iter([(
                http::header::RETRY_AFTER,
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("86400"), Some(PAUSE_MAX));
        for other in ["-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(asked(other), None, "{other}");
        }
        assert_eq!(pause(&HeaderMap::new()), None);
    }

    fn settings(vars: &[(&str, &str)]) -> Settings {
        let vars: BTreeMap<_, _> = vars.iter().copied().collect();
        let read = Settings::read("peer-1", |name| vars.get(name).map(ToString::to_string));
        read.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_collector_is_reached_by_https_and_gets_its_spans_packed() {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, mut heard) = mpsc::channel(1);
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(server));
            // The client that does not trust it comes first, and leaves.
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let sender = sender.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let packing = request.headers().get(CONTENT_ENCODING).cloned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let _ = sender.send((packing, body)).await;
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::new())))
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });

        let endpoint = format!("https://{addr}");
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str());
        let strangers = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = std::env::temp_dir().join(format!("warmhop-otlp-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, text: &str| {
            let file = folder.join(name);
            std::fs::write(&file, text).unwrap();
            file.to_str().unwrap().to_owned()
        };
        let (own, other) =
            (file("own.pem", &made.cert.pem()), file("other.pem", &strangers.cert.pem()));
        let trusting = |file: &str| settings(&[endpoint, ("OTEL_EXPORTER_OTLP_CERTIFICATE", file)]);

        let outcome = Collector::new(&trusting(&other)).unwrap().ask(Bytes::new()).await;
        let error = with_cause(&outcome.unwrap_err());
        assert!(error.contains("certificate"), "{error}");

        let mut packed = trusting(&own);
        packed.gzip = true;
        Collector::new(&packed).unwrap().send("{\"resourceSpans\":[]}").await.unwrap();
        let (packing, body) = heard.recv().await.unwrap();
        assert_eq!(packing.unwrap(), "gzip");
        let mut json = String::new();
        GzDecoder::new(&body[..]).read_to_string(&mut json).unwrap();
        assert_eq!(json, "{\"resourceSpans\":[]}");

        for (name, text) in [("none.pem", Some("")), ("absent.pem", None)] {
            let path = match text {
                Some(text) => file(name, text),
                None => folder.join(name).to_str().unwrap().to_owned(),
            };
            let error = Collector::new(&trusting(&path)).err().unwrap();
            let named =
                error.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE: ") && error.contains(name);
            assert!(named && error.contains("in PEM"), "{error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
